"""End a process group: SIGTERM, then SIGKILL, and wait until no process of it runs."""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress
from pathlib import Path

import trio

KILL_AFTER_S = 5.0
"""Time between SIGTERM and SIGKILL, and at most as long again for the group to be gone."""

# The kernel gives no notice when a group is gone. 10 ms is short beside any model's sleep.
POLL_S = 0.01


class GroupEnd:
    """The end of a process group that is out of time or cancelled.

    It has two steps, for Trio waits for the shell alone: `begin` while the shell lives, `finish`
    for its descendants. Together they take at most twice `kill_after_s`.

    Attributes:
        group: Number of the group; None until its end was begun.
        exit_code: The shell's exit code if it had ended before `begin`, else None.
    """

    def __init__(self, kill_after_s: float) -> None:
        self.group: int | None = None
        self.exit_code: int | None = None
        self.kill_after_s = kill_after_s
        self._kill_at = math.inf

    async def begin(self, shell: trio.Process) -> None:
        """Signal the group; a `deliver_cancel` for `trio.run_process`.

        Trio cancels it once the shell has exited, so SIGKILL for a child that ignores SIGTERM is
        up to `finish`.
        """
        if shell.returncode is not None:  # it was in time, but llmux did not run
            self.exit_code = shell.returncode
            return
        self.group = shell.pid
        self._kill_at = trio.current_time() + self.kill_after_s
        _signal_group(shell.pid, signal.SIGTERM)
        await trio.sleep_until(self._kill_at)
        _signal_group(shell.pid, signal.SIGKILL)

    async def finish(self) -> bool:
        """Wait until no process of the group runs; return False if one could not be ended."""
        if self.group is None:
            return True
        with trio.move_on_at(self._kill_at):
            await _wait_group_gone(self.group)
        # Even if it looks gone: a process of which only the main thread ended looks like a zombie.
        _signal_group(self.group, signal.SIGKILL)
        with trio.move_on_at(self._kill_at + self.kill_after_s) as patience:
            await _wait_group_gone(self.group)
        return not patience.cancelled_caught


def _signal_group(group: int, number: signal.Signals) -> None:
    # Gone already, or now other users' processes, which only they can end.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


async def _wait_group_gone(group: int) -> None:
    while not _is_group_gone(group):  # noqa: ASYNC110 - nothing tells when a group is gone
        await trio.sleep(POLL_S)


def _is_group_gone(group: int) -> bool:
    """Return whether no process of the group runs; its leader must have been reaped.

    The kernel does not reuse the number of a group while a process is in it, even without its
    leader.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return _has_only_zombies(group)


def _has_only_zombies(group: int) -> bool:
    """Return whether all processes of the group wait to be reaped; False where there is no /proc.

    In a container they may wait for ever: few programs expect to be its process 1, llmux included.
    """
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except FileNotFoundError:
        return False
    return all(_is_zombie(pid) for pid in pids if _group_of(pid) == group)


def _group_of(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # proc(5): "1 (name) S ..."
        return stat.rpartition(") ")[2].startswith(("Z", "X"))
    return True  # reaped meanwhile
