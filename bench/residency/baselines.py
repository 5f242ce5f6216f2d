"""Policies of other programs and of the literature, for comparison."""

from __future__ import annotations

from collections.abc import Callable

from llmux.policy.base import Decision, GroupView, ModelView, Policy, Stay, SwitchTo
from llmux.policy.choices import arrival_of
from llmux.policy.room import Amounts, less


def _missing(view: GroupView, target: str) -> Amounts:
    assert view.room is not None
    needs = view.room.memory.needs[target]
    return less(less(needs.moving, needs.asleep), view.room.free)


def _oldest(view: GroupView) -> ModelView | None:
    asleep = [
        each
        for each in view.models.values()
        if each.queued and each.awake_since is None and not each.is_moving
    ]
    return min(asleep, key=arrival_of, default=None)


def _until_it_fits(view: GroupView, target: str, models: list[ModelView]) -> tuple[str, ...] | None:
    """Return as many of these models, in this order, as make room; None if all do not."""
    assert view.room is not None
    needs = view.room.memory.needs
    missing = _missing(view, target)
    evict: list[str] = []
    for each in models:
        if max(missing) <= 0:
            break
        evict.append(each.name)
        missing = less(missing, less(needs[each.name].awake, needs[each.name].asleep))
    return tuple(evict) if max(missing) <= 0 else None


def _evictable(view: GroupView) -> list[ModelView]:
    return [e for e in view.models.values() if e.awake_since is not None and not e.is_moving]


class Lru:
    """Evicts what was used least recently, busy models too, for the oldest request."""

    idle_only = False

    def decide(self, view: GroupView, /) -> Decision:
        target = _oldest(view)
        if target is None:
            return Stay()
        evict = _until_it_fits(view, target.name, self._order(view))
        return Stay() if evict is None else SwitchTo(target.name, evict=evict)

    def _order(self, view: GroupView) -> list[ModelView]:
        models = _evictable(view)
        if self.idle_only:
            models = [each for each in models if not each.in_flight]
        # A busy model was used just now.
        return sorted(models, key=lambda each: view.now if each.in_flight else each.used_at)


class IdleLru(Lru):
    """As large-model-proxy: LRU of idle models only."""

    idle_only = True


class GreedyDualSize(Lru):
    """GreedyDual-Size (Cao and Irani 1997): cost by size, with an age that evictions raise."""

    def __init__(self) -> None:
        self._age = 0.0
        self._credit: dict[str, float] = {}
        self._seen: dict[str, float] = {}

    def decide(self, view: GroupView, /) -> Decision:
        assert view.room is not None
        for each in _evictable(view):
            if self._seen.get(each.name) != each.used_at or each.in_flight:
                self._seen[each.name] = each.used_at
                size = sum(view.room.memory.needs[each.name].awake) / 2**30
                cost_s = view.measures.usual_wake_s(each.name)
                self._credit[each.name] = self._age + cost_s / size
        decision = super().decide(view)
        if isinstance(decision, SwitchTo) and decision.evict:
            self._age = max(self._credit[name] for name in decision.evict)
        return decision

    def _order(self, view: GroupView) -> list[ModelView]:
        return sorted(_evictable(view), key=lambda each: self._credit[each.name])


BASELINES: dict[str, Callable[[], Policy]] = {
    "lru": Lru,
    "idle_lru": IdleLru,
    "greedy_dual_size": GreedyDualSize,
}
