"""Randomly drawn traffic: does a request wait longer than invariant 7 allows?

Grids and traces have several slots, and bounds that are long compared with a switch. Random cases
go further: bounds from 0, one slot, backends that serve all requests at once, loads of up to 1.3.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from bench.policy_cases.setup import BASELINE, Figures, OriginalFifo, under
from bench.policy_cases.waits import nearest_to_bound
from bench.policy_report import ADAPTIVE, Report, Results, judge_bound, policies_of
from bench.table import number, render
from llmux.simulate import Setup, Sharing, Slots, bursty, one_hot, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.backends import Server

REQUESTS = 1500
"""Requests in each run."""


@dataclass(frozen=True)
class RandomCase:
    """One draw of everything.

    Attributes:
        seed: Seed of all random numbers.
    """

    seed: int

    def __str__(self) -> str:
        return f"seed {self.seed}"

    def axes(self) -> dict[str, Any]:
        """Return no labels: no parameter is varied by itself."""
        return {}

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        rng = random.Random(self.seed)
        models = [str(index) for index in range(rng.choice((2, 3, 4, 6)))]
        switch_s = rng.choice((0.1, 1.0, 5.0, 20.0, 60.0))
        slots = rng.choice((1, 2, 8, 32))
        service_s = rng.choice((0.5, 2.0, 8.0, 20.0))
        load = rng.choice((0.1, 0.4, 0.7, 0.95, 1.3))
        bounds_s = (0.0, 10.0, 30.0, 100.0, 300.0) if self.seed % 2 else (100.0, 300.0, 600.0)
        bound_s = rng.choice(bounds_s)
        arrive = rng.choice((poisson, bursty))
        shares = rng.choice((zipf, one_hot))(len(models))
        is_shared = rng.random() < 0.3

        def server(_model: str) -> Server:
            return Sharing(lambda count: min(1.0, slots / count)) if is_shared else Slots(slots)

        setup = Setup(
            models=models,
            cost=lambda _source, _target: switch_s,
            server=server,
            policy=OriginalFifo,
        )
        work = exponential(service_s)
        rate = load * slots / service_s
        arrivals = arrive(shares, rate, work, REQUESTS, random.Random(self.seed))
        return nearest_to_bound(
            simulate(under(setup, policy, bound_s), arrivals), switch_s, bound_s
        )


def report_random(title: str, results: Results) -> Report:
    """Count the runs with a wait beyond invariant 7, and say by how much."""
    report = Report(f"{title}: runs with a wait in line beyond invariant 7, of {len(results)}")
    rows = [["policy", "runs", "the most, s", "where"]]
    for policy in [BASELINE, *policies_of(results)]:
        worst, case = max((of[policy]["excess"], str(case)) for case, of in results.items())
        # Ignore rounding errors.
        beyond = [case for case, of in results.items() if of[policy]["excess"] > 1e-6]
        rows.append([policy, str(len(beyond)), number(worst), case])
        report.data[policy] = {"beyond": [str(case) for case in beyond], "most_s": worst}
        if policy == ADAPTIVE:
            report.verdicts.append(judge_bound(title, [of[policy] for of in results.values()]))
    report.tables.append(render(rows))
    return report
