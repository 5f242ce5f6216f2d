"""Places to work: at most so many models that use one resource have requests in flight at a time.

Models at work on one GPU slow each other down, so `busy` in the config limits their number. A model
that is awake but has no place keeps its requests in line. `llmux.switching.turns` has the rule, for
the simulator, too; this applies it to the models of the server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import trio

from llmux.policy.estimates import Estimates
from llmux.switching.core import ModelState
from llmux.switching.model import Model
from llmux.switching.turns import Turns


class Places:
    """The places of one group.

    Args:
        models: The group's models by name.
        uses: Returns the resources that a model uses.
        measures: Their latencies.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        uses: Callable[[str], frozenset[str]],
        measures: Estimates,
    ) -> None:
        self._models = models
        self._uses = uses
        self._measures = measures
        self._turns = Turns((), {})

    def use(self, limit: int | None) -> None:
        """Let this many models be at work on each resource; None for all.

        To be called whenever the group's models or their resources have changed.
        """
        self._turns = Turns(
            list(self._models.values()),
            {name: self._uses(name) for name in self._models},
            math.inf if limit is None else limit,
            self._latency_s,
            self._turns.began_at,
        )
        for model in self._models.values():
            model.may_work = self.may_work if limit is not None else None
        self.look()

    def may_work(self, model: Model) -> bool:
        """Return whether the next request of a model may be let in, as far as places go."""
        now = trio.current_time()
        oldest = model.waiters.oldest
        may_work = self._turns.may_admit(model, now if oldest is None else oldest, now)
        if may_work and not model.waiters.settling:
            self._turns.note_admitted(model, now)
        return may_work

    def look(self) -> None:
        """Let in the requests that may be let in now, the model with the oldest one first."""
        waiting = [m for m in self._models.values() if m.is_awake and m.waiters.count]
        for model in sorted(waiting, key=lambda m: m.waiters.oldest or 0.0):
            model.admit_more()

    def _latency_s(self, model: ModelState) -> float:
        return self._measures.latency_s(model.name, max(1, model.in_flight.in_use)) or 0.0
