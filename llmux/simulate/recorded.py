"""Shared memory as the journal records it: to write it down, and to simulate with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from llmux.observe.journal import SharedMemory
from llmux.policy.room import Amounts, Memory, Needs


def record_of(
    memory: Memory,
    touches: Mapping[str, Collection[str]],
    *,
    overlapping_hooks: bool,
    keep: Collection[str] = (),
    busy: float = math.inf,
) -> SharedMemory:
    """Return what the journal keeps of a group's memory."""

    def named(amounts: Amounts) -> dict[str, int]:
        pairs = zip(memory.resources, amounts, strict=True)
        return {name: amount for name, amount in pairs if amount}

    needs = memory.needs.items()
    return SharedMemory(
        resources=dict(zip(memory.resources, memory.amounts, strict=True)),
        awake={model: named(each.awake) for model, each in needs},
        asleep={model: named(each.asleep) for model, each in needs if any(each.asleep)},
        waking={
            model: named(each.moving)
            for model, each in needs
            if each.moving != tuple(map(max, each.awake, each.asleep))
        },
        touches={model: sorted(names) for model, names in touches.items()},
        overlapping_hooks=overlapping_hooks,
        keep=sorted(keep),
        busy=None if busy == math.inf else int(busy),
    )


def memory_of_record(record: SharedMemory, models: Iterable[str]) -> Memory:
    """Return the memory of a group for these models.

    A model of which the record says nothing, since it was removed, is awake alone. So is one that
    needs more than there is, since resources have shrunk: it needs all of that resource.
    """
    resources = tuple(record.resources)
    amounts = tuple(record.resources.values())

    def amounts_of(needs: Mapping[str, int]) -> Amounts:
        return tuple(min(needs.get(name, 0), most) for name, most in record.resources.items())

    def needs_of(model: str) -> Needs:
        if model not in record.awake:
            return Needs.of(amounts)
        return Needs.of(
            amounts_of(record.awake[model]),
            amounts_of(record.asleep.get(model, {})),
            amounts_of(record.waking.get(model, {})),
        )

    return Memory(resources, amounts, {model: needs_of(model) for model in models})


def touches_of_record(record: SharedMemory, models: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return the resources that these models' hooks touch; of unknown ones, all."""
    everything = frozenset(record.resources)
    return {
        model: frozenset(record.touches[model]) if model in record.touches else everything
        for model in models
    }
