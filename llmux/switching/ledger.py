"""The ledger of shared memory: what each model holds, and what running commands are promised.

Invariant: of every resource, what all models hold is at most its amount. No step of llmux's can
break it: memory is taken before a hook starts, by a method that checks, and given back by one that
is called when sleep is verified. Only what llmux finds can (`find`, `renew`): a server that was
left awake, or a config with less memory. Then nothing wakes until enough has been put to sleep.

Commands form a queue. A switch is planned only if its target will fit once it and all before it
have ended. It may begin its wake once there is enough free memory, and every earlier command will
still find what it needs. So a switch waits only for its own evictions and for earlier commands:
there is no cycle, and memory that was freed for one goes to no later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from llmux.policy.room import Amounts, Memory, covers, less, more, total


class Hold(Enum):
    """Which of its needs a model holds."""

    STOPPED = "stopped"
    """None: its `stop` hook has run since its sleep."""
    ASLEEP = "asleep"
    FALLING = "falling"
    """Those of a sleep hook that runs."""
    AWAKE = "awake"
    WAKING = "waking"
    STARTING = "starting"
    """Those of a wake hook that runs after a stop."""
    UNSURE = "unsure"
    """All that it may need: a killed llmux was putting it to sleep, stopping or waking it."""


@dataclass(eq=False)
class Plan:
    """A command that has not begun to wake its target, or that wakes none.

    Attributes:
        target: The model to wake; empty to put models to sleep only.
        evict: The models that have to sleep first.
        stop: The models that have to be stopped, to give back what they need asleep: some that
            sleep, and some of `evict`.
        is_forced: True if it goes on even if there is not enough for what is asleep then.
    """

    target: str
    evict: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    is_forced: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """All models that it moves, each once."""
        return tuple(dict.fromkeys(filter(None, (self.target, *self.evict, *self.stop))))


class Ledger:
    """Who holds how much of the memory that models share.

    Attributes:
        memory: The amounts and needs.
        plans: The commands that wait for memory, in order.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.plans: list[Plan] = []
        self._holds = dict.fromkeys(memory.needs, Hold.ASLEEP)
        self._held: dict[str, Amounts] = {}
        self._free = memory.amounts
        self.renew(memory)
        if not covers(self._free, self._zero):
            raise ValueError("the sleeping models alone need more than there is")

    @property
    def free(self) -> Amounts:
        """What no model holds now; negative where more is held than there is."""
        return self._free

    @property
    def is_overcommitted(self) -> bool:
        """True if more is held than there is, even once all planned commands have ended."""
        return min(self.projected(), default=0) < 0

    def hold(self, model: str) -> Hold:
        """Return which of its needs a model holds."""
        return self._holds[model]

    def held(self, model: str) -> Amounts:
        """Return what a model holds."""
        return self._held[model]

    def projected(self, without: Plan | None = None) -> Amounts:
        """Return what will be free once all planned commands (but one) have ended."""
        free = self._free
        for plan in self.plans:
            if plan is not without:
                free = self._after(plan, free)
        return free

    def missing(self, target: str, *, without: Plan | None = None) -> Amounts:
        """Return what is missing for a model, of each resource; 0 or less where there is enough."""
        return less(self._to_wake(target), self.projected(without))

    def freed(self, model: str) -> Amounts:
        """Return what the sleep of a model gives back; nothing if it is stopped, or was removed."""
        if model not in self._held or self._holds[model] is Hold.STOPPED:
            return self._zero
        return less(self._held[model], self.memory.needs[model].asleep)

    # ---- Plans ----

    def plan(
        self,
        target: str,
        evict: Iterable[str],
        stoppable: Iterable[str] = (),
        *,
        is_forced: bool = False,
    ) -> Plan:
        """Plan a command behind all others.

        Args:
            target: The model to wake, or empty.
            evict: The models to put to sleep.
            stoppable: Models that may be stopped, if what they need asleep is lacking; those
                to be stopped first come first.
            is_forced: See `Plan`.

        Raises:
            ValueError: Its target would not fit, or a model is part of another command.
        """
        plan = Plan(target, tuple(evict), is_forced=is_forced)
        if taken := self.planned.intersection(plan.models):
            raise ValueError(f"{target}: part of another switch: {taken}")
        self.plans.append(plan)
        for model in stoppable:
            if self.is_possible(plan):
                break
            if any(self.memory.needs[model].asleep) and model not in self.planned - {
                *plan.evict,
                target,
            }:
                plan.stop = (*plan.stop, model)
        self._spare_stops(plan)
        if not self.is_possible(plan):
            self.plans.remove(plan)
            raise ValueError(f"{target} does not fit even without {', '.join(plan.evict)}")
        return plan

    def _spare_stops(self, plan: Plan) -> None:
        """Leave out models whose stop does not help a plan, if it is possible."""
        for model in plan.stop[-2::-1]:  # without the last one, it was not possible
            before = plan.stop
            plan.stop = tuple(name for name in before if name != model)
            if not self.is_possible(plan):
                plan.stop = before

    def plan_stop(self, model: str) -> Plan:
        """Plan to stop a model that sleeps, behind all others."""
        plan = Plan("", stop=(model,))
        self.plans.append(plan)
        return plan

    def replan(self, old: Plan, evict: Iterable[str], stoppable: Iterable[str] = ()) -> Plan:
        """Plan other evictions for a switch, behind all others; it must not have to wait for them.

        Raises:
            ValueError: As for `plan`, or it would have to wait; the old plan stands.
        """
        place = self.plans.index(old)
        self.plans.remove(old)
        try:
            plan = self.plan(old.target, evict, stoppable)
            if not self._may_go_first(plan, *self._around(plan, self._free)):
                self.drop(plan)
                raise ValueError(f"{old.target} would wait for other switches")
        except ValueError:
            self.plans.insert(place, old)
            raise
        stopping = [model for model in old.stop if model not in old.evict]  # some have begun
        plan.stop = tuple(dict.fromkeys([*stopping, *plan.stop]))
        return plan

    @property
    def planned(self) -> set[str]:
        """The models of all plans."""
        return {name for each in self.plans for name in each.models}

    def is_possible(self, plan: Plan) -> bool:
        """Return whether there will be enough memory for a plan, behind all earlier ones.

        Always true, but after `find` or `renew`.
        """
        if plan.is_forced:
            return True
        free = before = self._free
        for each in (*self._before(plan), plan):
            before, free = self._around(each, free)
        return _suffices(before, free)

    def may_drop(self, plan: Plan) -> bool:
        """Return whether all other switches can still be carried out without this one."""
        left = self._free
        for each in self.plans:
            if each is not plan:
                before, left = self._around(each, left)
                if not _suffices(before, left):
                    return False
        return True

    def _may_go_first(self, plan: Plan, before: Amounts, left: Amounts) -> bool:
        """Return whether a plan may go before all earlier ones; see `_around`."""
        if not _suffices(before, left):
            return False
        for earlier in self._before(plan):
            before, left = self._around(earlier, left)
            if not _suffices(before, left):
                return False
        return True

    def drop(self, plan: Plan) -> None:
        """Forget a command that has ended or is given up; idempotent."""
        if plan in self.plans:
            self.plans.remove(plan)

    # ---- Hooks ----

    def may_wake(self, plan: Plan) -> bool:
        """Return whether the target may wake now, without taking what earlier switches need."""
        before = more(self._free, self._left_to(plan.target))
        return self._may_go_first(plan, before, less(self._free, self._wanted(plan)))

    def wake(self, plan: Plan) -> None:
        """Take the memory for the target's wake, which begins now."""
        assert self.may_wake(plan), plan
        self.plans.remove(plan)
        is_stopped = self._holds[plan.target] is Hold.STOPPED
        self._hold(plan.target, Hold.STARTING if is_stopped else Hold.WAKING)

    def woke(self, model: str) -> None:
        """Note that a wake has ended: what only the start needed is free."""
        self._hold(model, Hold.AWAKE)

    def may_sleep(self, model: str) -> bool:
        """Return whether there is room for what the model needs while it falls asleep."""
        before = more(self._free, self._doubt(model))
        extra = less(self.memory.needs[model].falling, self._held[model])
        return _suffices(before, less(self._free, extra))

    def sleep(self, model: str, *, is_forced: bool = False) -> None:
        """Take the memory for a sleep hook, which begins now, even if there is not enough."""
        assert is_forced or self.may_sleep(model), model
        if self._holds[model] is Hold.AWAKE:
            self._hold(model, Hold.FALLING, is_found=is_forced)
        elif self._holds[model] in {Hold.STARTING, Hold.UNSURE}:  # its wake has failed
            self._hold(model, Hold.WAKING, is_found=is_forced)

    def slept(self, model: str) -> None:
        """Give back a model's memory, now that its sleep is verified."""
        self._hold(model, Hold.ASLEEP, is_found=True)

    def stopped(self, model: str) -> None:
        """Give back also what a model needed asleep, now that it is stopped."""
        self._hold(model, Hold.STOPPED)

    # ---- What llmux finds ----

    def find(self, model: str, hold: Hold = Hold.AWAKE) -> None:
        """Note that a model may be awake, or waking, without asking whether it fits."""
        self._hold(model, hold, is_found=True)

    def renew(self, memory: Memory) -> None:
        """Use other amounts and needs; of models that are new, assume that they sleep."""
        self.memory = memory
        self._holds = {model: self._holds.get(model, Hold.ASLEEP) for model in memory.needs}
        self._held = {model: self._amounts(model, hold) for model, hold in self._holds.items()}
        self._free = memory.amounts
        for amounts in self._held.values():
            self._free = less(self._free, amounts)

    # ---- Sums ----

    @property
    def _zero(self) -> Amounts:
        return (0,) * len(self.memory.amounts)

    def _amounts(self, model: str, hold: Hold) -> Amounts:
        needs = self.memory.needs[model]
        match hold:
            case Hold.STOPPED:
                return self._zero
            case Hold.ASLEEP:
                return needs.asleep
            case Hold.FALLING:
                return needs.falling
            case Hold.AWAKE:
                return needs.awake
            case Hold.WAKING | Hold.UNSURE:
                return needs.moving
            case Hold.STARTING:
                return needs.starting

    def _hold(self, model: str, hold: Hold, *, is_found: bool = False) -> None:
        amounts, before = self._amounts(model, hold), self._held[model]
        self._free = less(more(self._free, before), amounts)
        self._holds[model], self._held[model] = hold, amounts
        is_enough = all(
            f >= 0 or a <= b for f, a, b in zip(self._free, amounts, before, strict=True)
        )
        assert is_found or is_enough, f"{model} holds more than there is: {self._free}"

    def _before(self, plan: Plan) -> Iterator[Plan]:
        for each in self.plans:
            if each is plan:
                return
            yield each

    def _around(self, plan: Plan, free: Amounts) -> tuple[Amounts, Amounts]:
        """Return what is free before and after a plan that begins with `free`.

        Before it, models that it evicts hold nothing asleep for certain: so it has to find room.
        Nor does its target hold anything awake, if its sleep was to end and has failed.
        """
        before = total(map(self._doubt, plan.evict), more(free, self._left_to(plan.target)))
        return before, self._after(plan, free)

    def _left_to(self, target: str) -> Amounts:
        """Return what a model that is not awake holds beside what it needs asleep."""
        if self._holds.get(target) in {None, Hold.STOPPED, Hold.ASLEEP, Hold.AWAKE}:
            return self._zero
        beside = less(self._held[target], self.memory.needs[target].asleep)
        return tuple(max(0, amount) for amount in beside)

    def _doubt(self, model: str) -> Amounts:
        """Return what a model holds only if it was put to sleep already, which is not known."""
        if self._holds.get(model) is not Hold.UNSURE:
            return self._zero
        needs = self.memory.needs[model]
        return less(needs.moving, needs.starting)

    def _after(self, plan: Plan, free: Amounts) -> Amounts:
        """Return what is free after a plan that begins with `free`."""
        for model in plan.evict:
            free = more(free, self.freed(model))
        for model in plan.stop:
            free = more(free, self._stopping_frees(model))
        return less(free, self._wanted(plan))

    def _stopping_frees(self, model: str) -> Amounts:
        """Return what a model gives back if it is stopped, beside what its sleep does."""
        if model not in self._held or self._holds[model] is Hold.STOPPED:
            return self._zero
        return self.memory.needs[model].asleep

    def _wanted(self, plan: Plan) -> Amounts:
        """Return what a switch's target has still to take."""
        if not plan.target:
            return self._zero
        if plan.target in plan.stop:
            return self.memory.needs[plan.target].starting
        return self._to_wake(plan.target)

    def _to_wake(self, model: str) -> Amounts:
        """Return what a model has still to take before its wake."""
        needs = self.memory.needs[model]
        is_stopped = self._holds[model] is Hold.STOPPED
        return less(needs.starting if is_stopped else needs.moving, self._held[model])


def _suffices(before: Amounts, after: Amounts) -> bool:
    """Return whether there is enough of each resource of which less is free than before."""
    return all(left >= 0 or left >= had for had, left in zip(before, after, strict=True))
