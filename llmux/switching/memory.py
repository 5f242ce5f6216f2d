"""The memory that the models of a group share, by its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmux.policy.room import Memory


@dataclass(frozen=True)
class GroupMemory:
    """The memory of one group.

    Attributes:
        memory: Amounts and needs. The names of resources that only llmux counts, for `sets` and for
            models that are awake alone, begin with `#`; they follow the real ones.
        touches: The resources whose hooks run one at a time, by model.
        overlapping_hooks: True if hooks on one resource may overlap.
    """

    memory: Memory
    touches: Mapping[str, frozenset[str]]
    overlapping_hooks: bool = False
