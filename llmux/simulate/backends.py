"""Simulated model servers, which decide when each request ends."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Job:
    """One simulated request.

    Attributes:
        model: The requested model.
        arrived_at: Arrival, in seconds of simulated time.
        work_s: Service time on an otherwise idle server, in seconds.
        admitted_at: When it was admitted.
        in_flight: Number of requests in flight at that time, itself included.
        frozen_s: Seconds for which it was frozen with its model; valid once it has ended.
        weight: Factor by which its age counts in line.
        lost_s: Seconds that it has spent before on hosts that died.
    """

    __slots__ = (
        "admitted_at", "arrived_at", "frozen_s", "in_flight", "lost_s", "model", "weight", "work_s",
    )  # fmt: skip

    def __init__(self, model: str, arrived_at: float, work_s: float, lost_s: float = 0.0) -> None:
        self.model = model
        self.arrived_at = arrived_at
        self.work_s = work_s
        self.admitted_at = math.nan
        self.in_flight = 0
        self.frozen_s = 0.0
        self.weight = 1.0
        self.lost_s = lost_s


class Server(Protocol):
    """A simulated model server.

    Attributes:
        done_at: When the next job will end if none is added; infinity if there is none.
    """

    done_at: float

    def add(self, job: Job, now: float) -> None:
        """Start a job, or queue it."""
        ...

    def pop(self, now: float) -> Job:
        """Remove and return the job that ends at `done_at`, which is now."""
        ...

    def freeze(self, now: float) -> None:
        """Stop all progress."""
        ...

    def thaw(self, now: float) -> None:
        """Resume after `freeze`."""
        ...


class Slots:
    """A server with `slots` slots: so many jobs run at full speed, and the others wait in order.

    llama.cpp's server with `--parallel` works like this.
    """

    def __init__(self, slots: int) -> None:
        self.done_at = math.inf
        self._free = slots
        self._line: deque[Job] = deque()
        self._running: list[tuple[float, int, Job]] = []
        self._count = 0  # breaks ties in the heap, so that it never compares jobs
        self._frozen_at = 0.0

    def add(self, job: Job, now: float) -> None:
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
        job = heapq.heappop(self._running)[2]
        if self._line:
            self._start(self._line.popleft(), now)
        else:
            self._free += 1
            self.done_at = self._running[0][0] if self._running else math.inf
        return job

    def freeze(self, now: float) -> None:
        self._frozen_at = now
        self.done_at = math.inf

    def thaw(self, now: float) -> None:
        lost_s = now - self._frozen_at
        # All shift by the same amount, so the heap stays in order.
        self._running = [(at + lost_s, count, job) for at, count, job in self._running]
        self.done_at = self._running[0][0] if self._running else math.inf


class Sharing:
    """A server that runs all jobs at once, more slowly the more there are (processor sharing).

    Batching engines work like this (vLLM, SGLang). All running jobs progress at the same rate, so
    one counter of progress since the start serves for all: a job ends when the counter reaches its
    value at admission plus the job's work.

    Args:
        speed: Speed of each job by the number of jobs; 1 for a job that runs alone.
    """

    def __init__(self, speed: Callable[[int], float]) -> None:
        self.done_at = math.inf
        self._speed = speed
        self._jobs: list[tuple[float, int, Job]] = []
        self._count = 0
        self._progress_s = 0.0
        self._at = 0.0
        self._is_frozen = False

    def advance(self, now: float) -> None:
        """Note the progress up to now, at the present speed."""
        if self._jobs and not self._is_frozen:
            self._progress_s += (now - self._at) * self._speed(len(self._jobs))
        self._at = now

    def plan(self, now: float) -> None:
        """Set `done_at`, at the present speed."""
        if not self._jobs or self._is_frozen:
            self.done_at = math.inf
            return
        left_s = max(0.0, self._jobs[0][0] - self._progress_s)
        self.done_at = now + left_s / self._speed(len(self._jobs))

    def add(self, job: Job, now: float) -> None:
        self.advance(now)
        self._count += 1
        heapq.heappush(self._jobs, (self._progress_s + job.work_s, self._count, job))
        self.plan(now)

    def pop(self, now: float) -> Job:
        self.advance(now)
        job = heapq.heappop(self._jobs)[2]
        self.plan(now)
        return job

    def freeze(self, now: float) -> None:
        self.advance(now)
        self._is_frozen = True
        self.done_at = math.inf

    def thaw(self, now: float) -> None:
        self._at = now
        self._is_frozen = False
        self.plan(now)


class Crowd:
    """Servers of models on shared resources, whose jobs slow each other.

    Args:
        speed: Speed of each job by the number of its own model's jobs, and of those of the other
            models that share a resource with it; 1 for a job that runs alone.
    """

    def __init__(self, speed: Callable[[int, int], float]) -> None:
        self._speed = speed
        self._members: list[tuple[frozenset[str], _Crowded]] = []

    def server(self, resources: frozenset[str]) -> Server:
        """Create the server of a model that uses these resources."""
        server = _Crowded(self._speed)
        for others, other in self._members:
            if not resources.isdisjoint(others):
                server.neighbours.append(other)
                other.neighbours.append(server)
        self._members.append((resources, server))
        return server


class _Crowded(Sharing):
    """A server whose speed depends on its neighbours, which are brought up to date at each change.

    Attributes:
        neighbours: The servers that share a resource with it.
    """

    def __init__(self, speed: Callable[[int, int], float]) -> None:
        super().__init__(lambda own: speed(own, sum(each.at_work for each in self.neighbours)))
        self.neighbours: list[_Crowded] = []

    @property
    def at_work(self) -> int:
        """Number of jobs that make progress."""
        return 0 if self._is_frozen else len(self._jobs)

    def _before(self, now: float) -> None:
        for each in self.neighbours:
            each.advance(now)

    def _after(self, now: float) -> None:
        for each in self.neighbours:
            each.plan(now)

    def add(self, job: Job, now: float) -> None:
        self._before(now)
        super().add(job, now)
        self._after(now)

    def pop(self, now: float) -> Job:
        self._before(now)
        job = super().pop(now)
        self._after(now)
        return job

    def freeze(self, now: float) -> None:
        self._before(now)
        super().freeze(now)
        self._after(now)

    def thaw(self, now: float) -> None:
        self._before(now)
        super().thaw(now)
        self._after(now)
