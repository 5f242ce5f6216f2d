"""Block the signals that llmux handles until their handler is installed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold_back() -> None:
    """Block the signals, since their default actions would end llmux while it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


@contextmanager
def let_through() -> Iterator[None]:
    """Unblock the signals, which delivers pending ones; child processes then inherit no mask."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
