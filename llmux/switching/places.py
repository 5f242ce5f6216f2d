"""Places to work: at most so many models that use one resource have requests in flight at a time.

Models at work on one GPU slow each other down, so `busy` in the config limits their number. A model
that is awake but has no place keeps its requests in line. Places go round by age: a model at work
lets nobody in while an older request waits for a place that it could give up, and a free place goes
to the model whose first request is the oldest. So none waits for longer than the requests in flight
of the others take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from llmux.switching.model import Model


class Places:
    """The places of one group.

    Args:
        models: The group's models by name.
        uses: Returns the resources that a model uses.

    Attributes:
        limit: Number of models that may be at work on each resource; infinity: any.
    """

    def __init__(self, models: Mapping[str, Model], uses: Callable[[str], frozenset[str]]) -> None:
        self.limit = math.inf
        self._models = models
        self._uses = uses

    def use(self, limit: int | None) -> None:
        """Apply another limit; None for none."""
        self.limit = math.inf if limit is None else limit
        for model in self._models.values():
            model.may_work = self.may_work if limit is not None else None
        self.look()

    def may_work(self, model: Model) -> bool:
        """Return whether the next request of a model may be let in, as far as places go."""
        mine = self._uses(model.name)
        rivals = [m for m in self._models.values() if m is not model and self._uses(m.name) & mine]
        before = [m for m in rivals if _waits(m) and _oldest(m) < _oldest(model)]
        if _works(model):
            return not before
        for resource in mine:
            there = [m for m in rivals if resource in self._uses(m.name)]
            taken = sum(map(_works, there)) + sum(m in before for m in there)
            if taken >= self.limit:
                return False
        return True

    def look(self) -> None:
        """Let in the requests that may be let in now, the model with the oldest one first."""
        for model in sorted(_with_line(self._models.values()), key=_oldest):
            model.admit_more()


def _with_line(models: Iterable[Model]) -> list[Model]:
    return [model for model in models if model.is_awake and model.waiters.count]


def _works(model: Model) -> bool:
    return model.in_flight.in_use > 0 or model.waiters.settling > 0


def _waits(model: Model) -> bool:
    """Return whether a model that is awake waits for a place."""
    return model.is_awake and model.waiters.count > 0 and not _works(model)


def _oldest(model: Model) -> float:
    """Return when the first request in line arrived; infinity for one that arrives now."""
    oldest = model.waiters.oldest
    return math.inf if oldest is None else oldest
