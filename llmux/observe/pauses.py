"""Exclude pauses of this process from Trio's clock.

When a process is stopped and continued (SIGSTOP, a frozen container, a paused virtual machine), all
its deadlines have passed at once: those of hooks, requests, health checks and retries, although
none of these had any time to run. Linux's CLOCK_MONOTONIC stops while the machine is suspended, but
not in these cases. So the clock is set back before Trio compares a deadline with it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol, cast

import trio
from trio_util import periodic

from llmux.observe.logs import get_logger

PAUSE_S = 1.0
"""Delay of a wake-up from which on it counts as a pause; on a busy machine it is shorter."""

TICK_S = 1.0
"""Longest wait of the event loop, and so the longest part of a pause that can be missed."""

log = get_logger(__name__)


class Adjustable(Protocol):
    """A clock that can be set back, like Trio's own."""

    offset: float

    def current_time(self) -> float: ...


class LeftOut:
    """The total length of pauses so far.

    Attributes:
        seconds: Total for this process.
    """

    def __init__(self) -> None:
        self.seconds = 0.0


LEFT_OUT = LeftOut()


class PauseWatch(trio.abc.Instrument):
    """Detects pauses; Trio calls it around each wait for I/O, before it checks deadlines."""

    def __init__(self, clock: Adjustable) -> None:
        self._clock = clock
        self._since = 0.0

    def before_io_wait(self, timeout: float) -> None:
        if timeout:
            self._since = self._clock.current_time()

    def after_io_wait(self, timeout: float) -> None:
        if not timeout:
            return
        lost_s = self._clock.current_time() - self._since - timeout
        if lost_s > PAUSE_S:
            put_back(self._clock, lost_s)
            LEFT_OUT.seconds += lost_s
            log.warning("process_paused", secs=round(lost_s, 3))


def put_back(clock: Adjustable, seconds: float) -> None:
    """Set the clock back."""
    # Trio's clock adds its `offset` to the system's time, but is a frozen class.
    object.__setattr__(clock, "offset", clock.offset - seconds)


async def leave_out_pauses() -> None:
    """Exclude pauses from the clock until cancelled; does nothing with a test's clock."""
    clock = trio.lowlevel.current_clock()
    if not isinstance(getattr(clock, "offset", None), float):
        await trio.sleep_forever()
    watch = PauseWatch(cast("Adjustable", clock))
    trio.lowlevel.add_instrument(watch)
    try:
        async for _ in periodic(TICK_S):
            pass
    finally:
        with suppress(KeyError):  # Trio removes an instrument that has raised
            trio.lowlevel.remove_instrument(watch)
