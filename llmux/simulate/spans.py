"""Total length of a set of time intervals, up to or between given times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Spans:
    """Disjoint intervals of time in ascending order; times are in seconds."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._from = [start for start, _ in spans]
        self._for_s = [end - start for start, end in spans]
        self._before_s = [0.0, *accumulate(self._for_s)]

    def before(self, at: float) -> float:
        """Return the total length of the intervals before a time."""
        begun = bisect_right(self._from, at)
        if not begun:
            return 0.0
        return self._before_s[begun - 1] + min(at - self._from[begun - 1], self._for_s[begun - 1])

    def between(self, start: float, end: float) -> float:
        """Return the total length of the intervals between two times."""
        return self.before(end) - self.before(start)
