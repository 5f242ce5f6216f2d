"""llmux's own log: its last events, for `GET /control/log`.

They are kept as standard error gets them, so that each is formatted once, and masked alike. The
memory is bounded, whatever is logged.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

import trio

from llmux.config.masking import MASKER

MOST_EVENTS = 2000
"""Events that are kept; most are one line."""

LONGEST_EVENT = 8000
"""Characters of an event that are kept; a traceback has a few thousand."""

LOOK_S = 0.5
"""Seconds between looks for new events."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class LastLines:
    """The last events that this process has logged, each as its text.

    Libraries log from threads of their own, so it is locked.
    """

    def __init__(self) -> None:
        self._events: deque[str] = deque(maxlen=MOST_EVENTS)
        self._count = 0  # of all events so far
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        with self._lock:
            self._events.append(text[:LONGEST_EVENT])
            self._count += 1

    def after(self, number: int) -> tuple[int, list[str]]:
        """Return the number of all events so far, and those after the first `number` of them."""
        with self._lock:
            fresh = min(max(0, self._count - number), len(self._events))
            return self._count, list(islice(self._events, len(self._events) - fresh, None))


LAST_LINES = LastLines()
"""Those of this process; its `logging` is one, too."""


class OwnLogReader:
    """Iterates over the last events of llmux's log, and over new ones as they come.

    Args:
        last: Number of last events to begin with.
        follow: Returns whether to wait for new ones.
    """

    def __init__(self, *, last: int, follow: Callable[[], bool]) -> None:
        self._follow = follow
        self._number, kept = LAST_LINES.after(0)
        self._first = _encoded(kept[len(kept) - min(last, len(kept)) :])

    def __aiter__(self) -> OwnLogReader:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            piece, self._first = self._first, b""
            return piece
        while self._follow():
            self._number, fresh = LAST_LINES.after(self._number)
            if fresh:
                await trio.lowlevel.checkpoint()
                return _encoded(fresh)
            await trio.sleep(LOOK_S)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Do nothing: nothing is kept open."""


def _encoded(events: list[str]) -> bytes:
    """Return lines without colours, and without secrets that the config has got since."""
    text = "".join(f"{_COLOURS.sub('', event)}\n" for event in events)
    return MASKER.mask(text).encode(errors="replace")
