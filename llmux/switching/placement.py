"""Placement: which models have to leave the GPU so that another one fits.

Only this module knows how many models a GPU holds. The rest of the switch evicts the models that
the placement names, and would work unchanged with room for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Placement(Protocol):
    """Names the evictions that make room for a model. Implementations are pure functions."""

    def evictions(self, target: str, holders: Sequence[str]) -> tuple[str, ...]:
        """Return the models to put to sleep before the target may wake, in this order.

        Args:
            target: The model to wake.
            holders: The models that hold GPU memory, in the config's order; may include the target.
        """
        ...


class OneAtATime:
    """Room for one model: all others that hold GPU memory have to leave."""

    def evictions(self, target: str, holders: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in holders if name != target)
