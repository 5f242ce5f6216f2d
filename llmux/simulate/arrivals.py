"""Request arrivals: drawn at random from a seed, or read from a trace."""

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

RowT = TypeVar("RowT")

Draw = Callable[[random.Random], float]
"""Draws one duration, in seconds."""

BURST_SHARE = 0.2
"""Share of time taken up by bursts in `bursty`; their rate is 1 / BURST_SHARE times as high."""

LONGEST_S = 10**10
"""Upper limit of times, 300 years: it admits Unix times in seconds, but not in milliseconds."""


class Arrival(NamedTuple):
    """The arrival of one request.

    Attributes:
        at: Seconds of simulated time.
        model: The requested model.
        work_s: Service time on an otherwise idle server, in seconds.
        lost_s: Seconds that it has spent before on hosts that died.
    """

    at: float
    model: str
    work_s: float
    lost_s: float = 0.0


def zipf(count: int) -> list[float]:
    """Return the shares of `count` models, where the n-th gets 1/n of the traffic of the first."""
    weights = [1 / rank for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def one_hot(count: int, hot: float = 0.8) -> list[float]:
    """Return the shares of `count` models: `hot` for the first, equal parts for the others."""
    return [hot, *[(1 - hot) / (count - 1)] * (count - 1)] if count > 1 else [1.0]


def exponential(mean_s: float) -> Draw:
    """Return an exponential distribution; with a mean of 0, a constant 0."""
    return lambda rng: rng.expovariate(1 / mean_s) if mean_s else 0.0


def constant(value_s: float) -> Draw:
    return lambda _rng: value_s


def poisson(
    shares: Sequence[float], per_second: float, work: Draw, count: int, rng: random.Random
) -> Iterator[Arrival]:
    """Yield `count` independent arrivals, `per_second` on average, for models "0", "1", ..."""
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
    """Yield arrivals like `poisson`, but in bursts per model, of `burst_s` seconds on average."""
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
    """A closed loop of agents, which send a request, wait for the answer, think, and repeat."""

    def __init__(
        self, agents: int, shares: Sequence[float], think: Draw, work: Draw, rng: random.Random
    ) -> None:
        self._think = think
        self._work = work
        self._rng = rng
        self._pick = _picker(shares, rng)
        self._agents = agents

    def first(self) -> Iterator[Arrival]:
        """Return the first request of each agent, in order of time."""
        return iter(sorted(self._request(0.0) for _ in range(self._agents)))

    def follow(self, job: Job, now: float) -> Arrival:
        """Return the next request of the agent whose `job` was answered now."""
        del job
        return self._request(now)

    def _request(self, now: float) -> Arrival:
        return Arrival(now + self._think(self._rng), self._pick(), self._work(self._rng))


def read_trace(path: Path, *, work_s: float, speed: float = 1.0) -> list[Arrival]:
    """Read a trace in CSV with the columns arrival_s and model, and optionally service_s.

    Args:
        path: The file. Times are shifted so that the first request arrives at 0.
        work_s: Service time of rows without one, in seconds.
        speed: Factor by which arrivals are faster than recorded.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a trace; the message names the line.
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
    """Read hook times in CSV with the columns source (empty: nothing awake), target and seconds.

    Raises:
        OSError: The file cannot be read.
        ValueError: A row is invalid or names an unknown model; the message names the line.
    """

    def cost(row: Mapping[str, str]) -> tuple[tuple[str | None, str], float]:
        for name in (row["target"], row["source"] or models[0]):
            if name not in models:
                raise ValueError(f"{name!r} is none of the models: {', '.join(models)}")
        return (row["source"] or None, row["target"]), seconds(row, "seconds")

    return dict(read_rows(path, cost))


def read_rows(path: Path, make: Callable[[Mapping[str, str]], RowT]) -> list[RowT]:
    """Convert each row of a CSV file whose first line names the columns.

    Raises:
        OSError: The file cannot be read.
        ValueError: A row cannot be converted; the message names its line.
    """
    # Spreadsheets write a byte order mark. Only names can contain invalid UTF-8: replace it.
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, restval="", strict=True)
        rows = []
        try:
            for row in reader:
                if None in row:
                    raise ValueError("has more cells than the first line")
                rows.append(make(row))
        except KeyError as error:
            raise ValueError(f"{path}:1: there is no column {error.args[0]}") from None
        except (csv.Error, OverflowError, ValueError) as error:
            raise ValueError(f"{path}:{reader.reader.line_num}: {error}") from None
    return rows


def seconds(row: Mapping[str, str], column: str) -> float:
    """Return a number of seconds from a column of a CSV row.

    Raises:
        ValueError: It is not a number, or not between 0 and `LONGEST_S`.
    """
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 <= value <= LONGEST_S:
        raise ValueError(f"{column} is {row[column]!r}: not a number of seconds, 0 to {LONGEST_S}")
    return value
