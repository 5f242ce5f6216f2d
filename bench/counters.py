"""CPU time and instructions of a contestant: its process with all threads, and its children.

CPU time is the kernel's own account in nanoseconds, not in ticks of /proc/PID/stat: a turn in which
a contestant is busy for 100 ms is told from one of 101 ms. It still moves with caches, clock speed
and neighbours. Instructions do not, but virtual machines often hide that counter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PERF_TYPE_HARDWARE = 0
PERF_COUNT_HW_INSTRUCTIONS = 1
INSTRUCTIONS = (PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS)
"""`type` and `config` of perf_event_open(2)."""

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0: every kernel takes it
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6
_CLOEXEC = 8


@dataclass(frozen=True)
class Cost:
    """The cost of a turn to its contestant.

    Attributes:
        cpu_us: CPU time, user and system, in microseconds.
        instructions: None where the machine does not count them.
    """

    cpu_us: float
    instructions: float | None = None


class Meter:
    """Measures the cost of a process tree for as long as the context lasts.

    A child that ends within the context takes its share of the CPU time with it; contestants start
    none under load.
    """

    def __init__(self, pid: int | None, event: tuple[int, int] = INSTRUCTIONS) -> None:
        self._pid = pid
        self._event = event
        self._before_us: Mapping[int, float] = {}
        self._counters: list[int] = []
        self.cost = Cost(0.0)

    def __enter__(self) -> Self:
        if self._pid is None:
            return self
        self._counters = counters(list(tree(self._pid)), self._event)
        self._before_us = cpu_by_process(self._pid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pid is None:
            return
        after_us = cpu_by_process(self._pid)
        cpu_us = sum(used - self._before_us.get(pid, 0.0) for pid, used in after_us.items())
        counted = [struct.unpack("q", os.read(each, 8))[0] for each in self._counters]
        close(self._counters)
        self.cost = Cost(cpu_us, float(sum(counted)) if counted else None)


def cpu_by_process(pid: int) -> dict[int, float]:
    """CPU time of a process and of its children so far, in microseconds."""
    found = {}
    for each in tree(pid):
        with suppress(OSError):
            found[each] = cpu_us(each)
    return found


def cpu_us(pid: int) -> float:
    """CPU time that all threads of a process have used, in microseconds; raises OSError."""
    # clock_getcpuclockid(3): the id of a process's clock is its inverted pid, and CPUCLOCK_SCHED.
    return time.clock_gettime_ns((~pid << 3) | 2) / 1000


def tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for task in threads(pid):
        # Without CONFIG_PROC_CHILDREN there is no such file.
        with suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from tree(int(child))


def threads(pid: int) -> list[int]:
    """The ids of a process's threads; none if it has ended."""
    with suppress(OSError):
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return []


def counters(pids: Sequence[int], event: tuple[int, int]) -> list[int]:
    """Open a counter for each thread of some processes; none if one cannot be counted.

    A counter also counts the threads that its own thread starts later.
    """
    opened: list[int] = []
    try:
        for pid in pids:
            for thread in threads(pid):
                opened.append(counter(thread, event))  # noqa: PERF401 - closed below on an error
    except OSError:
        close(opened)
        return []
    return opened


def close(descriptors: Sequence[int]) -> None:
    for each in descriptors:
        os.close(each)


def counter(thread: int, event: tuple[int, int]) -> int:
    """Open a counter of one thread, of its user space alone if need be; raises OSError."""
    try:
        return _perf_event_open(thread, event, _INHERIT | _EXCLUDE_HV)
    except PermissionError:  # perf_event_paranoid is 2 or more, and this is not root
        return _perf_event_open(thread, event, _INHERIT | _EXCLUDE_HV | _EXCLUDE_KERNEL)


def _perf_event_open(thread: int, event: tuple[int, int], flags: int) -> int:
    number = _PERF_EVENT_OPEN.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "no system call number for this machine")
    # type, size, config, sample_period, sample_type, read_format, flags, and the rest is zero
    attr = struct.pack("IIQQQQQ", event[0], _ATTR_BYTES, event[1], 0, 0, 0, flags)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    descriptor = int(libc.syscall(number, buffer, thread, -1, -1, _CLOEXEC))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def why_not_counted() -> str | None:
    """The reason why instructions are not counted on this machine; None if they are."""
    try:
        os.close(counter(os.getpid(), INSTRUCTIONS))
    except OSError as error:
        return f"perf_event_open: {error.strerror}"
    return None
