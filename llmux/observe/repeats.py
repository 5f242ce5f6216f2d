"""Show one of a library's repeated log lines, and count the rest.

A server that has run out of descriptors has its library log every failed accept, with a traceback:
asyncio does so up to `backlog` times a second, which made 6 MB in a few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

ALIKE_S = 10.0
"""Time after a line in which equal ones are only counted."""

MOST_KINDS = 1000
"""Different lines remembered at a time."""

MOST_TEXT = 500
"""Characters that are compared."""

OWN = "llmux"

COUNT = "llmux_repeated"
"""Marks the records made here."""

Kind = tuple[str, int, str, str]


class Repeats(logging.Filter):
    """Drops a library's repeated lines, and logs later how many were dropped.

    llmux's own lines all pass: there is one for each event, and events are counted by them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._seen: OrderedDict[Kind, list[float]] = OrderedDict()  # shown at, dropped since

    def filter(self, record: logging.LogRecord) -> bool:
        is_own = record.name == OWN or record.name.startswith(f"{OWN}.")
        if is_own or hasattr(record, COUNT):
            return True
        now = time.monotonic()
        kind = _kind(record)
        with self._lock:
            over = self._take_over(now)
            if kind in self._seen:
                self._seen[kind][1] += 1
                is_shown = False
            else:
                self._seen[kind] = [now, 0]
                is_shown = True
        for (name, level, text, error), dropped in over:
            what = f"{text}: {error}" if error else text
            line = "%s (%d times more in %g s)"
            logging.getLogger(name).log(level, line, what, dropped, ALIKE_S, extra={COUNT: dropped})
        return is_shown

    def _take_over(self, now: float) -> list[tuple[Kind, int]]:
        """Forget lines that were shown long ago; return those with repeats, and how many."""
        over = []
        while self._seen:
            kind, (shown_at, dropped) = next(iter(self._seen.items()))  # the one shown first
            if now - shown_at < ALIKE_S and len(self._seen) < MOST_KINDS:
                break
            del self._seen[kind]
            if dropped:
                over.append((kind, int(dropped)))
        return over


def _kind(record: logging.LogRecord) -> Kind:
    error = record.exc_info[1] if record.exc_info else None
    shown = "" if error is None else f"{type(error).__name__}: {error}"
    return record.name, record.levelno, record.getMessage()[:MOST_TEXT], shown[:MOST_TEXT]
