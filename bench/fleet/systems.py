"""The fleets that are compared, each with its traffic."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from llmux.config import PolicyConfig
from llmux.fleet import Demand, homes
from llmux.policy import load_policy
from llmux.simulate import routing
from llmux.simulate.arrivals import Arrival, exponential, one_hot, poisson, zipf
from llmux.simulate.backends import Slots
from llmux.simulate.engine import Setup
from llmux.simulate.expecting import Seeing
from llmux.simulate.fleet import FleetOutcome, simulate_fleet
from llmux.simulate.outcome import mean, percentile
from llmux.simulate.routing import Routing

SLOTS = 8
WAKE_SHARE = 0.7
"""Part of a switch that wakes a model: a first wake takes no more."""

HOT = 0.7
"""Share of a hot model."""


@dataclass(frozen=True)
class System:
    """A fleet and its traffic.

    Attributes:
        shares: The models' shares of the traffic.
        per_second: Arrivals per second.
        switch_s: Hook time of a switch.
        service_s: Mean time of a request.
        requests: Number of requests.
        hosts: The models of each host, as indices.
        turned: The shares from half of the requests on; None: as before.
        seed: Seed of the traffic.
        name: What it is, for reports.
    """

    shares: tuple[float, ...]
    per_second: float
    switch_s: float
    service_s: float
    requests: int
    hosts: tuple[tuple[int, ...], ...]
    turned: tuple[float, ...] | None = None
    seed: int = 1
    name: str = field(default="", compare=False)

    def setups(self) -> list[Setup]:
        """Return its hosts."""
        return [self._setup([str(index) for index in models]) for models in self.hosts]

    def _setup(self, models: Sequence[str]) -> Setup:
        return Setup(
            models=models,
            cost=lambda source, _: self.switch_s if source else WAKE_SHARE * self.switch_s,
            server=lambda _: Slots(SLOTS),
            policy=lambda: load_policy(PolicyConfig()),
            max_in_flight=SLOTS,
        )

    def arrivals(self) -> list[Arrival]:
        """Return its traffic, always the same."""
        rng, work = random.Random(self.seed), exponential(self.service_s)
        if self.turned is None:
            return list(poisson(self.shares, self.per_second, work, self.requests, rng))
        half = self.requests // 2
        first = list(poisson(self.shares, self.per_second, work, half, rng))
        then = poisson(self.turned, self.per_second, work, half, rng)
        return first + [each._replace(at=each.at + first[-1].at) for each in then]

    def homes(self) -> Mapping[str, int]:
        """Return a host for each model, by the shares at the beginning."""
        demands = {
            str(index): Demand(
                per_second=share * self.per_second,
                latency_s=self.service_s,
                cost_s=self.switch_s,
                slots=SLOTS,
            )
            for index, share in enumerate(self.shares)
        }
        having = {str(at): [str(index) for index in models] for at, models in enumerate(self.hosts)}
        return {model: int(at) for model, at in homes(demands, having).items()}


def alike(hosts: int, models: int) -> tuple[tuple[int, ...], ...]:
    """Return hosts that all have all models."""
    return (tuple(range(models)),) * hosts


def grid(requests: int, seed: int) -> list[System]:
    """Return 72 fleets with steady shares."""
    return [
        _system(hosts, hosts * per_host, load, switch_s, kind, requests, seed + number)
        for number, (hosts, per_host, load, switch_s, kind) in enumerate(
            product((2, 3, 4), (1, 2), (0.3, 0.5), (2.0, 10.0), ("uniform", "zipf", "hot"))
        )
    ]


def turning(requests: int, seed: int) -> list[System]:
    """Return 24 fleets whose shares turn half way: the last model becomes the first."""
    return [
        _system(hosts, hosts * per_host, load, switch_s, kind, requests, seed + number, turns=True)
        for number, (hosts, per_host, load, switch_s, kind) in enumerate(
            product((2, 3, 4), (2,), (0.3, 0.5), (2.0, 10.0), ("zipf", "hot"))
        )
    ]


def _system(
    hosts: int,
    models: int,
    load: float,
    switch_s: float,
    kind: str,
    requests: int,
    seed: int,
    *,
    turns: bool = False,
) -> System:
    kinds: Mapping[str, Callable[[int], Sequence[float]]] = {
        "uniform": lambda count: [1 / count] * count,
        "zipf": zipf,
        "hot": lambda count: one_hot(count, HOT),
    }
    shares, service_s = tuple(kinds[kind](models)), 4.0
    return System(
        shares=shares,
        per_second=load * hosts * SLOTS / service_s,
        switch_s=switch_s,
        service_s=service_s,
        requests=requests,
        hosts=alike(hosts, models),
        turned=shares[::-1] if turns else None,
        seed=seed,
        name=f"{hosts} hosts, {models} models, {load:.0%}, {switch_s:g} s, {kind}",
    )


def as_live(seed: int) -> list[System]:
    """Return what the tests with a real proxy run: 60 s at 4 requests/s, and one that turns."""
    third, fifth, few = (1 / 3,) * 3, (1 / 5,) * 5, (0.9, 0.05, 0.05)
    five = ((0, 1, 2), (0, 1, 2), (0, 1, 2, 3, 4))
    steady: list[tuple[str, tuple[float, ...], float, tuple[tuple[int, ...], ...]]] = [
        ("3 models, 3 hosts", third, 0.5, alike(3, 3)),
        ("5 models, two on one host", fifth, 0.5, five),
        ("one hot model", few, 2.5, alike(3, 3)),
    ]
    found = [
        System(shares, 4.0, 2.3, service_s, 240, hosts, seed=seed, name=name)
        for name, shares, service_s, hosts in steady
    ]
    # The two models that share a home become the busy ones.
    shares, turned = (0.45, 0.45, 0.05, 0.05), (0.05, 0.05, 0.45, 0.45)
    name = "4 models, shares turn"
    turns = System(shares, 4.0, 2.3, 2.0, 480, alike(3, 4), turned, seed=seed, name=name)
    return [*found, turns]


# ---- Routers ----

BASELINE = "round-robin"

ROUTERS: Mapping[str, tuple[str, Seeing, int]] = {
    **{name: (name, Seeing(), 1) for name in routing.ROUTERS},
    "3 pickers": ("expected-wait", Seeing(), 3),
    "views 0 s old": ("expected-wait", Seeing(0.0), 1),
    "views 1 s old": ("expected-wait", Seeing(1.0, at_changes=False), 1),
    "views 5 s old": ("expected-wait", Seeing(5.0, at_changes=False), 1),
}
"""Views "N s old" come every N seconds, and not when a phase changes; the others come each second
and at each change."""


@dataclass(frozen=True)
class Run:
    """A system under a router."""

    system: System
    router: str

    def figures(self) -> dict[str, float]:
        """Simulate it."""
        name, seeing, pickers = ROUTERS[self.router]
        system = self.system
        made = routing.ROUTERS[name](
            Routing(homes=system.homes(), seeing=seeing, pickers=pickers, seed=system.seed)
        )
        return figures_of(simulate_fleet(system.setups(), system.arrivals(), made))


def figures_of(outcome: FleetOutcome) -> dict[str, float]:
    """Return what is reported of a run; waits in seconds."""
    waits = outcome.line_waits()
    return {
        "mean": mean(waits),
        "p99": percentile(waits, 0.99),
        "switches": outcome.switches,
        "answered": outcome.count,
    }


def ratio(values: Sequence[float], bases: Sequence[float]) -> float:
    """Return the geometric mean of the ratios; of waits below 10 ms nothing is made."""
    logs = [
        math.log(max(value, 0.01) / max(base, 0.01))
        for value, base in zip(values, bases, strict=True)
    ]
    return math.exp(mean(logs))
