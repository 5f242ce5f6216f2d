"""The routers of simulated fleets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmux.simulate.expecting import ExpectedWait, Seeing
from llmux.simulate.fleet import Router
from llmux.simulate.routers import (
    BoundedHash,
    FixedHomes,
    Hash,
    LeastRequest,
    RoundRobin,
    Scorers,
)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What routers are made of.

    Attributes:
        homes: The index of each model's host, for fixed homes.
        seeing: How pickers see hosts.
        pickers: Number of pickers.
        seed: Seed of random choices.
    """

    homes: Mapping[str, int]
    seeing: Seeing = field(default_factory=Seeing)
    pickers: int = 1
    seed: int = 0


ROUTERS: Mapping[str, Callable[[Routing], Router]] = {
    "round-robin": lambda _: RoundRobin(),
    "least-request": lambda routing: LeastRequest(routing.seed),
    "hash": lambda _: Hash(),
    "bounded-hash": lambda _: BoundedHash(),
    "scorers": lambda routing: Scorers(routing.seed),
    "fixed-homes": lambda routing: FixedHomes(routing.homes),
    "expected-wait": lambda routing: ExpectedWait(
        routing.seeing, pickers=routing.pickers, seed=routing.seed
    ),
}
"""The routers, by the name that `llmux simulate --router` takes."""
