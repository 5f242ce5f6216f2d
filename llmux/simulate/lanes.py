"""Hook lanes: hooks of models that touch the same resource run one at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

NOTHING: frozenset[str] = frozenset()


class Lanes:
    """The hooks that run.

    Args:
        touches: The resources that the hooks of each model touch; hooks of models that are not
            named touch none.
        at_once: How many hooks may run at once, whatever they touch.
    """

    def __init__(self, touches: Mapping[str, frozenset[str]], at_once: float = math.inf) -> None:
        self._touches = touches
        self._at_once = at_once
        self._running: list[str] = []

    @property
    def are_full(self) -> bool:
        """True if no hook may start, whatever it touches."""
        return len(self._running) >= self._at_once

    @property
    def are_empty(self) -> bool:
        """True if no hook runs."""
        return not self._running

    def touched_by(self, model: str) -> AbstractSet[str]:
        """Return the resources that a model's hooks touch."""
        return self._touches.get(model, NOTHING)

    def are_free_for(self, model: str) -> bool:
        """Return whether a hook of the model may start."""
        own = self.touched_by(model)
        return not self.are_full and all(
            own.isdisjoint(self.touched_by(other)) for other in self._running
        )

    def enter(self, model: str) -> None:
        """Note that a hook of the model starts."""
        self._running.append(model)

    def leave(self, model: str) -> None:
        """Note that a hook of the model has ended."""
        self._running.remove(model)
