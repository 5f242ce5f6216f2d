"""The ledger of shared memory: what each model holds, and what running switches are promised.

Invariant: of every resource, what all models hold is at most its amount. `Ledger` cannot be brought
into another state: memory is taken before a hook starts, by a method that checks, and given back by
one that is called when sleep is verified.

Switches form a queue. A switch is planned only if its target will fit once it and all before it
have ended. It may begin its wake once there is enough free memory, and every earlier switch will
still find what it needs. So a switch waits only for its own evictions and for earlier switches:
there is no cycle, and memory that was freed for a switch goes to no later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmux.policy.room import Amounts, Memory, covers, less, more


@dataclass(eq=False)
class Plan:
    """A switch that has not begun to wake its target.

    Attributes:
        target: The model to wake.
        evict: The models that have to sleep first.
    """

    target: str
    evict: tuple[str, ...] = ()


class Ledger:
    """Who holds how much of the memory that models share.

    Attributes:
        memory: The amounts and needs.
        plans: The switches that wait for memory, in order.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.plans: list[Plan] = []
        self._held = {model: needs.asleep for model, needs in memory.needs.items()}
        self._free = memory.amounts
        for amounts in self._held.values():
            self._free = less(self._free, amounts)
        if not covers(self._free, (0,) * len(self._free)):
            raise ValueError("the sleeping models alone need more than there is")

    @property
    def free(self) -> Amounts:
        """What no model holds now."""
        return self._free

    def projected(self, without: Plan | None = None) -> Amounts:
        """Return what will be free once all planned switches (but one) have ended."""
        free = self._free
        for plan in self.plans:
            if plan is not without:
                free = less(more(free, self._leaving(plan)), self._wanted(plan))
        return free

    def missing(self, target: str, *, without: Plan | None = None) -> Amounts:
        """Return what is missing for a model, of each resource; 0 or less where there is enough."""
        needs, held = self.memory.needs[target], self._held[target]
        return less(less(needs.moving, held), self.projected(without))

    def freed(self, model: str) -> Amounts:
        """Return what the sleep of a model gives back."""
        return less(self._held[model], self.memory.needs[model].asleep)

    # ---- Changes ----

    def plan(self, target: str, evict: Iterable[str]) -> Plan:
        """Plan a switch behind all others.

        Raises:
            ValueError: Its target would not fit, or a model is part of another switch.
        """
        plan = Plan(target, tuple(evict))
        taken = {name for each in self.plans for name in (each.target, *each.evict)}
        if taken & {target, *plan.evict}:
            raise ValueError(f"{target}: part of another switch: {taken & {target, *plan.evict}}")
        self.plans.append(plan)
        if not covers(self._at_its_wake(plan), (0,) * len(self._free)):
            self.plans.remove(plan)
            raise ValueError(f"{target} does not fit even without {', '.join(plan.evict)}")
        return plan

    def may_drop(self, plan: Plan) -> bool:
        """Return whether all other switches can still be carried out without this one."""
        left, zero = self._free, (0,) * len(self._free)
        for each in self.plans:
            if each is not plan:
                left = less(more(left, self._leaving(each)), self._wanted(each))
                if not covers(left, zero):
                    return False
        return True

    def drop(self, plan: Plan) -> None:
        """Forget a switch that is given up."""
        self.plans.remove(plan)

    def may_wake(self, plan: Plan) -> bool:
        """Return whether the target may wake now, without taking what earlier switches need."""
        left = less(self._free, self._wanted(plan))
        if min(left) < 0:
            return False
        for earlier in self._before(plan):
            left = less(more(left, self._leaving(earlier)), self._wanted(earlier))
            if min(left) < 0:
                return False
        return True

    def wake(self, plan: Plan) -> None:
        """Take the memory for the target's wake, which begins now."""
        assert self.may_wake(plan), plan
        self.plans.remove(plan)
        self._hold(plan.target, self.memory.needs[plan.target].moving)

    def woke(self, model: str) -> None:
        """Note that a wake has ended: what only the start needed is free."""
        self._hold(model, self.memory.needs[model].awake)

    def may_sleep(self, model: str) -> bool:
        """Return whether there is room for what the model needs while it falls asleep."""
        return covers(self._free, less(self.memory.needs[model].moving, self._held[model]))

    def sleep(self, model: str) -> None:
        """Take the memory for a sleep hook, which begins now."""
        assert self.may_sleep(model), model
        self._hold(model, self.memory.needs[model].moving)

    def slept(self, model: str) -> None:
        """Give back a model's memory, now that its sleep is verified."""
        self._hold(model, self.memory.needs[model].asleep)

    # ---- Sums ----

    def _hold(self, model: str, amounts: Amounts) -> None:
        self._free = less(more(self._free, self._held[model]), amounts)
        self._held[model] = amounts
        assert min(self._free) >= 0, f"{model} holds more than there is: {self._free}"

    def _before(self, plan: Plan) -> Iterator[Plan]:
        for each in self.plans:
            if each is plan:
                return
            yield each

    def _at_its_wake(self, plan: Plan) -> Amounts:
        """Return what is left when the target wakes, behind all earlier switches."""
        free = self._free
        for each in (*self._before(plan), plan):
            free = less(more(free, self._leaving(each)), self._wanted(each))
        return free

    def _leaving(self, plan: Plan) -> Amounts:
        """Return what a switch's evictions have still to give back."""
        amounts = (0,) * len(self._free)
        for model in plan.evict:
            amounts = more(amounts, self.freed(model))
        return amounts

    def _wanted(self, plan: Plan) -> Amounts:
        """Return what a switch's target has still to take."""
        return less(self.memory.needs[plan.target].moving, self._held[plan.target])
