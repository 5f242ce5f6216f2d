"""The traffic of `llmux simulate`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmux.cli.fleets import Fleet, named_after
from llmux.simulate.arrivals import (
    Arrival,
    Closed,
    bursty,
    exponential,
    one_hot,
    poisson,
    zipf,
)
from llmux.simulate.coresident import Follow


@dataclass(frozen=True)
class Traffic:
    """The requests of a run, and what has it end."""

    arrivals: Iterator[Arrival] | Sequence[Arrival]
    length: int
    follow: Follow | None = None
    until: float = math.inf


def traffic_of(fleet: Fleet, options: Mapping[str, Any]) -> Traffic:
    """Return the traffic that the options of `llmux simulate` describe."""
    if options["trace"] is not None:
        return Traffic(options["trace"], len(options["trace"]))
    rng = random.Random(options["seed"])  # noqa: S311
    work = exponential(options["service_secs"])
    shares, length = shares_of(fleet, options), options["requests"]
    arrivals: Iterator[Arrival]
    follow: Follow | None = None
    until = math.inf
    if options["pattern"] == "closed":
        agents = Closed(options["agents"], shares, exponential(options["think_secs"]), work, rng)
        arrivals, follow, until = agents.first(), agents.follow, 3600 * options["hours"]
    else:
        arrive = poisson if options["pattern"] == "poisson" else bursty
        arrivals = arrive(shares, rate_of(options), work, length, rng)
    if options["config"] is not None:
        arrivals, follow = named_after(fleet.models, arrivals, follow)
    return Traffic(arrivals, length, follow, until)


def shares_of(fleet: Fleet, options: Mapping[str, Any]) -> Sequence[float]:
    """Return the models' shares of the traffic; of a trace, those of its first half."""
    if options["trace"] is None:
        return (zipf if options["popularity"] == "zipf" else one_hot)(len(fleet.models))
    half = options["trace"][: (len(options["trace"]) + 1) // 2]
    names = [arrival.model for arrival in half]
    return [names.count(model) / len(names) for model in fleet.models]


def rate_of(options: Mapping[str, Any]) -> float:
    """Return the requests per second at all hosts."""
    if options["trace"] is not None:
        trace: Sequence[Arrival] = options["trace"]
        return len(trace) / max(trace[-1].at, 1e-9)
    return float(options["load"] * options["hosts"] * options["slots"] / options["service_secs"])
