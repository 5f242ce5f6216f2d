"""The signals that llmux handles, held back until a handler is there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold_back() -> None:
    """Block the signals: while llmux starts, each would end it in its own way."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


@contextmanager
def let_through() -> Iterator[None]:
    """Unblock the signals, pending ones included; processes started in here inherit no mask."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
