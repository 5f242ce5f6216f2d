"""Log a library's repeated lines once, and count the rest.

When a server runs out of descriptors, its library logs every failed accept with a traceback.
asyncio does so up to `backlog` times a second, which produced 6 MB in a few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

ALIKE_S = 10.0
"""Time after a line during which equal lines are only counted."""

MOST_KINDS = 1000
"""Limit of different lines remembered at a time."""

MOST_TEXT = 500
"""Number of leading characters that are compared."""

OWN = "llmux"

COUNT = "llmux_repeated"
"""Attribute that marks the records made here, which are never dropped."""

Kind = tuple[str, int, str, str]


class Repeats(logging.Filter):
    """Drops a library's repeated lines, and later logs how many were dropped.

    llmux's own lines always pass: each stands for one event, and people count events by them.
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
        """Forget lines shown more than `ALIKE_S` ago; return those with repeats, counted."""
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
