"""Orphans: processes of a hook that a killed llmux has left running.

A mark in their environment (`LLMUX_RUN`) identifies them and everything that they started. Without
/proc (macOS) none is found.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import trio

from llmux.observe.logs import get_logger

MARK_VARIABLE = "LLMUX_RUN"

KILL_AFTER_S = 5.0
"""Time between SIGTERM and SIGKILL, and at most as long again to be gone; as for all hooks."""

POLL_S = 0.05

log = get_logger(__name__)


async def end_marked(mark: str, *, kill_after_s: float = KILL_AFTER_S) -> None:
    """End all processes with the mark: SIGTERM, then SIGKILL; returns when they are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = marked(mark)
        if not found:
            return
        log.warning("hook_left_behind", pids=found, signal=number.name)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        with trio.move_on_after(kill_after_s):
            while marked(mark):  # noqa: ASYNC110 - nothing tells when foreign processes are gone
                await trio.sleep(POLL_S)
    if found := marked(mark):
        log.error("hook_survived", pids=found)


def marked(mark: str) -> list[int]:
    """Return the ids of running processes that have the mark."""
    return processes_with({MARK_VARIABLE: mark})


def processes_with(variables: Mapping[str, str]) -> list[int]:
    """Return the ids of running processes that have these variables in their environment."""
    wanted = {f"{name}={text}".encode() for name, text in variables.items()}
    pids = []
    with suppress(FileNotFoundError):
        for entry in Path("/proc").iterdir():
            # A zombie's environment is empty, and another user's not readable.
            with suppress(OSError):
                if not entry.name.isdigit():
                    continue
                if wanted.issubset((entry / "environ").read_bytes().split(b"\0")):
                    pids.append(int(entry.name))
    return [pid for pid in pids if pid != os.getpid()]
