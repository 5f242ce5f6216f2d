"""Placement: which models have to leave the GPU so that another one fits.

Nothing else in llmux knows how many models a GPU holds. The rest of the switch evicts whatever the
placement names, and would work unchanged with room for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Placement(Protocol):
    """Says which evictions would make room. Pure: the same arguments, the same answer."""

    def evictions(self, target: str, holders: Sequence[str]) -> tuple[str, ...]:
        """Return the models to put to sleep before the target may wake, in this order.

        Args:
            target: The model that is to be awake.
            holders: The models that hold GPU memory, in the config's order; maybe the target, too.
        """
        ...


class OneAtATime:
    """Room for one model: everything else that holds GPU memory has to leave."""

    def evictions(self, target: str, holders: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in holders if name != target)
