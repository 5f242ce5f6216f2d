"""Turns: a cap on how many models that share a resource serve requests at once (`busy`).

Models at work on one GPU slow each other. With a cap, only so many of those that are awake serve
requests, and the requests for the others wait in line until their model has its turn:

1. A model is at work while requests are in flight on it. Its turn ends with the last of them.
2. An idle model may begin a turn if fewer models than the cap are at work on each of its resources.
3. Nobody is let in before an older request that waits for a turn on a resource of the same model.

So turns go by the age of the oldest request, and a model at work admits no more once one waits
elsewhere: it finishes what it has, and no turn lasts for ever. Nothing here waits, reads a clock
or emits events.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from llmux.switching.core import SERVES, ModelState


class Turns:
    """Says which requests may be let in.

    Args:
        models: The models of the group; those that share no resource may be among them.
        touches: The resources of each model; models that share none do not limit each other.
        most: How many models may be at work at once on a resource; infinity: all.
    """

    def __init__(
        self,
        models: Collection[ModelState],
        touches: Mapping[str, frozenset[str]],
        most: float = math.inf,
    ) -> None:
        self._models = models
        self._touches = touches
        self._most = most

    @property
    def are_limited(self) -> bool:
        """True if there is a cap."""
        return self._most != math.inf

    def may_admit(self, model: ModelState, arrived_at: float) -> bool:
        """Return whether a request that arrived then may be let in to a model that is awake."""
        if self._most == math.inf:
            return True
        return self._has_turn(model) and not any(
            other.oldest is not None and other.oldest < arrived_at
            for other in self._sharing_with(model)
            if _waits_for_a_turn(other)
        )

    def next(self) -> ModelState | None:
        """Return the model whose first request in line is to be let in next, if one may be."""
        ready = [
            model
            for model in self._models
            if model.is_awake
            and model.waiters.oldest is not None
            and model.room > 0
            and self.may_admit(model, model.waiters.oldest)
        ]
        return min(ready, key=_first_arrival, default=None)

    def _has_turn(self, model: ModelState) -> bool:
        if _is_at_work(model):
            return True
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
