"""Looking through a body in slices, so that nothing else waits for the whole of it.

One search through 64 MiB holds Python's interpreter lock for up to seconds. Between two slices the
caller's `pause` lets others have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from llmux.errors import BadRequest

Pause = Callable[[], object]
"""Called between two slices; may raise, to end the work."""

SLICE_BYTES = 65536
"""One slice: at most 3 ms of work (measured with nothing but quotes in it), mostly 50 us."""

MAX_MATCHES = 10_000
"""Parts of a form, or keys `model` in JSON: more are refused. Web frameworks take 1,000 parts."""


MATCHES_BETWEEN_PAUSES = 128
"""Of fields, parts and keys: each takes up to 10 us, however small it is."""


def no_pause() -> None:
    """For bodies that are looked through in no time."""


class TooLong(Exception):
    """There is more to look at than was asked for."""


class Hurry:
    """A pause for what is done on the event loop: it ends work that should be done in a thread."""

    def __init__(self) -> None:
        self._left = 0

    def begin(self) -> Pause:
        """Use this for one body; it raises TooLong once that has taken as long as some should."""
        self._left = MAX_PAUSES
        return self._pause

    def _pause(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooLong


MAX_PAUSES = 16
"""Pauses while a body of up to 256 KiB is looked through: there are few unless it nests deeply."""


def few_matches(
    pattern: re.Pattern[bytes],
    data: bytes,
    most_bytes: int,
    pause: Pause,
    most: int = MAX_MATCHES,
) -> Iterator[re.Match[bytes]]:
    """All matches of a pattern.

    Args:
        pattern: What to look for.
        data: Where.
        most_bytes: How long a match can be.
        pause: Called between two slices.
        most: How many there may be.

    Raises:
        BadRequest: There are too many.
    """
    count = start = 0
    while start < len(data):
        stop = start + SLICE_BYTES
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
    """Where a run ends that a pattern matches piece by piece."""
    while (end := pattern.match(data, start, start + SLICE_BYTES)) and end.end() > start:
        start = end.end()
        pause()
    return start


def too_many(most: int) -> BadRequest:
    """What is said of a body that would take too long."""
    return BadRequest(f"The request has more than {most} fields")
