"""The memory that models of a group share: who holds it, and to whom it is promised."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import Shape

Holding = Literal["awake", "waking", "falling", "asleep"]


class HeldMemory(Shape, frozen=True, rename={"holding": "as"}):
    """Memory that a model holds.

    Attributes:
        model: The model.
        bytes: How much.
        holding: awake: it is awake or drains. waking: its wake hook runs, or has failed. falling:
            it is being put to sleep. asleep: it sleeps.
    """

    model: str
    bytes: int
    holding: Holding


class PromisedMemory(Shape, frozen=True):
    """Memory that a switch will take once its evictions have given back enough.

    Attributes:
        model: The model that it wakes.
        bytes: How much it takes beside what the model holds now.
        evicts: The models that it puts to sleep.
    """

    model: str
    bytes: int
    evicts: list[str]


class ResourceMemory(Shape, frozen=True):
    """A resource that the models of a group share.

    Attributes:
        resource: Its name.
        amount: How much there is, in bytes.
        free: What no model holds, in bytes; negative: they hold more than there is, as after a
            reload.
        held: Who holds how much, in the config's order.
        promised: Who is promised how much, in the order of the switches.
    """

    resource: str
    amount: int
    free: int
    held: list[HeldMemory]
    promised: list[PromisedMemory]


class MemoryChange(Shape, frozen=True):
    """Memory, for the groups where it has changed.

    Attributes:
        at: When.
        groups: By group, all of its memory; empty: its models share none any more.
    """

    at: float
    groups: dict[str, list[ResourceMemory]]
