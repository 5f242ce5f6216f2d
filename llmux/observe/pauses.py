"""Take the time in which this process did not run out of Trio's clock.

A process that is stopped (SIGSTOP, a frozen container, a paused virtual machine) finds on its
return that all its deadlines have passed at once: of hooks, requests, looks and backoffs, though
nothing had its time. Linux's CLOCK_MONOTONIC does not count a suspended machine, but counts all of
these. So the clock is put back before Trio compares a deadline with it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol, cast

import trio
from trio_util import periodic

from llmux.observe.logs import get_logger

PAUSE_S = 1.0
"""Lateness from which a wake-up means a pause; a busy machine delays it less."""

TICK_S = 1.0
"""Longest wait of the loop, and so the longest part of a pause that can be missed."""

log = get_logger(__name__)


class Adjustable(Protocol):
    """A clock that can be put back, as Trio's own can."""

    offset: float

    def current_time(self) -> float: ...


class LeftOut:
    """The time taken out of the clock so far.

    Attributes:
        seconds: Total for this process.
    """

    def __init__(self) -> None:
        self.seconds = 0.0


LEFT_OUT = LeftOut()


class PauseWatch(trio.abc.Instrument):
    """Trio calls it around each wait for I/O, before it looks at deadlines."""

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
    """Turn the clock back. Trio's own is a frozen class that adds its offset to the time."""
    object.__setattr__(clock, "offset", clock.offset - seconds)


async def leave_out_pauses() -> None:
    """Take pauses out of the clock until cancelled; only if it is the system's."""
    clock = trio.lowlevel.current_clock()
    if not isinstance(getattr(clock, "offset", None), float):
        await trio.sleep_forever()
    watch = PauseWatch(cast("Adjustable", clock))
    trio.lowlevel.add_instrument(watch)
    try:
        async for _ in periodic(TICK_S):
            pass
    finally:
        with suppress(KeyError):  # Trio drops one that has raised
            trio.lowlevel.remove_instrument(watch)
