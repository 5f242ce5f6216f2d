"""The room that the models of a group have: its memory, its hook lanes and its switch lock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from trio_util import RepeatedEvent

from llmux.policy.room import Amounts, Memory, Needs, less
from llmux.switching.lanes import Lanes
from llmux.switching.ledger import Hold, Ledger
from llmux.switching.memory import ALONE, GroupMemory
from llmux.switching.switchlock import SwitchLock

ONE = "#one"
"""The resource that each model fills where one is awake at a time."""


class Room:
    """Who may be awake beside whom in one group, and which hooks may run beside which.

    Args:
        changed: Set whenever a hook may have become ready to start.

    Attributes:
        shared: The memory that models share; None where one of them is awake at a time.
        memory: The memory as policies see it. There a model with a `stop` hook needs nothing
            asleep, since it can always be stopped.
        ledger: Who holds what of the memory.
        lanes: Which hooks run.
        lock: Which models the running commands move.
    """

    def __init__(self, changed: RepeatedEvent) -> None:
        self.shared: GroupMemory | None = None
        self.lanes = Lanes(changed)
        self.lock = SwitchLock()
        self.memory = _for_one(())
        self.ledger = Ledger(self.memory)

    def use(
        self, shared: GroupMemory | None, models: Iterable[str], stops: Callable[[str], bool]
    ) -> None:
        """Use this memory for these models from now on.

        Args:
            shared: See `Room.shared`.
            models: All models of the group, also those that leave it once they sleep.
            stops: Returns whether a model has a `stop` hook.
        """
        self.shared = shared
        models = list(models)
        real = _for_one(models) if shared is None else shared.memory
        needs = {name: real.needs.get(name) or self._kept(name, real) for name in models}
        real = self._with_alone(Memory(real.resources, real.amounts, needs), real.needs)
        self.ledger.renew(real)
        for name in models:
            if self.is_stopped(name) and not stops(name):  # once it wakes, it will sleep again
                self.ledger.find(name, Hold.ASLEEP)
        zero = (0,) * len(real.amounts)
        shown = {
            name: Needs(each.awake, zero, each.starting, each.starting) if stops(name) else each
            for name, each in real.needs.items()
        }
        self.memory = Memory(real.resources, real.amounts, shown)

    def _kept(self, model: str, memory: Memory) -> Needs:
        """Return what a model that leaves the config still needs, where resources have changed.

        Of those that only llmux counts, it needs as much as any model may, so that none wakes
        beside it that could not before.
        """
        known = self.ledger.memory
        needs = known.needs.get(model)
        if needs is None:
            return Needs.of((0,) * len(memory.amounts))

        def carry(amounts: Amounts, own: int = 1) -> Amounts:
            by_name = dict(zip(known.resources, amounts, strict=True))
            names = memory.resources
            return tuple(own if n.startswith("#") else by_name.get(n, 0) for n in names)

        asleep = carry(needs.asleep, 0)
        return Needs(carry(needs.awake), asleep, carry(needs.moving), carry(needs.starting))

    def _with_alone(self, memory: Memory, known: Collection[str]) -> Memory:
        """Return memory in which models that leave the config are awake alone, if they were before.

        Args:
            memory: What all models need.
            known: The models in the config.
        """
        alone = {name for name in memory.needs if name not in known and self._was_alone(name)}
        if not alone or ONE in memory.resources:
            return memory
        if ALONE not in memory.resources:
            memory = _with_units(memory)
        at = memory.resources.index(ALONE)
        most = memory.amounts[at]

        def fill(amounts: Amounts) -> Amounts:
            return (*amounts[:at], most, *amounts[at + 1 :])

        filled = {
            name: Needs(fill(each.awake), each.asleep, fill(each.moving), fill(each.starting))
            for name, each in memory.needs.items()
            if name in alone
        }
        return Memory(memory.resources, memory.amounts, {**memory.needs, **filled})

    def _was_alone(self, model: str) -> bool:
        """Return whether nothing could be awake beside a model until now."""
        known = self.ledger.memory
        if model not in known.needs:
            return False
        rows = zip(known.resources, known.needs[model].awake, known.amounts, strict=True)
        return any(name in {ONE, ALONE} and need == most for name, need, most in rows)

    def touches(self, model: str) -> frozenset[str]:
        """Return the resources that no other hook may touch while one of this model runs."""
        if self.shared is not None and self.shared.overlapping_hooks:
            return frozenset()
        return self.hook_resources(model)

    def hook_resources(self, model: str) -> frozenset[str]:
        """Return the resources that a model's hooks touch."""
        if self.shared is None:
            return frozenset({ONE})
        # All for a model that has left the config.
        return self.shared.touches.get(model, frozenset(self.shared.memory.resources))

    def fit(self, models: Sequence[str], *, wakes: str | None = None) -> bool:
        """Return whether models may be awake together.

        Args:
            models: Their names.
            wakes: The one of them that wakes last; None if all are awake.
        """
        known = self.memory.needs
        free = self.memory.amounts
        for name, needs in known.items():
            if name not in models:
                held = needs.asleep
            else:
                held = needs.moving if name == wakes else needs.awake
            free = less(free, held)
        return min(free) >= 0

    def is_stopped(self, model: str) -> bool:
        """Return whether a model's `stop` hook has run since it fell asleep."""
        return self.ledger.hold(model) is Hold.STOPPED


def _with_units(memory: Memory) -> Memory:
    """Return memory with one unit of `ALONE` for each model, which it holds unless it sleeps."""

    def add(amounts: Amounts, own: int = 1) -> Amounts:
        return (*amounts, own)

    needs = {
        name: Needs(add(each.awake), add(each.asleep, 0), add(each.moving), add(each.starting))
        for name, each in memory.needs.items()
    }
    return Memory((*memory.resources, ALONE), (*memory.amounts, len(needs)), needs)


def _for_one(models: Iterable[str]) -> Memory:
    return Memory((ONE,), (1,), dict.fromkeys(models, Needs.of((1,))))
