"""The scene of a group whose models share memory: which sets of models make room for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property

from llmux.policy.base import GroupView, ModelView, RoomView
from llmux.policy.evictions import EXACT, Evictions, Sets
from llmux.policy.room import Amounts, less, more, total
from llmux.policy.scene import Option, Scene


class Shared(Scene):
    """A group whose models share memory."""

    def __init__(self, group: GroupView, room: RoomView, evictions: Evictions) -> None:
        self._unserved = [v for v in group.models.values() if v.queued and v.awake_since is None]
        if room.switches:
            targets = {switch.target for switch in room.switches}
            self._unserved = [v for v in self._unserved if v.name not in targets]
        super().__init__(group, (v for v in self._unserved if not v.is_moving))
        self.room = room
        self._evictions = evictions
        self._freed = {
            view.name: room.memory.needs[view.name].taken
            for view in group.models.values()
            if view.awake_since is not None and not view.is_kept and not view.is_moving
        }
        self._most = total(self._freed.values(), room.free)
        self._needing: Mapping[str, AbstractSet[str]] | None = None
        self._found: dict[str, Sets] = {}
        self._times: dict[str, tuple[float, float, float]] = {}
        self._fit: dict[tuple[str, str], bool] = {}
        self._left: dict[str, Amounts] = {}

    @property
    def is_empty(self) -> bool:
        return not any(v.is_moving or v.awake_since is not None for v in self.group.models.values())

    @property
    def unserved(self) -> Iterable[ModelView]:
        return self._unserved

    def _find_rate(self, name: str) -> float:
        """Return the rate at which requests for a model arrive.

        Where several models may leave, that of an idle one is at most one request in the time since
        its last: measured rates fall slowly, and a model that is out of use should leave first.
        """
        rate = super()._find_rate(name)
        view = self.group.models[name]
        idle_s = 0.0 if view.in_flight else self.now - view.used_at
        return 1 / idle_s if len(self._freed) > 1 and rate * idle_s > 1 else rate

    def since(self, view: ModelView) -> float:
        assert view.awake_since is not None
        return view.awake_since

    def cost_between_s(self, source: ModelView, target: ModelView) -> float:
        return self.measures.usual_sleep_s(source.name) + self.measures.usual_wake_s(target.name)

    def missing(self, target: str) -> Amounts:
        """Return what a model lacks to wake, behind all running switches."""
        needs = self.room.memory.needs[target]
        return less(less(needs.moving, needs.asleep), self.room.free)

    def leaves_room(self, first: Option, then: Option) -> bool:
        if any(view in then.evict for view in first.evict):
            return False
        lacks = more(self.missing(first.target.name), self.missing(then.target.name))
        lacks = more(lacks, self.room.free)  # which both have counted
        for view in (*first.evict, *then.evict):
            lacks = less(lacks, self._freed[view.name])
        return max(lacks) <= 0

    def needing(self, name: str) -> AbstractSet[str]:
        if self._needing is None:
            needing: dict[str, set[str]] = {each: set() for each in self._freed}
            for view in self.wanted:
                if sets := self._sets(view.name):
                    for each in set(sets[0]).intersection(*sets[1:]):
                        needing[each].add(view.name)
            self._needing = needing
        return self._needing[name]

    def idle_options(self, target: ModelView, freed_by: Iterable[str]) -> Sequence[Option]:
        """Return the ways to wake a model whose switch is called off, without any drain.

        Args:
            target: The model, for which the view's room still counts its switch.
            freed_by: Models that drain for that switch, and would stay.
        """
        missing = less((0,) * len(self.room.free), self.room.free)
        for name in freed_by:
            missing = more(missing, self.room.memory.needs[name].taken)
        models = self.group.models
        idle = {name: freed for name, freed in self._freed.items() if not models[name].in_flight}
        return self._of_sets(target, self._minimal(missing, idle))

    def _sets(self, target: str) -> Sets:
        found = self._found.get(target)
        if found is None:
            found = self._found[target] = self._minimal(self.missing(target), self._freed)
        return found

    def _minimal(self, missing: Amounts, freed: Mapping[str, Amounts]) -> Sets:
        if len(freed) > EXACT:
            ranked = self._ranked.items()
            freed = {name: amounts for name, amounts in ranked if name in freed}
        return self._evictions.minimal(missing, freed)

    @cached_property
    def _ranked(self) -> Mapping[str, Amounts]:
        """What evictions free, by what is at stake for each byte of it, the least first."""

        def at_stake(name: str) -> float:
            sleep_s, wake_s, _ = self._times_s(name)
            return self.rate(name) * (sleep_s + wake_s) ** 3 / max(1, sum(self._freed[name]))

        return {name: self._freed[name] for name in sorted(self._freed, key=at_stake)}

    def _times_s(self, name: str) -> tuple[float, float, float]:
        """Return how long the sleep, the wake and the drain of a model that is awake take."""
        found = self._times.get(name)
        if found is None:
            measures, view = self.measures, self.group.models[name]
            sleep_s, wake_s = measures.usual_sleep_s(name), measures.usual_wake_s(name)
            found = self._times[name] = sleep_s, wake_s, self.own_drain_s(view)
        return found

    def _find_options(self, target: ModelView) -> Sequence[Option]:
        return self._of_sets(target, self._sets(target.name))

    def _of_sets(self, target: ModelView, sets: Sets) -> Sequence[Option]:
        options = [self.option(target, names, is_choice=len(sets) > 1) for names in sets]
        if len(options) > 1:
            options.sort(key=self._stake_and_use)
        return options

    def option(self, target: ModelView, evict: Sequence[str], *, is_choice: bool) -> Option:
        """Return the option of evicting these models.

        Args:
            target: The model to wake.
            evict: The models to put to sleep.
            is_choice: True if other sets would do: then a drain counts against a set.
        """
        models = self.group.models
        wake_s = self.measures.usual_wake_s(target.name)
        sleep_s = self.measures.usual_sleep_s(target.name)
        times_s = [self._times_s(name) for name in evict]
        cost_s = sum((each_s for each_s, _, _ in times_s), 0.0) + wake_s
        drain_s = stake = 0.0
        for name, (_, back_s, own_s) in zip(evict, times_s, strict=True):
            drain_s = max(drain_s, own_s)
            away_s = cost_s + back_s
            if not self._fit_together(target.name, name):
                away_s += sleep_s  # the target has to leave again for this one
            stake += self.stake(models[name], away_s + 2 * own_s if is_choice else away_s)
        return Option(target, [models[name] for name in evict], cost_s, drain_s, stake)

    def _fit_together(self, target: str, evicted: str) -> bool:
        """Return whether both may be awake at a time, beside the models that cannot be evicted."""
        fit = self._fit.get((target, evicted))
        if fit is None:
            needs = self.room.memory.needs
            left = self._left.get(target)
            if left is None:
                left = self._left[target] = less(self._most, needs[target].taken)
            beside = less(left, needs[evicted].taken)
            fit = self._fit[target, evicted] = min(beside) >= 0
        return fit

    def _stake_and_use(self, option: Option) -> tuple[float, float]:
        used = [self.now if view.in_flight else view.used_at for view in option.evict]
        return option.stake, max(used, default=0.0)
