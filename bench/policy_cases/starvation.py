"""Starvation: the longest waits for rarely asked models beside one that never idles."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from bench.policy_cases.setup import SERVICE_S, SWITCHES_S, Figures, fleet
from bench.policy_cases.waits import nearest_to_bound
from llmux.simulate import Arrival, poisson, simulate
from llmux.simulate.arrivals import exponential
from llmux.simulate.outcome import mean

HOT, *COLD = "hot", "cold 1", "cold 2", "cold 3"
HOT_LOAD = 0.7
HOT_SLOTS = 32
"""On average 22 are busy: the hot model idles once in decades."""

COLD_EVERY_S = 600.0


@dataclass(frozen=True)
class StarvationCase:
    """A hot model that never idles, and three cold ones with a request every ten minutes each.

    Attributes:
        switch_s: Hook time of every switch.
        hours: Simulated time.
        seed: Seed of all random numbers.
    """

    switch_s: float
    hours: float
    seed: int

    def __str__(self) -> str:
        return f"{self.switch_s:g} s, seed {self.seed}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        return {"switch_s": self.switch_s}

    def arrivals(self) -> Iterator[Arrival]:
        """Return the same arrivals each time."""
        rates = [HOT_LOAD * HOT_SLOTS / SERVICE_S, *[1 / COLD_EVERY_S] * len(COLD)]
        rate = sum(rates)
        count = round(3600 * self.hours * rate)
        work = exponential(SERVICE_S)
        drawn = poisson([one / rate for one in rates], rate, work, count, random.Random(self.seed))
        names = (HOT, *COLD)
        return (arrival._replace(model=names[int(arrival.model)]) for arrival in drawn)

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        outcome = simulate(fleet((HOT, *COLD), self.switch_s, HOT_SLOTS, policy), self.arrivals())
        waits = outcome.line_waits()
        by_model = list(zip(outcome.models, waits, strict=True))
        return {
            "hot_mean": mean([wait for model, wait in by_model if model == 0]),
            "cold_mean": mean([wait for model, wait in by_model if model]),
            "cold_max": max((wait for model, wait in by_model if model), default=0.0),
            "longest_drain": outcome.longest_drain_s,
            "switches": outcome.switches,
            **nearest_to_bound(outcome, self.switch_s),
        }


def starvation(hours: float, seeds: Sequence[int]) -> list[StarvationCase]:
    """One case for each switch cost and seed."""
    return [StarvationCase(switch_s, hours, seed) for switch_s, seed in product(SWITCHES_S, seeds)]
