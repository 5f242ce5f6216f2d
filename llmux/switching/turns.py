"""Turns: a cap on how many models that share a resource serve requests at once (`busy`).

Models at work on one GPU slow each other. With a cap, only so many of those that are awake serve
requests, and the requests for the others wait in line until their model has its turn:

1. A model is at work while requests are in flight on it. Its turn ends with the last of them.
2. An idle model may begin a turn if fewer models than the cap are at work on each of its resources,
   and no older request waits for a turn on one of them. So turns go by the age of the oldest
   request.
3. A turn serves all who were in line when it began, and lets in others until a request that waits
   for a turn on one of its resources has waited for as long as the model takes for one of its own.
   Then it finishes what it has: no turn lasts for ever, and a turn is worth its end, during which
   fewer and fewer requests are at work.

Nothing here waits, reads a clock or emits events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from llmux.switching.core import SERVES, ModelState

NONE: Mapping[str, float] = MappingProxyType({})


class Turns:
    """Says which requests may be let in.

    Args:
        models: The models of the group; those that share no resource may be among them.
        touches: The resources of each model; models that share none do not limit each other.
        most: How many models may be at work at once on a resource; infinity: all.
        latency_s: Returns the time that a model takes for a request with its present number in
            flight, in seconds; 0 if that is not known.
        began_at: When the last turn of each model began, of earlier turns with other settings.
    """

    def __init__(
        self,
        models: Collection[ModelState],
        touches: Mapping[str, frozenset[str]],
        most: float = math.inf,
        latency_s: Callable[[ModelState], float] = lambda _model: 0.0,
        began_at: Mapping[str, float] = NONE,
    ) -> None:
        self._models = models
        self._touches = touches
        self._most = most
        self._latency_s = latency_s
        self._began_at = dict(began_at)

    @property
    def began_at(self) -> Mapping[str, float]:
        """When the last turn of each model began."""
        return self._began_at

    @property
    def are_limited(self) -> bool:
        """True if there is a cap."""
        return self._most != math.inf

    def note_admitted(self, model: ModelState, now: float) -> None:
        """Note that a request is about to be let in, which may begin a turn."""
        if self._most != math.inf and not model.in_flight.in_use:
            self._began_at[model.name] = now

    def may_admit(self, model: ModelState, arrived_at: float, now: float) -> bool:
        """Return whether a request that arrived then may be let in to a model that is awake."""
        if self._most == math.inf:
            return True
        others = [o for o in self._sharing_with(model) if _waits_for_a_turn(o)]
        if not _is_at_work(model):
            is_next = all(_first_arrival(other) >= arrived_at for other in others)
            return is_next and self._has_room(model)
        if arrived_at <= self._began_at.get(model.name, -math.inf):
            return True
        patience_s = self._latency_s(model)
        return all(now - _first_arrival(other) < patience_s for other in others)

    def next(self, now: float) -> ModelState | None:
        """Return the model whose first request in line is to be let in next, if one may be."""
        ready = [
            model
            for model in self._models
            if model.is_awake
            and model.waiters.count
            and model.room > 0
            and self.may_admit(model, _first_arrival(model), now)
        ]
        return min(ready, key=_first_arrival, default=None)

    def _has_room(self, model: ModelState) -> bool:
        """Return whether fewer than the cap are at work on each of the model's resources."""
        at_work = [other for other in self._sharing_with(model) if _is_at_work(other)]
        return all(
            sum(resource in self._touches_of(other) for other in at_work) < self._most
            for resource in self._touches_of(model)
        )

    def _sharing_with(self, model: ModelState) -> list[ModelState]:
        own = self._touches_of(model)
        return [
            other
            for other in self._models
            if other is not model and not own.isdisjoint(self._touches_of(other))
        ]

    def _touches_of(self, model: ModelState) -> frozenset[str]:
        return self._touches.get(model.name, frozenset())


def _is_at_work(model: ModelState) -> bool:
    # A granted request that has not settled yet counts, as it does for slots.
    return model.phase in SERVES and bool(model.in_flight.in_use or model.waiters.settling)


def _waits_for_a_turn(model: ModelState) -> bool:
    return model.is_awake and bool(model.waiters.count) and not _is_at_work(model)


def _first_arrival(model: ModelState) -> float:
    assert model.waiters.oldest is not None
    return model.waiters.oldest
