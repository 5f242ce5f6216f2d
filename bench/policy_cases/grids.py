"""Grids of generated traffic: every combination of models, switch cost, popularity and load."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from bench.policy_cases.setup import SERVICE_S, SLOTS, SWITCHES_S, Figures, fleet
from bench.policy_cases.waits import wait_figures
from llmux.simulate import Arrival, bursty, one_hot, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential


@dataclass(frozen=True)
class GridCase:
    """Generated traffic.

    Attributes:
        models: Number of models.
        switch_s: Hook time of every switch.
        popularity: zipf or one_hot.
        pattern: poisson or bursty.
        load: Share of the slots that would be busy if there were no switches.
        slots: Requests that a backend processes at a time.
        service_s: Mean of the (exponential) service time.
        requests: Number of requests.
        seed: Seed of all random numbers.
        limited: Set `max_in_flight` to the number of slots.
    """

    models: int
    switch_s: float
    popularity: str
    pattern: str
    load: float
    slots: int
    service_s: float
    requests: int
    seed: int
    limited: bool = False

    def __str__(self) -> str:
        return (
            f"N {self.models}, {self.switch_s:g} s, {self.popularity}, {self.pattern}, "
            f"load {self.load:g}"
        )

    def axes(self) -> dict[str, Any]:
        """The dimensions of the grid."""
        names = ("models", "switch_s", "popularity", "pattern", "load")
        return {name: getattr(self, name) for name in names}

    def arrivals(self) -> Iterator[Arrival]:
        """Return the same arrivals each time."""
        shares = {"zipf": zipf, "one_hot": one_hot}[self.popularity](self.models)
        arrive = {"poisson": poisson, "bursty": bursty}[self.pattern]
        rate = self.load * self.slots / self.service_s
        work = exponential(self.service_s)
        return arrive(shares, rate, work, self.requests, random.Random(self.seed))

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        models = [str(index) for index in range(self.models)]
        setup = fleet(models, self.switch_s, self.slots, policy, limited=self.limited)
        return wait_figures(simulate(setup, self.arrivals()), self.switch_s)


LOADS_A = (0.3, 0.5, 0.7, 0.85, 0.95)
LOADS_B = (0.03, 0.1, 0.2, 0.4, 0.6, 0.85)


def grid_a(requests: int, seed: int) -> list[GridCase]:
    """Long requests in large batches, as in a chat service: 180 configurations."""
    return _grid(LOADS_A, SLOTS, SERVICE_S, requests, seed)


def limited(requests: int, seed: int) -> list[GridCase]:
    """Grid A with requests queued in llmux instead of inside the backends."""
    return [replace(case, limited=True) for case in grid_a(requests, seed)]


def grid_b(requests: int, seed: int) -> list[GridCase]:
    """Short requests, two at a time, mostly under low load: 216 configurations."""
    return _grid(LOADS_B, 2, 1.0, requests, seed)


def _grid(
    loads: Sequence[float], slots: int, service_s: float, requests: int, seed: int
) -> list[GridCase]:
    axes = product((2, 4, 8), SWITCHES_S, ("zipf", "one_hot"), ("poisson", "bursty"), loads)
    return [GridCase(*axis, slots, service_s, requests, seed + i) for i, axis in enumerate(axes)]
