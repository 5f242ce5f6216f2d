"""Memory of the GPUs, as nvidia-smi reports it, and of the machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec

from bench.processes import CannotRun

LONGEST_S = 30.0
"""Time limit of nvidia-smi; without persistence mode, the driver takes seconds to load."""

QUERY = ["nvidia-smi", "--format=csv,noheader,nounits"]


class Gpu(msgspec.Struct, frozen=True):
    """One GPU.

    Attributes:
        total_mib: Its memory in MiB.
    """

    name: str
    driver: str
    total_mib: int


class Memory(msgspec.Struct, frozen=True):
    """Memory in use at one moment.

    Attributes:
        gpu_mib: Of all GPUs, in MiB; None without one.
        available_mib: What the machine could still give to programs (MemAvailable), in MiB.
    """

    gpu_mib: int | None
    available_mib: int


def gpus() -> list[Gpu]:
    """Return the machine's GPUs. Raises CannotRun."""
    found = []
    for line in _query("--query-gpu=name,driver_version,memory.total"):
        name, driver, total = (cell.strip() for cell in line.rsplit(",", 2))
        found.append(Gpu(name, driver, _mib(total)))
    if not found:
        raise CannotRun("nvidia-smi lists no GPU")
    return found


def used_mib() -> int:
    """Return the memory in use on all GPUs, in MiB. Raises CannotRun."""
    return sum(_mib(line) for line in _query("--query-gpu=memory.used"))


def memory(has_gpu: bool) -> Memory:
    """Look at both. Raises CannotRun."""
    return Memory(used_mib() if has_gpu else None, available_mib())


def available_mib() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) // 1024


def _query(what: str) -> list[str]:
    try:
        done = subprocess.run(
            [*QUERY, what], capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
    except FileNotFoundError:
        raise CannotRun("nvidia-smi is not on the PATH; is there an NVIDIA driver?") from None
    except subprocess.TimeoutExpired:
        raise CannotRun(f"nvidia-smi gave no answer in {LONGEST_S:g} s") from None
    if done.returncode:
        raise CannotRun(f"nvidia-smi failed: {(done.stderr or done.stdout).strip()[:300]}")
    return [line for line in done.stdout.splitlines() if line.strip()]


def _mib(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # such as [N/A], of a GPU that shares the machine's memory
        raise CannotRun(f"nvidia-smi gives no amount of memory: {text.strip()!r}") from None
