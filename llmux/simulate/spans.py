"""Times in which something was the case."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Spans:
    """From when to when, in order and apart from each other."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._from = [start for start, _ in spans]
        self._for_s = [end - start for start, end in spans]
        self._before_s = [0.0, *accumulate(self._for_s)]

    def before(self, at: float) -> float:
        """For how long it had been the case until then, in seconds."""
        begun = bisect_right(self._from, at)
        if not begun:
            return 0.0
        return self._before_s[begun - 1] + min(at - self._from[begun - 1], self._for_s[begun - 1])

    def between(self, start: float, end: float) -> float:
        """For how long it was the case from one time to another, in seconds."""
        return self.before(end) - self.before(start)
