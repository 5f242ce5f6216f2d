"""Places commands: chooses what they evict, reserves their memory and locks their models.

All of it is synchronous, so that a command is either placed as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from llmux.policy.evictions import Evictions
from llmux.policy.room import Amounts, less, total
from llmux.policy.shared import Shared
from llmux.switching.commands import BringDown, Command, Stop, Wake
from llmux.switching.group import Group
from llmux.switching.hooks import ModelHooks
from llmux.switching.ledger import Hold, Plan
from llmux.switching.model import Model, Phase
from llmux.switching.running import Eviction, Running
from llmux.switching.views import view_of

HooksOf = Callable[[Model], ModelHooks]


class Placer:
    """Places the commands of one group.

    Args:
        group: The group.
        hooks_of: Returns a model's current hooks, for all steps of a command that starts now.
    """

    def __init__(self, group: Group, hooks_of: HooksOf) -> None:
        self._group = group
        self._hooks_of = hooks_of
        self._evictions = Evictions()

    def place(self, command: Command) -> Running | None:
        """Return a command that may begin, with its models locked; None if it has to wait.

        Not earlier than just before it begins: other models may hold memory now than when it was
        queued.
        """
        plan = self._plan(command)
        if plan is None:
            return None
        running = Running(command, plan)
        running.evictions = {name: self._eviction(name) for name in plan.evict}
        self._group.running.append(running)
        self.lock(running)
        return running

    def end(self, running: Running) -> None:
        """Unlock a command's models and give up what it was promised; idempotent."""
        group = self._group
        group.room.ledger.drop(running.plan)
        group.switch_lock.release(running)
        group.running = [each for each in group.running if each is not running]
        for each in group.running:
            each.is_fixed = False  # there may be room now
        group.changed.set()

    def lock(self, running: Running) -> None:
        """Lock the models that a command still moves."""
        group = self._group
        has_others = any(each is not running for each in group.running)
        if not group.shares_memory and not has_others:  # else a reload has just changed that
            group.switch_lock.take(running)
            return
        models = {running.target.name} | {n for n, e in running.evictions.items() if not e.is_over}
        if running.plan in group.room.ledger.plans:
            models |= {*running.plan.models}
        group.switch_lock.take(running, models)

    def replan(self, running: Running, evict: Iterable[str]) -> bool:
        """Let a running switch evict other models; return whether that was possible."""
        group, old = self._group, running.plan
        if running.failure is not None or not running.draining:
            return False  # it is about to end, or to wake its target
        # One that sleeps already may have been removed since.
        evict = [name for name in evict if name in group.models]
        if not all(self._may_leave(name, running) for name in evict):
            return False
        try:
            plan = group.room.ledger.replan(old, evict, self._stoppable(old.target, evict))
        except ValueError:
            return False
        new = [self._eviction(name) for name in running.replace(plan)]
        running.evictions |= {each.model.name: each for each in new}
        self.lock(running)
        if running.begin is not None:
            fresh = [name for name in plan.stop if name not in old.stop]
            evictions = running.evictions
            stops = [n for n in fresh if n not in evictions or evictions[n].is_over]
            for eviction in new:
                running.begin(eviction)
            for name in stops:
                running.begin(group.models[name])
        group.changed.set()  # for what is called off
        return True

    def _may_leave(self, name: str, running: Running) -> bool:
        """Return whether a running switch may evict a model, or does already."""
        own = running.evictions.get(name)
        if own is not None and not own.is_called_off:
            return True
        return self._group.models[name].is_awake and not self._is_taken(name)

    def has_stranded(self, running: Running) -> bool:
        """Return whether a switch has to evict models that were found to hold memory.

        A reload may have added one that an earlier llmux had left awake.
        """
        return any(True for _ in self._found(running))

    def add_stranded(self, running: Running) -> None:
        """Let a switch evict these, too."""
        if names := list(self._found(running)):
            running.plan.evict = (*running.plan.evict, *names)
            running.evictions |= {name: self._eviction(name) for name in names}
            self.lock(running)

    def _found(self, running: Running) -> Iterator[str]:
        for model in self._stranded(running.target, self._group.room.ledger.projected()):
            if model.name not in running.plan.evict and not self._is_taken(model.name, running):
                yield model.name

    def in_the_way_of_sleep(self, model: Model) -> list[Model]:
        """Return the models to stop so that there is memory for what this one needs asleep.

        Call it only while no command runs.
        """
        plan = self._planned("", (model.name,))
        if plan is None:
            return []
        self._group.room.ledger.drop(plan)
        return [self._group.models[name] for name in plan.stop if name != model.name]

    # ---- What a command evicts ----

    def _plan(self, command: Command) -> Plan | None:
        group, target = self._group, command.target
        if self._is_taken(target.name):
            return None
        if isinstance(command, Stop):
            return self._group.room.ledger.plan_stop(target.name)
        wakes = isinstance(command, Wake) and self._is_known(target) and not target.is_awake
        if not wakes:
            is_down = isinstance(command, BringDown)
            sleeps = self._is_known(target) and not isinstance(command, Wake)
            sleeps = sleeps and (target.is_awake if is_down else target.holds_gpu)
            return self._planned("", (target.name,) if sleeps else (), is_forced=is_down)
        assert isinstance(command, Wake)
        if not group.shares_memory:
            holders = (m.name for m in group.models.values() if m.holds_gpu and m is not target)
            return self._planned(target.name, tuple(holders))
        named = command.evict or self._choose(target, by_operator=command.stands)
        if named is None:
            return None
        ledger, zero = group.room.ledger, (0,) * len(group.room.memory.amounts)
        free = total(map(ledger.freed, named), less(zero, ledger.missing(target.name)))
        stranded = self._stranded(target, free)
        names = (model.name for model in stranded if not self._is_taken(model.name))
        return self._planned(target.name, tuple(dict.fromkeys([*names, *named])))

    def _planned(
        self, target: str, evict: Sequence[str], *, is_forced: bool = False
    ) -> Plan | None:
        if any(map(self._is_taken, evict)):
            return None
        stoppable = self._stoppable(target, evict)
        try:
            return self._group.room.ledger.plan(target, evict, stoppable, is_forced=is_forced)
        except ValueError:
            return None

    def _choose(self, target: Model, *, by_operator: bool) -> Sequence[str] | None:
        """Return the models to evict that have the least at stake, or None if none make room.

        For an operator, models that are kept or pinned leave, too, if there is no other way, also
        not once what runs now has ended.
        """
        spares_none = by_operator and not self._group.running
        for spares_kept in (True, False) if spares_none else (True,):
            view = view_of(self._group, spares_kept=spares_kept)
            if view.room is None or (shown := view.models.get(target.name)) is None:
                continue
            options = Shared(view, view.room, self._evictions).options(shown)
            if options:
                return [each.name for each in options[0].evict]
        return None

    def _stranded(self, target: Model, free: Amounts) -> list[Model]:
        """Return the models that hold memory though not awake, and that a wake would meet.

        Args:
            target: The model to wake.
            free: What is free once it is awake; where that is negative, they may make room.
        """
        room = self._group.room
        touched = room.hook_resources(target.name)
        return [
            model
            for model in self._group.others(target)
            if model.is_stranded
            and (
                room.hook_resources(model.name) & touched
                or any(
                    left < 0 < back
                    for left, back in zip(free, room.ledger.freed(model.name), strict=True)
                )
            )
        ]

    def _stoppable(self, target: str, evict: Sequence[str]) -> list[str]:
        """Return the models that may be stopped for what they need asleep, first ones first."""
        group = self._group
        sleeping = [
            model
            for name, model in group.models.items()
            if model.may_stop
            and name != target
            and not model.holds_gpu
            and not self._is_taken(name)
            and group.room.ledger.hold(name) is Hold.ASLEEP
        ]
        sleeping.sort(key=lambda model: model.used_at)
        # One whose sleep hook runs may be stopped only later.
        leaving = [
            name
            for name in evict
            if group.models[name].may_stop and group.models[name].phase is not Phase.SLEEPING
        ]
        is_asleep = bool(target) and group.room.ledger.hold(target) is Hold.ASLEEP
        last = [target] if is_asleep and group.models[target].may_stop else []
        return [*(model.name for model in sleeping), *leaving, *last]

    def _eviction(self, name: str) -> Eviction:
        model = self._group.models[name]
        return Eviction(model, self._hooks_of(model))

    def _is_taken(self, name: str, by: Running | None = None) -> bool:
        return self._group.switch_lock.holds(name, but=by)

    def _is_known(self, model: Model) -> bool:
        """Return whether a model was not removed since its command was queued."""
        return self._group.models.get(model.name) is model
