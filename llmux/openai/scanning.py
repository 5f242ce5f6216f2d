"""Search a body in slices, so that other tasks and threads can run in between.

One search through 64 MiB holds Python's interpreter lock for up to seconds, even in a thread.
Between two slices the caller's `pause` lets others have the lock, or stops the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from llmux.errors import BadRequest

Pause = Callable[[], object]
"""Called between two slices; may raise to stop the work."""

SLICE_BYTES = 65536
"""One slice takes 50 us as a rule, and at most 3 ms (measured on nothing but quotes)."""

MAX_MATCHES = 10_000
"""Limit for parts of a form, and for keys `model` in JSON. Web frameworks allow 1,000 parts."""


MATCHES_BETWEEN_PAUSES = 128
"""Fields, parts or keys between two pauses: each takes up to 10 us, however short it is."""


def no_pause() -> None:
    """Do nothing between slices, for data that is searched in no time."""


class TooLong(Exception):
    """The body is larger, or takes longer to search, than the caller allows."""


class PauseBudget:
    """Limits a search on the event loop to a number of pauses; longer ones belong in a thread.

    It may be used for one search at a time: the next `begin` resets it.
    """

    def __init__(self) -> None:
        self._left = 0

    def begin(self) -> Pause:
        """Return the `pause` for one search; it raises TooLong once the budget is spent."""
        self._left = MAX_PAUSES
        return self._pause

    def _pause(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooLong


MAX_PAUSES = 16
"""Pauses allowed on the event loop; a body of up to 256 KiB needs fewer, unless it nests deeply."""


def few_matches(
    pattern: re.Pattern[bytes],
    data: bytes,
    most_bytes: int,
    pause: Pause,
    most: int = MAX_MATCHES,
) -> Iterator[re.Match[bytes]]:
    """Yield the matches of a pattern, none of which can be longer than `most_bytes`.

    Raises:
        BadRequest: There are more than `most`.
    """
    count = start = 0
    while start < len(data):
        stop = start + SLICE_BYTES
        # Slices overlap, so that a match across their border is found, once: in the first.
        for match in pattern.finditer(data, start, stop + most_bytes):
            if match.start() >= stop:
                break
            count += 1
            if count > most:
                raise too_many(most)
            if count % MATCHES_BETWEEN_PAUSES == 0:
                pause()
            yield match
            stop = max(stop, match.end())
        start = stop
        pause()


def end_of_run(pattern: re.Pattern[bytes], data: bytes, start: int, pause: Pause) -> int:
    """Return the end of the run of matches at `start`; the pattern must match any part of a run."""
    while (end := pattern.match(data, start, start + SLICE_BYTES)) and end.end() > start:
        start = end.end()
        pause()
    return start


def too_many(most: int) -> BadRequest:
    return BadRequest(f"The request has more than {most} fields")
