"""What systemd does for services with a watchdog: sd_notify(3), `WatchdogSec=` in systemd.service(5)."""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

SO_PASSCRED = getattr(socket, "SO_PASSCRED", 16)
CREDENTIALS = struct.Struct("3i")
"""Process, user and group: unix(7)."""

KILL_S = 10.0
"""`TimeoutAbortSec=` of docs/llmux.service."""


class Supervisor:
    """Ends processes that are ready and then send no `WATCHDOG=1`. Starting them is the test's.

    Args:
        path: Where its socket will be.
        within_s: `WatchdogSec=`.

    Attributes:
        ended: The processes that it has ended, in order.
    """

    def __init__(self, path: Path, within_s: float) -> None:
        self.ended: list[int] = []
        self._path = path
        self._within_s = within_s
        self._due: dict[int, float] = {}  # when the next beat is due at the latest, by process
        self._handles: dict[int, int] = {}  # which, unlike numbers, are never those of others

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen for ever."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)
            await listener.bind(str(self._path))
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    while True:
                        await self._hear(listener)
                        for pid in [pid for pid, at in self._due.items() if at <= now()]:
                            del self._due[pid]
                            self.ended.append(pid)
                            nursery.start_soon(_abort, self._handles[pid])
            finally:
                for handle in self._handles.values():
                    os.close(handle)

    async def _hear(self, listener: trio.socket.SocketType) -> None:
        """Note one message, unless a beat is overdue before."""
        with trio.move_on_at(min(self._due.values(), default=math.inf)):
            data, credentials, _, _ = await listener.recvmsg(4096, 256)
            pid, _, _ = CREDENTIALS.unpack(credentials[0][2])
            self._note(pid, data.decode().splitlines())

    def _note(self, pid: int, told: list[str]) -> None:
        if "STOPPING=1" in told:
            self._due.pop(pid, None)
        elif "READY=1" in told or ("WATCHDOG=1" in told and pid in self._due):
            self._due[pid] = now() + self._within_s
            if pid not in self._handles:
                self._handles[pid] = os.pidfd_open(pid)


def now() -> float:
    return trio.current_time()


async def _abort(handle: int) -> None:
    """Send SIGABRT, as systemd with a SIGCONT after it; then SIGKILL, if the process is still there."""
    try:
        signal.pidfd_send_signal(handle, signal.SIGABRT)
        signal.pidfd_send_signal(handle, signal.SIGCONT)
        await trio.sleep(KILL_S)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass


@asynccontextmanager
async def supervising(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, within_s: float
) -> AsyncIterator[Supervisor]:
    """Supervise all llmux that are started within the context."""
    supervisor = Supervisor(folder / "notify", within_s)
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(within_s * 1_000_000)))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()
