"""Generated systems: models of different sizes that share one resource."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from bench.policy_cases.setup import SERVICE_S, SLOTS
from bench.residency.baselines import BASELINES
from llmux.config import PolicyConfig
from llmux.policy import AdaptivePolicy, Policy
from llmux.policy.room import Memory, Needs
from llmux.simulate import Arrival, Setup, Slots, bursty, one_hot, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.coresident import simulate_coresident
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import Outcome, mean, percentile

GIB = 2**30
LEAST_GIB, MOST_GIB = 2.0, 40.0
SLEEP_SHARE = 0.25
"""Share of a switch that puts a model to sleep."""


@dataclass(frozen=True)
class System:
    """Models that share one GPU.

    Attributes:
        budget: Share of the models' sizes that fits.
        switch_s: Time of a model's wake and sleep together, on average over the models.
        by_size: True if that is in proportion to a model's size.
        popularity: zipf or one_hot.
        pattern: poisson or bursty.
        load: Share of one server's slots that would be busy.
        requests: Number of requests.
        seed: Seed of all random numbers.
    """

    budget: float
    switch_s: float
    by_size: bool
    popularity: str
    pattern: str
    load: float
    requests: int
    seed: int

    def axes(self) -> dict[str, Any]:
        names = ("budget", "switch_s", "by_size", "popularity", "pattern", "load")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def sizes(self) -> list[int]:
        """Sizes of the models, in bytes."""
        draw = random.Random(self.seed * 7919 + 1)
        low, high = math.log(LEAST_GIB), math.log(MOST_GIB)
        return [int(math.exp(draw.uniform(low, high)) * GIB) for _ in range(draw.randint(5, 10))]

    @cached_property
    def memory(self) -> Memory:
        sizes = self.sizes
        amount = max(int(self.budget * sum(sizes)), *sizes)
        needs = {str(index): Needs.of((size,)) for index, size in enumerate(sizes)}
        return Memory(("gpu",), (amount,), needs)

    def switch_of(self, model: str) -> float:
        sizes = self.sizes
        mean = sum(sizes) / len(sizes)
        return self.switch_s * (sizes[int(model)] / mean if self.by_size else 1.0)

    def arrivals(self) -> Iterator[Arrival]:
        shares = {"zipf": zipf, "one_hot": one_hot}[self.popularity](len(self.sizes))
        arrive = {"poisson": poisson, "bursty": bursty}[self.pattern]
        rate = self.load * SLOTS / SERVICE_S
        work = exponential(SERVICE_S)
        return arrive(shares, rate, work, self.requests, random.Random(self.seed))

    def run_alone(self, policy: Policy) -> Outcome:
        """Simulate it with one model awake at a time."""

        def cost(source: str | None, target: str) -> float:
            asleep_s = SLEEP_SHARE * self.switch_of(source) if source else 0.0
            return asleep_s + (1 - SLEEP_SHARE) * self.switch_of(target)

        setup = Setup(
            models=list(self.memory.needs),
            cost=cost,
            server=lambda _model: Slots(SLOTS),
            policy=lambda: policy,
        )
        return simulate(setup, self.arrivals())

    def run(self, policy: Policy, hooks_at_once: int) -> Outcome:
        setup = CoresidentSetup(
            memory=self.memory,
            wake_s=lambda model: (1 - SLEEP_SHARE) * self.switch_of(model),
            sleep_s=lambda model: SLEEP_SHARE * self.switch_of(model),
            server=lambda _model: Slots(SLOTS),
            policy=lambda: policy,
            hooks_at_once=hooks_at_once,
        )
        return simulate_coresident(setup, self.arrivals())


@dataclass(frozen=True)
class Run:
    """One system under one policy.

    Attributes:
        system: The system.
        policy: The policy's name.
        hooks: Number of hooks that may run at a time.
    """

    system: System
    policy: str
    hooks: int

    def figures(self) -> dict[str, float]:
        """Simulate it; times are in seconds."""
        system = self.system
        if self.policy == "alone":
            outcome = system.run_alone(AdaptivePolicy(PolicyConfig()))
        else:
            outcome = system.run(self._make_policy(), self.hooks)
        waits = outcome.waits()
        assert len(waits) == system.requests, f"{self}: requests without an answer"
        return {
            "mean": mean(waits),
            "p99": percentile(waits, 0.99),
            "longest": max(waits),
            "wakes": outcome.switches,
        }

    def _make_policy(self) -> Policy:
        if self.policy == "adaptive":
            return AdaptivePolicy(PolicyConfig())
        if self.policy == "unbounded":
            return AdaptivePolicy(PolicyConfig(max_wait_secs=1e9))
        return BASELINES[self.policy]()


def grid(requests: int, seed: int) -> list[System]:
    """Return the 216 systems of the study."""
    axes = product(
        (0.3, 0.5, 0.7), (2.0, 10.0, 60.0), (True, False), ("zipf", "one_hot"),
        ("poisson", "bursty"), (0.3, 0.6, 0.85),
    )  # fmt: skip
    return [System(*axis, requests, seed + at) for at, axis in enumerate(axes)]
