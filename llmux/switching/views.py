"""The view of a group that policies get."""

from __future__ import annotations

import trio
from msgspec.structs import replace

from llmux.policy import GroupView, ModelView
from llmux.policy.base import RoomView, RunningSwitch, by_name
from llmux.policy.room import Amounts, more
from llmux.switching.group import Group
from llmux.switching.ledger import Hold
from llmux.switching.model import AT_REST, Model


def view_of(group: Group, *, spares_kept: bool = True) -> GroupView:
    """Return the facts that a policy may use.

    Args:
        group: The group.
        spares_kept: False if models that are kept or pinned may be evicted, too.
    """
    active, now = group.active, trio.current_time()
    shown = list(group.models.values())
    pinned = group.pins.models
    if spares_kept:  # the policy may choose nothing that a pin or a kept model forbids
        shown = [m for m in shown if m.is_awake or not _is_barred(group, m)]
    views = (_shown(group, model) for model in shown)
    room = None
    if group.shares_memory:
        kept = pinned if spares_kept else frozenset()
        views = (
            replace(
                view,
                awake_since=model.awake_since if model.is_awake else None,
                used_at=model.used_at,
                is_kept=spares_kept and (model.is_kept or model.name in kept),
                is_moving=_is_moving(group, model),
                is_stopped=group.room.is_stopped(model.name),
            )
            for view, model in zip(views, shown, strict=True)
        )
        room = _room_of(group)
    return GroupView(
        now=now,
        active=active.name if active else None,
        active_since=active.awake_since if active else None,
        models=by_name(views),
        measures=group.measures.estimates,
        room=room,
    )


def _is_barred(group: Group, model: Model) -> bool:
    """Return whether models that have to stay leave no room for this one."""
    if group.pins.current is not None and group.pins.holds_up(model.name) is not None:
        return not (group.shares_memory and group.switch_lock.holds(model.name))
    if not group.shares_memory or group.switch_lock.holds(model.name):
        return False  # a switch that runs goes on
    pinned = group.pins.models
    kept = [each.name for each in group.awake if each.is_kept or each.name in pinned]
    # After a reload, there may be no room any more for one that leaves the config.
    may_lack = kept or model.name in group.leaving
    if not may_lack or group.room.fit([*kept, model.name], wakes=model.name):
        return False
    # Some may need more asleep than awake, so that it fits only as long as they are awake.
    return max(group.room.ledger.missing(model.name)) > 0


def _shown(group: Group, model: Model) -> ModelView:
    """Return a model's view; a failing one may be chosen only when it may be tried."""
    view = model.view()
    if not model.is_failing or model.is_awake:
        return view
    return replace(view, retry_at=group.trial_at(model))


def _is_moving(group: Group, model: Model) -> bool:
    at_rest = model.is_awake or model.phase in AT_REST
    return not at_rest or group.switch_lock.holds(model.name)


def _room_of(group: Group) -> RoomView:
    ledger = group.room.ledger
    switches = []
    for running in group.running:
        plan = running.plan
        if plan in ledger.plans and plan.target:
            draining = running.draining
            is_fixed = running.is_fixed or running.command.stands or running.failure is not None
            may_change = bool(draining) and not is_fixed and ledger.may_drop(plan)
            switches.append(RunningSwitch(plan.target, plan.evict, draining, may_change=may_change))
    return RoomView(group.room.memory, _free(group), tuple(switches))


def _free(group: Group) -> Amounts:
    """Return what is free once all commands have ended, and what any switch may take.

    Before another model wakes, models whose sleep has failed are put to sleep again; those that
    have a `stop` hook are stopped if what they need asleep is lacking.
    """
    room = group.room
    free = room.ledger.projected()
    for model in group.models.values():
        if group.switch_lock.holds(model.name):
            continue
        held = room.ledger.held(model.name)
        if model.is_stranded and not model.may_stop:
            free = more(free, room.ledger.freed(model.name))
        elif model.is_stranded or (model.may_stop and room.ledger.hold(model.name) is Hold.ASLEEP):
            free = more(free, held)
    return free
