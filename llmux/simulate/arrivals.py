"""Who asks for what, and when: drawn at random by seed, or read from a trace."""

from __future__ import annotations

import csv
import heapq
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from llmux.simulate.backends import Job

Draw = Callable[[random.Random], float]
"""Draws one value, in seconds."""

BURST_SHARE = 0.2
"""Of the time `bursty` arrivals come in bursts, and then 1 / BURST_SHARE times as often."""


class Arrival(NamedTuple):
    """One request that comes.

    Attributes:
        at: When, in seconds of simulated time.
        model: What it names.
        work_s: How long it takes on a server that does nothing else.
    """

    at: float
    model: str
    work_s: float


def zipf(count: int) -> list[float]:
    """Shares of `count` models of which the n-th is asked for 1/n as often as the first."""
    weights = [1 / rank for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def one_hot(count: int, hot: float = 0.8) -> list[float]:
    """Shares of `count` models of which the first gets `hot` and the others the rest."""
    return [hot, *[(1 - hot) / (count - 1)] * (count - 1)] if count > 1 else [1.0]


def exponential(mean_s: float) -> Draw:
    """Exponential with this mean."""
    return lambda rng: rng.expovariate(1 / mean_s)


def constant(value_s: float) -> Draw:
    """Always the same."""
    return lambda _rng: value_s


def poisson(
    shares: Sequence[float], per_second: float, work: Draw, count: int, rng: random.Random
) -> Iterator[Arrival]:
    """`count` independent arrivals, `per_second` on average, for models named by their index."""
    now = 0.0
    pick = _picker(shares, rng)
    for _ in range(count):
        now += rng.expovariate(per_second)
        yield Arrival(now, pick(), work(rng))


def bursty(
    shares: Sequence[float],
    per_second: float,
    work: Draw,
    count: int,
    rng: random.Random,
    *,
    burst_s: float = 30.0,
) -> Iterator[Arrival]:
    """Like `poisson`, but each model's arrivals come in bursts of `burst_s` on average."""
    streams = [
        _bursts(str(index), share * per_second, work, rng, burst_s)
        for index, share in enumerate(shares)
    ]
    for arrival, _ in zip(heapq.merge(*streams), range(count), strict=False):
        yield arrival


def _bursts(
    model: str, per_second: float, work: Draw, rng: random.Random, burst_s: float
) -> Iterator[Arrival]:
    now = 0.0
    while True:
        now += rng.expovariate(BURST_SHARE / (burst_s * (1 - BURST_SHARE)))
        until = now + rng.expovariate(1 / burst_s)
        while (now := now + rng.expovariate(per_second / BURST_SHARE)) < until:
            yield Arrival(now, model, work(rng))
        now = until


def _picker(shares: Sequence[float], rng: random.Random) -> Callable[[], str]:
    names = [str(index) for index in range(len(shares))]
    bounds = list(accumulate(shares))[:-1]
    return lambda: names[bisect(bounds, rng.random())]


class Closed:
    """Agents, each of which asks, waits for the answer, thinks, and asks again: a closed loop."""

    def __init__(
        self, agents: int, shares: Sequence[float], think: Draw, work: Draw, rng: random.Random
    ) -> None:
        self._think = think
        self._work = work
        self._rng = rng
        self._pick = _picker(shares, rng)
        self._agents = agents

    def first(self) -> Iterator[Arrival]:
        """The first request of each."""
        return iter(sorted(self._ask(0.0) for _ in range(self._agents)))

    def follow(self, job: Job, now: float) -> Arrival:
        """What the agent asks next whose request was answered now."""
        del job
        return self._ask(now)

    def _ask(self, now: float) -> Arrival:
        return Arrival(now + self._think(self._rng), self._pick(), self._work(self._rng))


def read_trace(path: Path, *, work_s: float, speed: float = 1.0) -> list[Arrival]:
    """A trace in CSV with the columns arrival_s and model; service_s where it is known.

    Args:
        path: The file.
        work_s: Service time of rows that do not say one.
        speed: By how much faster than recorded the requests come.
    """
    with path.open(newline="") as file:
        rows = [
            Arrival(
                float(row["arrival_s"]) / speed,
                row["model"],
                float(row.get("service_s") or work_s),
            )
            for row in csv.DictReader(file)
        ]
    return sorted(rows)
