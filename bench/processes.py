"""Starts the bench's processes on one core each, and always ends them; their memory and ports."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

START_S = 30.0
"""Longest wait until a server listens."""

END_S = 10.0
"""Time between SIGTERM and SIGKILL."""

SPARE_DESCRIPTORS = 300
"""Descriptors for a proxy's own files, besides two for each stream."""

CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE = CORES[0]
LOAD_CORE = CORES[1 % len(CORES)]
BACKEND_CORE = CORES[2] if len(CORES) > 2 else LOAD_CORE


class CannotRun(Exception):
    """A program that the bench needs is missing or did not start."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit for this process and its children; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def most_streams(descriptors: int) -> int:
    """Number of streams that a proxy with this descriptor limit can carry."""
    return (descriptors - SPARE_DESCRIPTORS) // 2


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: through all `finally` blocks."""

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def free_port() -> int:
    """Pick a port for a server that cannot pick one itself; see `free_ports`."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Pick ports outside of the range that the system gives to clients, at random."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(max(1025, lowest - 20_000), lowest), k=500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free port found")


@contextmanager
def running(
    command: Sequence[str],
    *,
    core: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command on one core within the context, with its output in a file."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            on_core(core, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | (environment or {}),
            cwd=folder,
        ) as process,
    ):
        try:
            yield process
        finally:
            end(process)


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """Pin a command to a core; `taskset` execs it, so that the pid is the command's own."""
    return ["taskset", "-c", str(core), *command]


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process that this one started, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()


def wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the process listens; raises CannotRun."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise CannotRun(f"{log.stem} does not listen: {log.read_text(errors='replace')[-500:]}")


def wait_logged(process: subprocess.Popen[bytes], pattern: str, log: Path) -> str:
    """Wait until the process prints the pattern; returns its first group. Raises CannotRun."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.02)
    raise CannotRun(f"{log.stem} does not start: {log.read_text(errors='replace')[-500:]}")


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None, "a process that has ended"
    return int(found[1]) * 1024
