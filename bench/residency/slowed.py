"""Models at work on one GPU slow each other: `python -m bench.residency.slowed`.

A GPU works on up to `SLOTS` requests of one model as fast as on one. With `--by models`, the models
at work take turns on it, so that two are half as fast each. With `--by requests`, it serves `SLOTS`
requests at full speed, whichever models they are for, and more of them share it. Figures are ratios
of `adaptive` to the same with one model awake at a time, with and without a cap on how many models
are at work at once (`busy`).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import geometric_mean

from bench.policy_cases.setup import SLOTS, SWITCHES_S
from bench.residency.cases import BUDGETS, PATTERNS, POPULARITIES, Generated
from bench.table import render
from llmux.config import PolicyConfig
from llmux.policy import AdaptivePolicy
from llmux.simulate import Setup, Sharing, simulate
from llmux.simulate.backends import Crowd, Job, Server
from llmux.simulate.coresident import simulate_coresident
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import Outcome, mean, percentile

CAPS = (math.inf, 2, 1)
ALONE = 0.0
"""In place of a cap: one model awake at a time."""

GPU = frozenset({"gpu"})


class TakingTurns:
    """A GPU on which the models at work take turns."""

    def __init__(self) -> None:
        self.members: list[TakesTurns] = []

    def server(self) -> Server:
        """Create the server of one more model."""
        self.members.append(TakesTurns(self))
        return self.members[-1]

    def speed(self, count: int) -> float:
        return _speed(count, 0) / max(1, sum(each.count > 0 for each in self.members))


class TakesTurns(Sharing):
    """The server of one model; see `TakingTurns`.

    Attributes:
        count: Number of requests that it works on.
    """

    def __init__(self, gpu: TakingTurns) -> None:
        super().__init__(gpu.speed)
        self._gpu = gpu
        self.count = 0

    def add(self, job: Job, now: float) -> None:
        self._all_advance(now)
        self.count += 1
        super().add(job, now)
        self._all_plan(now)

    def pop(self, now: float) -> Job:
        self._all_advance(now)
        self.count -= 1
        job = super().pop(now)
        self._all_plan(now)
        return job

    def _all_advance(self, now: float) -> None:
        for each in self._gpu.members:
            each.advance(now)

    def _all_plan(self, now: float) -> None:
        for each in self._gpu.members:
            each.plan(now)


@dataclass(frozen=True)
class Run:
    """One system under `adaptive`.

    Attributes:
        system: The system.
        busy: How many models may be at work at once, or `ALONE`.
        by: models or requests: what slows what.
    """

    system: Generated
    busy: float
    by: str

    def figures(self) -> tuple[float, float]:
        """Simulate it, and return the mean and the 99th percentile of the times to the answer.

        That is the time by which a request takes longer than alone on an idle GPU: being slowed is
        a wait, too.
        """
        outcome = self._alone() if self.busy == ALONE else self._together()
        took = zip(outcome.arrived_at, outcome.ended_at, outcome.work_s, strict=True)
        waits = [ended - arrived - work for arrived, ended, work in took]
        assert len(waits) == self.system.requests
        return mean(waits), percentile(waits, 0.99)

    def _alone(self) -> Outcome:
        setup = Setup(
            models=list(self.system.memory.needs),
            cost=lambda source, to: self._sleep_s(source) + self._wake_s(to),
            server=lambda _model: Sharing(lambda count: _speed(count, 0)),
            policy=lambda: AdaptivePolicy(PolicyConfig()),
        )
        return simulate(setup, self.system.arrivals())

    def _together(self) -> Outcome:
        crowd, gpu = Crowd(_speed), TakingTurns()
        models = list(self.system.memory.needs)
        setup = CoresidentSetup(
            memory=self.system.memory,
            wake_s=self._wake_s,
            sleep_s=self._sleep_s,
            server=lambda _model: gpu.server() if self.by == "models" else crowd.server(GPU),
            policy=lambda: AdaptivePolicy(PolicyConfig()),
            touches=dict.fromkeys(models, GPU),
            busy=self.busy,
        )
        return simulate_coresident(setup, self.system.arrivals())

    def _wake_s(self, model: str) -> float:
        return 0.75 * self.system.switch_of(model)

    def _sleep_s(self, model: str | None) -> float:
        return 0.25 * self.system.switch_of(model) if model else 0.0


def _speed(own: int, others: int) -> float:
    return min(1.0, SLOTS / (own + others))


def systems(requests: int, seed: int) -> list[Generated]:
    """Return 108 systems."""
    axes = product(BUDGETS, SWITCHES_S, POPULARITIES, PATTERNS, (0.3, 0.6, 0.85))
    return [
        Generated(budget, switch_s, True, load, requests, seed + at, popularity, pattern)
        for at, (budget, switch_s, popularity, pattern, load) in enumerate(axes)
    ]


def figures_of(run: Run) -> tuple[Run, tuple[float, float]]:
    return run, run.figures()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.residency.slowed", description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="of each run")
    parser.add_argument("--seed", type=int, default=1, help="the first of all seeds")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--by", choices=("models", "requests"), default="models")
    parser.add_argument("--every", type=int, default=1, help="only every n-th system")
    options = parser.parse_args(arguments)
    chosen = systems(options.requests, options.seed)[:: options.every]
    runs = [Run(system, busy, options.by) for system in chosen for busy in (*CAPS, ALONE)]
    with multiprocessing.Pool(options.jobs) as pool:
        found = dict(pool.imap_unordered(figures_of, runs))
    rows = [["at work", "budget", "mean", "p99", "worst mean", "of"]]
    for busy, budget in product(CAPS, BUDGETS):
        of = [system for system in chosen if system.budget == budget]
        means, p99s = (
            [
                found[Run(each, busy, options.by)][at] / found[Run(each, ALONE, options.by)][at]
                for each in of
            ]
            for at in (0, 1)
        )
        worst = max(zip(means, of, strict=True), key=lambda each: each[0])
        what = worst[1]
        where = f"{what.switch_s:g} s, {what.popularity}, {what.pattern}, load {what.load:g}"
        cells = [f"{geometric_mean(each):.2f}" for each in (means, p99s)]
        cap = "all" if busy == math.inf else f"{busy:g}"
        rows.append([cap, f"{budget:.0%}", *cells, f"{worst[0]:.2f}", where])
    print("To one model awake at a time:\n")
    print(render(rows))


if __name__ == "__main__":
    main()
