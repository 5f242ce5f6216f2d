"""The signals that llmux handles, held back until a handler is there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold_back() -> None:
    """Have them wait: while llmux starts, they would end it, each in its own way."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)


@contextmanager
def let_through() -> Iterator[None]:
    """Let them come, also those that waited, and what runs in here inherit no mask."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
