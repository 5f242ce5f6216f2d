"""Ways to choose a host that know nothing of what hosts expect: what proxies offer.

The one that asks the hosts is in `llmux.simulate.expecting`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from llmux.fleet.choice import affinity
from llmux.simulate.fleet import Place

BALANCE = 1.25
"""Most load of a host under bounded hashing, as a multiple of the mean."""


class Blind:
    """A router that never looks at the hosts in between."""

    def look_at(self, until: float) -> float | None:  # noqa: ARG002
        return None

    def look(self, places: Sequence[Place], now: float) -> None:
        """Nothing to look at."""

    def note_sent(self, place: Place, model: str) -> None:
        """Nothing to remember."""


class RoundRobin(Blind):
    """Each host in turn."""

    def __init__(self) -> None:
        self._next = 0

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:  # noqa: ARG002
        self._next += 1
        first = self._next % len(places)
        return [place.index for place in (*places[first:], *places[:first])]


class LeastRequest(Blind):
    """Of two hosts drawn at random, the one with fewer requests: as Envoy's LEAST_REQUEST."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:  # noqa: ARG002
        drawn = self._rng.sample(places, len(places))
        first = sorted(drawn[:2], key=Place.active)
        return [place.index for place in (*first, *drawn[2:])]


class Hash(Blind):
    """A host of its own for each model, by rendezvous hashing: as Envoy's MAGLEV by model."""

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:  # noqa: ARG002
        ranked = sorted(places, key=lambda place: affinity(model, place.endpoint))
        return [place.index for place in ranked]


class BoundedHash(Hash):
    """As `Hash`, but hosts with more than their share of the load come last."""

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:
        ranked = super().order(places, model, now)
        active = {place.index: place.active() for place in places}
        most = math.ceil(BALANCE * (sum(active.values()) + 1) / len(places))
        return sorted(ranked, key=lambda index: active[index] >= most)


class Scorers(Blind):
    """The stock endpoint picker's scorers: a short queue, and the model awake, count alike."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:  # noqa: ARG002
        queued = {p.index: sum(each.waiters.count for each in p.models()) for p in places}
        least, most = min(queued.values()), max(queued.values())

        def score(place: Place) -> float:
            queue = (most - queued[place.index]) / (most - least) if most > least else 1.0
            is_awake = any(each.is_awake and each.name == model for each in place.models())
            return queue + is_awake

        drawn = self._rng.sample(places, len(places))
        return [place.index for place in sorted(drawn, key=score, reverse=True)]


class FixedHomes(Blind):
    """One host for each model, said beforehand: as routes with priorities.

    Args:
        homes: The index of each model's host.
    """

    def __init__(self, homes: Mapping[str, int]) -> None:
        self._homes = homes

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:  # noqa: ARG002
        home = self._homes[model]
        return sorted((place.index for place in places), key=lambda index: index != home)
