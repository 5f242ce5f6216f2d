"""The router of `llmux pick`, in a simulated fleet: `llmux.fleet.choose` on the hosts' outlooks."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llmux.fleet import HostView, choose
from llmux.simulate.fleet import Place
from llmux.simulate.fleet_hosts import Look, phases_of


@dataclass(frozen=True)
class Seeing:
    """How hosts are seen.

    Attributes:
        every_s: Interval between two outlooks; 0: at each arrival.
        at_changes: True if they also come as soon as a model's phase has changed.
    """

    every_s: float = 1.0
    at_changes: bool = True


class Picker:
    """What one picker knows."""

    def __init__(self) -> None:
        self.looks: dict[int, tuple[Look, float]] = {}
        self.sent = defaultdict[int, dict[str, int]](dict)

    def see(self, place: Place, look: Look, now: float) -> None:
        """Note a host's new outlook."""
        self.looks[place.index] = look, now
        self.sent[place.index] = {}

    def order(self, places: Sequence[Place], model: str, now: float) -> list[int]:
        views = [self._view(place, model) for place in places]
        indices = {place.endpoint: place.index for place in places}
        return [indices[endpoint] for endpoint in choose(views, model, now=now)]

    def _view(self, place: Place, model: str) -> HostView:
        look, seen_at = self.looks.get(place.index, (None, -math.inf))
        outlook = None if look is None else look.outlook(model)
        sent = self.sent[place.index]
        return HostView(endpoint=place.endpoint, outlook=outlook, seen_at=seen_at, sent=sent)


class ExpectedWait:
    """Sends each request where it is expected to be served first.

    Args:
        seeing: How hosts are seen.
        pickers: Number of pickers, which share nothing; each request comes to one at random.
        seed: Seed of that choice.
    """

    def __init__(self, seeing: Seeing = Seeing(), *, pickers: int = 1, seed: int = 0) -> None:
        self._seeing = seeing
        self._pickers = [Picker() for _ in range(pickers)]
        self._rng = random.Random(seed)  # noqa: S311
        self._asked = self._pickers[0]
        self._looked_at = -math.inf

    def look_at(self, until: float) -> float | None:
        every_s = self._seeing.every_s
        if not every_s:
            return None
        at = math.floor(until / every_s) * every_s  # earlier ones are outdated by then
        return at if at > self._looked_at else None

    def look(self, places: Sequence[Place], now: float) -> None:
        self._looked_at = now
        for place in places:
            self._see(place, now)

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:
        for place in places:
            if not self._seeing.every_s or (self._seeing.at_changes and self._has_moved(place)):
                self._see(place, now)
        self._asked = self._rng.choice(self._pickers)
        return self._asked.order(places, model, now)

    def note_sent(self, place: Place, model: str) -> None:
        sent = self._asked.sent[place.index]
        sent[model] = sent.get(model, 0) + 1

    def _see(self, place: Place, now: float) -> None:
        if place.host is None:
            for picker in self._pickers:
                picker.looks.pop(place.index, None)  # its connection is closed
        elif not place.is_frozen:
            look = Look(place.host, str(place.boot), now)
            for picker in self._pickers:
                picker.see(place, look, now)

    def _has_moved(self, place: Place) -> bool:
        seen = self._pickers[0].looks.get(place.index)
        if place.host is None or seen is None:
            return (place.host is None) != (seen is None)
        return not place.is_frozen and phases_of(place.host) != seen[0].phases
