"""The scene of a group whose models share memory: which sets of models make room for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from llmux.policy.base import GroupView, ModelView, RoomView
from llmux.policy.evictions import Evictions, Sets
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

    @property
    def is_empty(self) -> bool:
        return not any(v.is_moving or v.awake_since is not None for v in self.group.models.values())

    @property
    def unserved(self) -> Iterable[ModelView]:
        return self._unserved

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
                if sets := self._sets(view):
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
        return self._of_sets(target, self._evictions.minimal(missing, idle, self._rank))

    def _sets(self, target: ModelView) -> Sets:
        return self._evictions.minimal(self.missing(target.name), self._freed, self._rank)

    def _rank(self, name: str) -> float:
        """Return what is at stake for each byte that a model's eviction frees."""
        measures = self.measures
        away_s = measures.usual_sleep_s(name) + measures.usual_wake_s(name)
        return self.rate(name) * away_s**3 / max(1, sum(self._freed[name]))

    def _find_options(self, target: ModelView) -> Sequence[Option]:
        return self._of_sets(target, self._sets(target))

    def _of_sets(self, target: ModelView, sets: Sets) -> Sequence[Option]:
        options = [self.option(target, names, is_choice=len(sets) > 1) for names in sets]
        options.sort(key=self._stake_and_use)
        return options

    def option(self, target: ModelView, evict: Iterable[str], *, is_choice: bool) -> Option:
        """Return the option of evicting these models.

        Args:
            target: The model to wake.
            evict: The models to put to sleep.
            is_choice: True if other sets would do: then a drain counts against a set.
        """
        measures = self.measures
        views = [self.group.models[name] for name in evict]
        cost_s = sum((measures.usual_sleep_s(view.name) for view in views), 0.0)
        cost_s += measures.usual_wake_s(target.name)
        stake = drain_s = 0.0
        for view in views:
            own_s = self.own_drain_s(view)
            drain_s = max(drain_s, own_s)
            away_s = cost_s + measures.usual_wake_s(view.name)
            if not self._fit_together(target.name, view.name):
                away_s += measures.usual_sleep_s(target.name)  # it has to leave again for this one
            stake += self.stake(view, away_s + 2 * own_s if is_choice else away_s)
        return Option(target, views, cost_s, drain_s, stake)

    def _fit_together(self, target: str, evicted: str) -> bool:
        """Return whether both may be awake at a time, beside the models that cannot be evicted."""
        needs = self.room.memory.needs
        left = less(self._most, needs[target].taken)
        return min(less(left, needs[evicted].taken)) >= 0

    def _stake_and_use(self, option: Option) -> tuple[float, float]:
        used = (self.now if view.in_flight else view.used_at for view in option.evict)
        return option.stake, max(used, default=0.0)
