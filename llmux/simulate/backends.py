"""Simulated model servers: when each request that they were given is done."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Job:
    """One simulated request.

    Attributes:
        model: The model that it names.
        arrived_at: When it came, in seconds of simulated time.
        work_s: How long it takes on a server that does nothing else.
        admitted_at: When it was let in.
        in_flight: How many were in flight then, itself included.
        frozen_s: For how long it was frozen with its model, once it is done.
        weight: The factor by which its age counts in line.
    """

    __slots__ = ("admitted_at", "arrived_at", "frozen_s", "in_flight", "model", "weight", "work_s")

    def __init__(self, model: str, arrived_at: float, work_s: float) -> None:
        self.model = model
        self.arrived_at = arrived_at
        self.work_s = work_s
        self.admitted_at = math.nan
        self.in_flight = 0
        self.frozen_s = 0.0
        self.weight = 1.0


class Server(Protocol):
    """What a simulated model server does.

    Attributes:
        done_at: When the next job will be done if none is added; infinity if there is none.
    """

    done_at: float

    def add(self, job: Job, now: float) -> None:
        """Begin with one more job."""
        ...

    def pop(self, now: float) -> Job:
        """Take out the job that is done at `done_at`, which is now."""
        ...

    def freeze(self, now: float) -> None:
        """Make no progress from now on."""
        ...

    def thaw(self, now: float) -> None:
        """Go on where it was frozen."""
        ...


class Slots:
    """A server that works on `slots` jobs at a time, at full speed each; the others wait in order.

    As llama.cpp's server with `--parallel`.
    """

    def __init__(self, slots: int) -> None:
        self.done_at = math.inf
        self._free = slots
        self._line: deque[Job] = deque()
        self._running: list[tuple[float, int, Job]] = []
        self._count = 0  # keeps the heap from comparing jobs
        self._frozen_at = 0.0

    def add(self, job: Job, now: float) -> None:
        """Begin with one more job."""
        if self._free:
            self._free -= 1
            self._start(job, now)
        else:
            self._line.append(job)

    def _start(self, job: Job, now: float) -> None:
        self._count += 1
        heapq.heappush(self._running, (now + job.work_s, self._count, job))
        self.done_at = self._running[0][0]

    def pop(self, now: float) -> Job:
        """Take out the job that is done at `done_at`, which is now."""
        job = heapq.heappop(self._running)[2]
        if self._line:
            self._start(self._line.popleft(), now)
        else:
            self._free += 1
            self.done_at = self._running[0][0] if self._running else math.inf
        return job

    def freeze(self, now: float) -> None:
        """Make no progress from now on."""
        self._frozen_at = now
        self.done_at = math.inf

    def thaw(self, now: float) -> None:
        """Go on where it was frozen."""
        lost_s = now - self._frozen_at
        # The same shift for all keeps the order of the heap.
        self._running = [(at + lost_s, count, job) for at, count, job in self._running]
        self.done_at = self._running[0][0] if self._running else math.inf


class Sharing:
    """A server that works on all jobs at once, each the slower the more there are.

    As a batching engine does (vLLM, SGLang). Progress is kept as the work that each job would have
    got done since the server began: then jobs end in the order of where they will stand.

    Args:
        speed: Of each job, by how many there are; 1 is the speed of one that is alone.
    """

    def __init__(self, speed: Callable[[int], float]) -> None:
        self.done_at = math.inf
        self._speed = speed
        self._jobs: list[tuple[float, int, Job]] = []
        self._count = 0
        self._progress_s = 0.0
        self._at = 0.0
        self._is_frozen = False

    def _advance(self, now: float) -> None:
        if self._jobs and not self._is_frozen:
            self._progress_s += (now - self._at) * self._speed(len(self._jobs))
        self._at = now

    def _plan(self, now: float) -> None:
        if not self._jobs or self._is_frozen:
            self.done_at = math.inf
            return
        left_s = max(0.0, self._jobs[0][0] - self._progress_s)
        self.done_at = now + left_s / self._speed(len(self._jobs))

    def add(self, job: Job, now: float) -> None:
        """Begin with one more job."""
        self._advance(now)
        self._count += 1
        heapq.heappush(self._jobs, (self._progress_s + job.work_s, self._count, job))
        self._plan(now)

    def pop(self, now: float) -> Job:
        """Take out the job that is done at `done_at`, which is now."""
        self._advance(now)
        job = heapq.heappop(self._jobs)[2]
        self._plan(now)
        return job

    def freeze(self, now: float) -> None:
        """Make no progress from now on."""
        self._advance(now)
        self._is_frozen = True
        self.done_at = math.inf

    def thaw(self, now: float) -> None:
        """Go on where it was frozen."""
        self._at = now
        self._is_frozen = False
        self._plan(now)
