"""The memory that models share, as the control API and the metrics show it.

Only the user's resources are shown: those of llmux's own, which count models, begin with `#`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llmux.observe.clock import WallClock
from llmux.observe.schemas import (
    HeldMemory,
    Holding,
    MemoryChange,
    PromisedMemory,
    ResourceMemory,
)
from llmux.policy.room import Amounts, less
from llmux.switching.ledger import Hold, Ledger
from llmux.switching.memory import ALONE
from llmux.switching.overview import Overview
from llmux.switching.switcher import Switcher

HOLDING: dict[Hold, Holding] = {
    Hold.ASLEEP: "asleep",
    Hold.FALLING: "falling",
    Hold.AWAKE: "awake",
    Hold.WAKING: "waking",
}
"""A stopped model holds nothing."""


def memory_of(switcher: Switcher) -> list[ResourceMemory]:
    """Return the memory of a group; empty where one model is awake at a time."""
    room = switcher.room
    if room.shared is None:
        return []
    return [_resource(room.ledger, name) for name in room.shared.resources]


def _resource(ledger: Ledger, name: str) -> ResourceMemory:
    place = ledger.memory.resources.index(name)
    return ResourceMemory(
        resource=name,
        amount=ledger.memory.amounts[place],
        free=ledger.free[place],
        held=list(_held(ledger, place)),
        promised=list(_promised(ledger, place)),
    )


def _held(ledger: Ledger, place: int) -> Iterator[HeldMemory]:
    for model in ledger.memory.needs:
        size, holding = ledger.held(model)[place], HOLDING.get(ledger.hold(model))
        if size and holding is not None:
            yield HeldMemory(model=model, bytes=size, holding=holding)


def _promised(ledger: Ledger, place: int) -> Iterator[PromisedMemory]:
    for plan in ledger.plans:
        if plan.target in ledger.memory.needs:
            needs = ledger.memory.needs[plan.target].moving[place]
            more = needs - ledger.held(plan.target)[place]
            if more > 0:
                yield PromisedMemory(model=plan.target, bytes=more, evicts=list(plan.evict))


class NeedsByResource(NamedTuple):
    """What a model needs of the user's resources, in bytes; None: it is awake alone, or unknown."""

    awake: dict[str, int] | None = None
    asleep: dict[str, int] | None = None
    waking: dict[str, int] | None = None


def needs_of(switcher: Switcher, model: str) -> NeedsByResource:
    """Return what a model needs; nothing where one is awake at a time."""
    shared = switcher.room.shared
    if shared is None or model not in shared.memory.needs:
        return NeedsByResource()
    memory, needs = shared.memory, shared.memory.needs[model]

    def named(amounts: Amounts) -> dict[str, int]:
        sizes = dict(zip(memory.resources, amounts, strict=True))
        return {name: sizes[name] for name in shared.resources if sizes[name]}

    if _is_alone(memory.resources, less(memory.amounts, needs.awake)):
        return NeedsByResource(asleep=named(needs.asleep))
    return NeedsByResource(named(needs.awake), named(needs.asleep), named(needs.moving))


def _is_alone(resources: tuple[str, ...], left: Amounts) -> bool:
    return (ALONE, 0) in zip(resources, left, strict=True)


class MemoryFeed:
    """Looks for changes of memory, for event streams.

    Args:
        board: The switchers.
        clock: Gives the times.
    """

    def __init__(self, board: Overview, clock: WallClock) -> None:
        self._board = board
        self._clock = clock
        self._told: dict[str, list[ResourceMemory]] = {}

    def now(self) -> dict[str, list[ResourceMemory]]:
        """Return the memory of each group that shares any."""
        found = {name: memory_of(switcher) for name, switcher in self._board.groups.items()}
        return {name: memory for name, memory in found.items() if memory}

    def news(self) -> tuple[str, MemoryChange] | None:
        """Return the changes since the last call, or None."""
        now = self.now()
        changed = {name: memory for name, memory in now.items() if memory != self._told.get(name)}
        changed |= {name: [] for name in self._told if name not in now}
        self._told = now
        return ("memory", MemoryChange(at=self._clock.now(), groups=changed)) if changed else None
