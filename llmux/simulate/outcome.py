"""What a simulation has seen, in figures."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmux.simulate.backends import Job


@dataclass
class Outcome:
    """The requests that were answered, in the order of their ends, and where the time went.

    Attributes:
        models: For each request, the index of its model in `names`.
        arrived_at: Seconds of simulated time.
        admitted_at: When it was let in.
        ended_at: When its last byte was there.
        work_s: How long it would have taken alone.
        frozen_s: For how long it was frozen with its model.
        switches: Successful switches.
        failed: Requests that a failed wake has refused.
        seconds: Where the time went: serving, draining, switching, idle.
        spans: Of each stay: its model's index, from when to when it was open.
        drains: Of each drain: its model's index, from when to when.
        longest_drain_s: From when it was decided: those who were let in first belong to it.
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
        """One more request has ended."""
        self.models.append(index)
        self.arrived_at.append(job.arrived_at)
        self.admitted_at.append(job.admitted_at)
        self.ended_at.append(now)
        self.work_s.append(job.work_s)
        self.frozen_s.append(job.frozen_s)

    @property
    def count(self) -> int:
        """How many requests were answered."""
        return len(self.models)

    def waits(self) -> list[float]:
        """All that each request waited, in line and inside of its backend, in seconds."""
        return [
            max(0.0, end - start - work)
            for start, end, work in zip(self.arrived_at, self.ended_at, self.work_s, strict=True)
        ]

    def line_waits(self) -> list[float]:
        """What each request waited in llmux's line, in seconds."""
        return [
            admitted - arrived
            for arrived, admitted in zip(self.arrived_at, self.admitted_at, strict=True)
        ]

    def held_waits(self) -> list[float]:
        """What llmux made each request wait: in its line, and frozen with its model; in seconds."""
        waits = zip(self.line_waits(), self.frozen_s, strict=True)
        return [in_line + frozen for in_line, frozen in waits]

    def responses(self) -> list[float]:
        """From each request's arrival to its end, in seconds."""
        return [end - start for start, end in zip(self.arrived_at, self.ended_at, strict=True)]

    def fairness(self) -> float:
        """Jain's index of the models' mean waits: 1 if all wait alike, 1/n if one bears all."""
        totals: dict[int, list[float]] = {}
        for index, wait in zip(self.models, self.waits(), strict=True):
            totals.setdefault(index, []).append(wait)
        means = [mean(values) for values in totals.values()]
        squares = sum(value * value for value in means)
        return sum(means) ** 2 / (len(means) * squares) if squares else 1.0


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; not a number if there is nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are not above (nearest rank); not a number if none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
