"""Evictions for policies that name none, where models share memory.

A policy says which model to wake. Where several models may be awake, it may also name the models
that have to leave; for one that does not, this module does: idle models first, then those with the
least at stake, then what was used least recently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmux.policy.base import Decision, GroupView, ModelView, Policy, RoomView, Stay, SwitchTo
from llmux.policy.choices import arrival_of, may_be_chosen
from llmux.policy.evictions import Evictions
from llmux.policy.room import covers, total
from llmux.policy.scene import Option
from llmux.policy.shared import Shared

NO_ROOM = "no models that may leave would make room"
"""Why nothing is woken although requests wait."""


class Ways(Shared):
    """A scene of a group that shares memory: how each model could be woken, idle victims first."""

    def __init__(self, group: GroupView, evictions: Evictions) -> None:
        assert group.room is not None
        super().__init__(group, group.room, evictions)

    def ways(self, target: ModelView) -> Sequence[Option]:
        """Return the ways to wake a model, the best first; none if no eviction makes room now."""
        found = sorted(self.options(target), key=_is_busy)
        if found and not _is_busy(found[0]):
            return found
        # Beyond nine models only one set is tried. If that one is busy, idle ones may do as well.
        models = self.group.models
        idle = {name: freed for name, freed in self._freed.items() if not has_work(models[name])}
        sets = self._minimal(self.missing(target.name), idle)
        return [*self._of_sets(target, sets), *found]

    @property
    def is_moving(self) -> bool:
        """True if a switch is running."""
        return any(view.is_moving for view in self.group.models.values())

    def ready(self) -> list[ModelView]:
        """Return the models to wake that may be chosen now, the oldest request first."""
        return sorted(may_be_chosen(self.wanted, self.now), key=arrival_of)


def has_work(view: ModelView) -> bool:
    """Return whether a model has requests in flight, or in line for a slot."""
    return bool(view.in_flight or view.queued)


def _is_busy(option: Option) -> bool:
    return any(map(has_work, option.evict))


def evictions_for(group: GroupView, target: str, evictions: Evictions) -> tuple[str, ...] | None:
    """Return the models to put to sleep so that the target fits, or None if none would do now.

    Args:
        group: A view of a group that shares memory.
        target: The model to wake, which sleeps.
        evictions: Remembers sets that were found before.
    """
    ways = Ways(group, evictions).ways(group.models[target])
    return tuple(view.name for view in ways[0].evict) if ways else None


class Placing:
    """Wrap a policy so that each of its switches names what has to leave.

    Decisions that name evictions pass unchanged, as does everything where one model is awake at a
    time. A switch to a model that is awake or on its way, or that no set makes room for now, is
    left out.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._evictions = Evictions()

    def decide(self, group: GroupView, /) -> Decision:
        """Ask the policy, and complete its decision."""
        decision = self._policy.decide(group)
        if group.room is None or not isinstance(decision, SwitchTo) or decision.evict:
            return decision
        target = group.models.get(decision.model)
        if target is None:
            return decision  # a mistake that the caller reports
        if target.awake_since is not None:
            return Stay()
        if target.is_moving:
            return decision if _fits_without_drains(group.room, target.name) else Stay()
        evict = evictions_for(group, target.name, self._evictions)
        return Stay(NO_ROOM) if evict is None else replace(decision, evict=evict)


def _fits_without_drains(room: RoomView, target: str) -> bool:
    """Return whether a switch that waits for drains could do without: they are called off then."""
    for switch in room.switches:
        if switch.target == target and switch.may_change:
            kept = (room.memory.needs[name].taken for name in switch.draining)
            return covers(room.free, total(kept, (0,) * len(room.free)))
    return False
