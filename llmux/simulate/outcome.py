"""The results of a simulation."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmux.simulate.backends import Job


@dataclass
class Outcome:
    """The answered requests in the order in which they ended, and how the time was spent.

    Times are seconds of simulated time. The arrays have one item per request.

    Attributes:
        names: The models.
        models: The index of the request's model in `names`.
        arrived_at: Its arrival; at the first host, if it was sent to others after that.
        admitted_at: Its admission.
        ended_at: Its end.
        work_s: Its service time on an otherwise idle server.
        frozen_s: Seconds for which it was frozen with its model.
        switches: Number of successful switches.
        failed: Number of requests refused because of a failed wake.
        seconds: Seconds spent serving, draining, switching and idle.
        spans: For each stay, the model's index, its start and its end.
        drains: For each drain, the model's index, its start and its end.
        longest_drain_s: Longest drain, including the time to admit the model's own line first.
    """

    names: Sequence[str]
    models: array[int] = field(default_factory=lambda: array("i"))
    arrived_at: array[float] = field(default_factory=lambda: array("d"))
    admitted_at: array[float] = field(default_factory=lambda: array("d"))
    ended_at: array[float] = field(default_factory=lambda: array("d"))
    work_s: array[float] = field(default_factory=lambda: array("d"))
    frozen_s: array[float] = field(default_factory=lambda: array("d"))
    switches: int = 0
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[int, float, float]] = field(default_factory=list)
    drains: list[tuple[int, float, float]] = field(default_factory=list)
    longest_drain_s: float = 0.0

    def add(self, index: int, job: Job, now: float) -> None:
        """Add a request that ended now, of the model with this index."""
        self.models.append(index)
        self.arrived_at.append(job.arrived_at - job.lost_s)
        self.admitted_at.append(job.admitted_at)
        self.ended_at.append(now)
        self.work_s.append(job.work_s)
        self.frozen_s.append(job.frozen_s)

    @property
    def count(self) -> int:
        """Number of answered requests."""
        return len(self.models)

    def waits(self) -> list[float]:
        """Return each request's total wait, in line and inside its backend, in seconds."""
        return [
            max(0.0, end - start - work)
            for start, end, work in zip(self.arrived_at, self.ended_at, self.work_s, strict=True)
        ]

    def line_waits(self) -> list[float]:
        """Return each request's wait in llmux's line, in seconds."""
        return [
            admitted - arrived
            for arrived, admitted in zip(self.arrived_at, self.admitted_at, strict=True)
        ]

    def held_waits(self) -> list[float]:
        """Return each request's wait in llmux's line and frozen with its model, in seconds."""
        waits = zip(self.line_waits(), self.frozen_s, strict=True)
        return [in_line + frozen for in_line, frozen in waits]

    def responses(self) -> list[float]:
        """Return each request's response time, from arrival to end, in seconds."""
        return [end - start for start, end in zip(self.arrived_at, self.ended_at, strict=True)]

    def fairness(self) -> float:
        """Return Jain's index of the models' mean waits: 1 if equal, 1/n if only one waits."""
        totals: dict[int, list[float]] = {}
        for index, wait in zip(self.models, self.waits(), strict=True):
            totals.setdefault(index, []).append(wait)
        means = [mean(values) for values in totals.values()]
        squares = sum(value * value for value in means)
        return sum(means) ** 2 / (len(means) * squares) if squares else 1.0


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile for a share from 0 to 1, by nearest rank; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
