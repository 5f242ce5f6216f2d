"""A home for each model: a host of its own, or one that it shares with as few others as possible.

Fixed homes need no picker. They are what is left if there is none, and what a choice is measured
by: they are best where shares are steady and known, and bad where shares turn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llmux.fleet.choice import affinity

FULL = 0.95
"""Load from which on waits are taken to grow in proportion to it, rather than without limit."""

MOST_ROUNDS = 20
"""Limit on the rounds in which models are moved."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a model needs.

    Attributes:
        per_second: Its requests per second, at all hosts.
        latency_s: Usual time of a request, in seconds.
        cost_s: Hook time of a switch to it, in seconds.
        slots: Requests that it serves at once.
    """

    per_second: float
    latency_s: float
    cost_s: float
    slots: float = math.inf

    @property
    def load(self) -> float:
        """The share of a host's time that it needs."""
        return self.per_second * self.latency_s / self.slots


def homes(demands: Mapping[str, Demand], hosts: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return the host at which each model's requests wait least, all of them at one host.

    Models are placed in order of their rates, and then moved as long as that shortens the expected
    waits of all requests. One model is taken to be awake at a time.

    Args:
        demands: The models.
        hosts: The models that each host has.

    Returns:
        Endpoints by model. Models that no host has are left out.
    """
    members: dict[str, list[Demand]] = {host: [] for host in hosts}
    found: dict[str, str] = {}
    ranked = sorted(demands, key=lambda name: (-demands[name].per_second, name))
    places = {name: _places(name, hosts) for name in ranked}
    for name in ranked:
        if places[name]:
            found[name] = best = min(places[name], key=lambda h: _added(members[h], demands[name]))
            members[best].append(demands[name])
    for _ in range(MOST_ROUNDS):
        moved = [_moves(name, demands, places[name], members, found) for name in found]
        if not any(moved):
            break
    return found


def _places(name: str, hosts: Mapping[str, Collection[str]]) -> list[str]:
    having = [host for host, models in hosts.items() if name in models]
    return sorted(having, key=lambda host: affinity(name, host))


def _moves(
    name: str,
    demands: Mapping[str, Demand],
    places: Sequence[str],
    members: dict[str, list[Demand]],
    found: dict[str, str],
) -> bool:
    """Move a model to a better host, if there is one."""
    demand, at = demands[name], found[name]
    members[at].remove(demand)
    best = min(places, key=lambda host: _added(members[host], demand))
    if _added(members[best], demand) >= _added(members[at], demand) - 1e-9:
        best = at
    members[best].append(demand)
    found[name] = best
    return best != at


def _added(members: Sequence[Demand], one: Demand) -> float:
    return _waiting([*members, one]) - _waiting(members)


def _waiting(members: Sequence[Demand]) -> float:
    """Return the mean number of requests that wait at a host with these models.

    Models that share a host take turns, as a server that polls lines: a request waits for half of a
    round of switches, which take the longer the more of the time is spent on requests.
    """
    load = sum(each.load for each in members)
    rate = sum(each.per_second for each in members)
    over_s = max(0.0, load - FULL) * 1000.0
    if len(members) < 2:
        return rate * over_s
    round_s = sum(each.cost_s for each in members)
    return rate * (round_s / (2 * (1 - min(load, FULL))) + over_s)
