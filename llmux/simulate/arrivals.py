"""Who asks for what, and when: drawn at random by seed, or read from a trace."""

from __future__ import annotations

import csv
import heapq
import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

from llmux.simulate.backends import Job

Made = TypeVar("Made")

Draw = Callable[[random.Random], float]
"""Draws one value, in seconds."""

BURST_SHARE = 0.2
"""Of the time `bursty` arrivals come in bursts, and then 1 / BURST_SHARE times as often."""

LONGEST_S = 10**10
"""300 years; the seconds of Unix are below it, and its milliseconds above."""


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
    """Exponential with this mean; 0: always that."""
    return lambda rng: rng.expovariate(1 / mean_s) if mean_s else 0.0


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
        path: The file. Its first request comes at time 0, whatever clock it was recorded by.
        work_s: Service time of rows that do not say one.
        speed: By how much faster than recorded the requests come.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such trace; says where.
    """

    def arrival(row: Mapping[str, str]) -> Arrival:
        at, model = seconds(row, "arrival_s"), row["model"]
        if not model:
            raise ValueError("model is empty")
        service_s = seconds(row, "service_s") if row.get("service_s") else work_s
        return Arrival(at, model, service_s)

    rows = sorted(read_rows(path, arrival))
    if not rows:
        raise ValueError(f"{path}: there is no request in it")
    return [row._replace(at=(row.at - rows[0].at) / speed) for row in rows]


def read_costs(path: Path, models: Sequence[str]) -> dict[tuple[str | None, str], float]:
    """Hook times in CSV with the columns source (empty: nothing awake), target and seconds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file, or names others than these models; says where.
    """

    def cost(row: Mapping[str, str]) -> tuple[tuple[str | None, str], float]:
        for name in (row["target"], row["source"] or models[0]):
            if name not in models:
                raise ValueError(f"{name!r} is none of the models: {', '.join(models)}")
        return (row["source"] or None, row["target"]), seconds(row, "seconds")

    return dict(read_rows(path, cost))


def read_rows(path: Path, make: Callable[[Mapping[str, str]], Made]) -> list[Made]:
    """What is made of each row of a CSV file whose first line names the columns.

    Raises:
        OSError: It cannot be read.
        ValueError: Nothing can be made of a row; says which line that is.
    """
    # Spreadsheets write a byte order mark. What is no UTF-8 can be in names only.
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, restval="", strict=True)
        made = []
        try:
            for row in reader:
                if None in row:
                    raise ValueError("has more cells than the first line")
                made.append(make(row))
        except KeyError as error:
            raise ValueError(f"{path}:1: there is no column {error.args[0]}") from None
        except (csv.Error, OverflowError, ValueError) as error:
            raise ValueError(f"{path}:{reader.reader.line_num}: {error}") from None
    return made


def seconds(row: Mapping[str, str], column: str) -> float:
    """A time in a row of a CSV file.

    Raises:
        ValueError: It is none, or is beyond all sense.
    """
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 <= value <= LONGEST_S:
        raise ValueError(f"{column} is {row[column]!r}: not a number of seconds, 0 to {LONGEST_S}")
    return value
