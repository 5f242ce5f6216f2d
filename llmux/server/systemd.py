"""What systemd is told, if it started llmux: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import trio

from llmux.observe.logs import get_logger
from llmux.observe.pauses import LEFT_OUT

BEATS = 3
"""Beats in the time after which systemd ends a service: one may be late, and one be lost."""

STEP_S = 1.0
"""Longest delay of a beat by a pause of this process, which Trio's clock leaves out."""

Check = Callable[[], list[str]]
"""Returns what has stood still since its last call, for people; nothing: all goes on."""

log = get_logger(__name__)


def notify_systemd(state: str, *, may_be_lost: bool = False) -> None:
    """Notify systemd, if it started llmux with `Type=notify`.

    Args:
        state: Lines of `NAME=VALUE`.
        may_be_lost: Rather drop it than wait while systemd does not read.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    flags = socket.MSG_DONTWAIT if may_be_lost else 0
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        # A name that begins with @ is in the abstract namespace.
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode(), flags)


@contextmanager
def reloading() -> Iterator[None]:
    """Tell systemd of a reload, from its begin to its end."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify_systemd(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
    try:
        yield
    finally:
        notify_systemd("READY=1")


def beat_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two beats, a third of `WatchdogSec=`; None: none are expected.

    Args:
        environ: The environment.
        pid: This process; the variables may be meant for one that started it.
    """
    within_us = environ.get("WATCHDOG_USEC", "")
    if not within_us.isdecimal() or int(within_us) == 0 or not environ.get("NOTIFY_SOCKET"):
        return None
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(within_us) / 1e6 / BEATS


def _systems_time() -> float:
    """Return the time as systemd has it, in seconds: with the pauses of this process."""
    return trio.current_time() + LEFT_OUT.seconds


class Watchdog:
    """Sends `WATCHDOG=1` as long as all goes on; else systemd ends llmux, and starts it again.

    That it is sent at all says that the event loop runs.

    Args:
        beat_s: Seconds between two beats; None for none at all.
        notify: Tells systemd.
    """

    def __init__(self, beat_s: float | None, notify: Callable[[str], object] | None = None) -> None:
        self._beat_s = beat_s
        self._notify = notify or (lambda state: notify_systemd(state, may_be_lost=True))
        self._checks: list[Check] = []
        self._withheld: list[str] = []

    def watch(self, check: Check) -> None:
        """Look at this, too, before each beat."""
        self._checks.append(check)

    async def run(self) -> None:
        """Send beats until cancelled; returns at once if none are expected."""
        while self._beat_s is not None:
            self._beat()
            due_at = _systems_time() + self._beat_s
            while (left_s := due_at - _systems_time()) > 0:  # noqa: ASYNC110 - no event at a pause
                await trio.sleep(min(left_s, STEP_S))

    def _beat(self) -> None:
        withheld = [what for check in self._checks for what in check()]
        if withheld and withheld != self._withheld:
            hint = "systemd ends llmux unless this goes on, and starts it again"
            log.error("watchdog_withheld", stuck=withheld, hint=hint)
        self._withheld = withheld
        if not withheld:
            self._notify("WATCHDOG=1")
