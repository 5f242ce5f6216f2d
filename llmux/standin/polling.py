"""Polling, for what gives no notice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PERIOD_S = 0.05
"""Well below the time that a server takes to start or stop."""


def poll(obstacle: Callable[[], T | None], patience_s: float) -> T | None:
    """Wait until there is no obstacle; return the one that remains after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while (found := obstacle()) is not None and time.monotonic() < deadline:
        time.sleep(PERIOD_S)
    return found
