"""Exhaustive service: serve the active model until it has no work left."""

from __future__ import annotations

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, ModelView, Stay
from llmux.policy.choices import (
    BUSY,
    COLD,
    MIN_ACTIVE,
    first_come,
    look_again,
    may_be_chosen,
    may_leave_at,
    oldest,
    until_retry,
    waited_s,
    wanted,
)
from llmux.policy.evictions import Evictions
from llmux.policy.in_order import InOrder
from llmux.policy.scene import Option

NO_WORK, LONGEST = "no work left", "longest wait"


class ExhaustivePolicy:
    """Stay while the active model has work, then switch to the model of the oldest request.

    Work is a request waiting for a slot of the active model if `max_in_flight` is set, otherwise a
    request in flight. A request elsewhere that has waited for `max_wait_secs` ends the stay early.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._max_wait_s = config.max_wait_secs
        self._min_active_s = config.min_active_secs
        self._evictions = Evictions()

    def decide(self, group: GroupView) -> Decision:
        if group.room is not None:
            return self._decide_in_order(group)
        others, now = wanted(group), group.now
        ready = may_be_chosen(others, now)
        if not others:
            return Stay()
        if not ready:
            return until_retry(others, now)
        first = oldest(ready)
        if group.active is None:
            return first_come(first, now, COLD)
        may_close_at = may_leave_at(group, self._min_active_s, self._max_wait_s)
        rule = NO_WORK
        if _has_work(group.models[group.active]):
            rule = LONGEST
            may_close_at = max(may_close_at, now + self._max_wait_s - waited_s(first, now))
        if may_close_at <= now:
            return first_come(first, now, rule)
        return look_again(may_close_at, BUSY if rule == LONGEST else MIN_ACTIVE)

    def _decide_in_order(self, group: GroupView) -> Decision:
        turn, now = InOrder(group, self._evictions, self._min_active_s, self._max_wait_s), group.now

        def begins_at(way: Option) -> float:
            at = turn.may_leave_at(way.evict)
            if any(map(_has_work, way.evict)):
                at = max(at, now + self._max_wait_s - waited_s(way.target, now))
            return at

        return turn.decide(
            begins_at,
            lambda view: waited_s(view, now) >= self._max_wait_s,
            order=turn.ready,
            rule=lambda way: LONGEST if any(map(_has_work, way.evict)) else NO_WORK,
            why=BUSY,
        )


def _has_work(view: ModelView) -> bool:
    return view.queued > 0 if view.has_slots else view.in_flight > 0
