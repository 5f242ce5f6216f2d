"""Models that sleep with requests inside: is it better not to wait for those in flight?"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from bench.policy_cases.setup import BASELINE, SERVICE_S, SLOTS, Figures, fleet
from bench.policy_report import ADAPTIVE, Report, Results, Verdict, policies_of
from bench.table import number, render
from llmux.simulate import one_hot, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.outcome import mean

REQUESTS = 3000
"""Requests in each run."""

SWITCHES_S = (0.5, 2.0, 10.0)
"""Short: a process that is frozen in place loads nothing when it resumes."""

LOADS = (0.3, 0.5, 0.7, 0.85)

SHARES: Mapping[str, Callable[[int], list[float]]] = {
    "zipf": zipf,
    "one_hot": one_hot,
    "equal": lambda count: [1 / count] * count,
}


@dataclass(frozen=True)
class FrozenCase:
    """Poisson traffic for some models, with drains and with `preserves_in_flight`.

    Attributes:
        models: Number of models.
        switch_s: Hook time of every switch.
        popularity: zipf, one_hot or equal.
        load: Share of the slots that would be busy if there were no switches.
        requests: Number of requests.
        seed: Seed of all random numbers.
    """

    models: int
    switch_s: float
    popularity: str
    load: float
    requests: int
    seed: int

    def __str__(self) -> str:
        return f"N {self.models}, {self.switch_s:g} s, {self.popularity}, load {self.load:g}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        names = ("models", "switch_s", "popularity", "load")
        return {name: getattr(self, name) for name in names}

    def run(self, policy: str) -> Figures:
        """Simulate a policy with frozen requests and with drains; the original only with drains."""
        drained_s = self._response_s(policy, freezes=False)
        frozen_s = drained_s if policy == BASELINE else self._response_s(policy, freezes=True)
        return {"drained": drained_s, "frozen": frozen_s}

    def _response_s(self, policy: str, *, freezes: bool) -> float:
        models = [str(index) for index in range(self.models)]
        setup = replace(fleet(models, self.switch_s, SLOTS, policy), preserves_in_flight=freezes)
        shares, rate = SHARES[self.popularity](self.models), self.load * SLOTS / SERVICE_S
        work, rng = exponential(SERVICE_S), random.Random(self.seed)
        return mean(simulate(setup, poisson(shares, rate, work, self.requests, rng)).responses())


def frozen(requests: int, seed: int) -> list[FrozenCase]:
    """108 systems."""
    return [
        FrozenCase(models, switch_s, popularity, load, requests, seed)
        for models, switch_s, popularity, load in product((2, 4, 8), SWITCHES_S, SHARES, LOADS)
    ]


def report_frozen(title: str, results: Results) -> Report:
    """Mean response times with frozen requests, relative to drains and to the original."""
    report = Report(f"{title}: mean responses, frozen over drained, of {len(results)} systems")
    rows = [["policy", "over drained", "worst", "over the original", "worst at"]]
    for policy in policies_of(results):
        ratios = {
            case: of[policy]["frozen"] / of[policy]["drained"] for case, of in results.items()
        }
        worst = max(ratios, key=ratios.__getitem__)
        over_original = [of[policy]["frozen"] / of[BASELINE]["drained"] for of in results.values()]
        average = statistics.geometric_mean(ratios.values())
        cells = (average, ratios[worst], statistics.geometric_mean(over_original))
        rows.append([policy, *map(number, cells), str(worst)])
        report.data[policy] = {"over_drained": average, "worst": ratios[worst]}
        if policy == ADAPTIVE:
            text = f"{title}: response over that with drains, geometric mean < 1"
            report.verdicts.append(Verdict(text, number(average), average < 1))
    report.tables += [render(rows), render(by_load(results))]
    return report


def by_load(results: Results) -> Sequence[Sequence[str]]:
    """Mean response times in seconds with four models and switches of 2 s."""
    rows = [["4 models, switches of 2 s", BASELINE, f"{ADAPTIVE}, drained", f"{ADAPTIVE}, frozen"]]
    for case, of in results.items():
        axes = case.axes()
        if ADAPTIVE in of and (axes["models"], axes["switch_s"]) == (4, 2.0):
            values = of[BASELINE]["drained"], of[ADAPTIVE]["drained"], of[ADAPTIVE]["frozen"]
            rows.append([f"{axes['popularity']}, load {axes['load']:g}", *map(number, values)])
    return rows
