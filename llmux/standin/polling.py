"""Poll for conditions that send no notification."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PERIOD_S = 0.05
"""Well below the time that a server takes to start or stop."""


def poll(obstacle: Callable[[], T | None], patience_s: float) -> T | None:
    """Call `obstacle` until it returns None, or for `patience_s`; return its last result."""
    deadline = time.monotonic() + patience_s
    while (found := obstacle()) is not None and time.monotonic() < deadline:
        time.sleep(PERIOD_S)
    return found
