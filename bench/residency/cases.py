"""Systems: models of different sizes that share one resource, and their traffic."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from bench.policy_cases.setup import SERVICE_S, SLOTS, SWITCHES_S
from bench.policy_cases.traces import TraceCase, traces
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

HEAVY_SHAPE, HEAVY_LEAST_S, HEAVY_MOST_S = 1.5, 2.794, 600.0
"""Of heavy-tailed service times, with the usual mean of 8 s: half of them take less than 4.5 s, and
half of the work is in the 15 % that take more than 10 s."""


@dataclass(frozen=True)
class System(ABC):
    """Models that share one GPU.

    Attributes:
        budget: Share of the models' sizes that fits.
        switch_s: Time of a model's wake and sleep together, on average over the models.
        by_size: True if that is in proportion to a model's size.
        load: Share of one server's slots that would be busy.
        requests: Number of requests.
        seed: Seed of all random numbers.
    """

    budget: float
    switch_s: float
    by_size: bool
    load: float
    requests: int
    seed: int

    @abstractmethod
    def count(self, draw: random.Random) -> int:
        """Return the number of models."""

    @abstractmethod
    def arrivals(self) -> Iterator[Arrival]:
        """Return the requests, for models "0", "1", ..."""

    @cached_property
    def sizes(self) -> list[int]:
        """Sizes of the models, in bytes."""
        draw = random.Random(self.seed * 7919 + 1)
        low, high = math.log(LEAST_GIB), math.log(MOST_GIB)
        return [int(math.exp(draw.uniform(low, high)) * GIB) for _ in range(self.count(draw))]

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
class Generated(System):
    """Traffic drawn at random.

    Attributes:
        popularity: zipf or one_hot.
        pattern: poisson or bursty.
        work: exponential or heavy: the distribution of service times.
    """

    popularity: str
    pattern: str
    work: str = "exponential"

    def count(self, draw: random.Random) -> int:
        return draw.randint(5, 10)

    def arrivals(self) -> Iterator[Arrival]:
        shares = {"zipf": zipf, "one_hot": one_hot}[self.popularity](len(self.sizes))
        arrive = {"poisson": poisson, "bursty": bursty}[self.pattern]
        rate = self.load * SLOTS / SERVICE_S
        work = {"exponential": exponential(SERVICE_S), "heavy": heavy}[self.work]
        return arrive(shares, rate, work, self.requests, random.Random(self.seed))


def heavy(draw: random.Random) -> float:
    """Draw a service time with Pareto's distribution: most are short, and a few take minutes."""
    return min(HEAVY_MOST_S, HEAVY_LEAST_S * draw.paretovariate(HEAVY_SHAPE))


@dataclass(frozen=True)
class Recorded(System):
    """Recorded traffic, sped up or slowed down to the load.

    Attributes:
        trace: Its name in `bench.policy_cases.traces.TRACES`.
        files: Its files.
    """

    trace: str
    files: tuple[Path, ...]

    def count(self, draw: random.Random) -> int:  # noqa: ARG002 - those of the trace
        return len(self._models)

    @cached_property
    def _recorded(self) -> list[Arrival]:
        return TraceCase(self.trace, self.switch_s, self.load, self.files, self.requests).arrivals()

    @cached_property
    def _models(self) -> list[str]:
        return sorted({arrival.model for arrival in self._recorded})

    def arrivals(self) -> Iterator[Arrival]:
        number = {model: str(index) for index, model in enumerate(self._models)}
        return (each._replace(model=number[each.model]) for each in self._recorded)


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
        assert len(waits) == len(list(system.arrivals())), f"{self}: requests without an answer"
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


BUDGETS, POPULARITIES, PATTERNS = (0.3, 0.5, 0.7), ("zipf", "one_hot"), ("poisson", "bursty")


def grid(requests: int, seed: int) -> list[System]:
    """Return the 216 systems of the study."""
    axes = product(BUDGETS, SWITCHES_S, (True, False), POPULARITIES, PATTERNS, (0.3, 0.6, 0.85))
    return [
        Generated(budget, switch_s, by_size, load, requests, seed + at, popularity, pattern)
        for at, (budget, switch_s, by_size, popularity, pattern, load) in enumerate(axes)
    ]


def heavy_tails(requests: int, seed: int) -> list[System]:
    """Return 72 systems in which a few requests take very long."""
    return _by_load((0.3, 0.6), requests, seed, "heavy")


def low_loads(requests: int, seed: int) -> list[System]:
    """Return 72 systems with little traffic."""
    return _by_load((0.03, 0.1), requests, seed, "exponential")


def _by_load(loads: Sequence[float], requests: int, seed: int, work: str) -> list[System]:
    axes = product(BUDGETS, SWITCHES_S, POPULARITIES, PATTERNS, loads)
    return [
        Generated(budget, switch_s, True, load, requests, seed + at, popularity, pattern, work)
        for at, (budget, switch_s, popularity, pattern, load) in enumerate(axes)
    ]


def recorded(requests: int, seed: int, directory: Path) -> list[System]:
    """Return 81 systems with the traces in a directory.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is malformed.
    """
    axes = product(traces(directory, requests), BUDGETS)
    return [
        Recorded(
            budget, case.switch_s, True, case.load, requests, seed + at, case.trace, case.files
        )
        for at, (case, budget) in enumerate(axes)
    ]
