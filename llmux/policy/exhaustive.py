"""Exhaustive service: serve the active model until it has no work left."""

from __future__ import annotations

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, Stay
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


class ExhaustivePolicy:
    """Stay while the active model has work, then switch to the model of the oldest request.

    Work is a request waiting for a slot of the active model if `max_in_flight` is set, otherwise a
    request in flight. A request elsewhere that has waited for `max_wait_secs` ends the stay early.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._max_wait_s = config.max_wait_secs
        self._min_active_s = config.min_active_secs

    def decide(self, group: GroupView) -> Decision:
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
        rule = "no work left"
        if self._has_work(group):
            rule = "longest wait"
            may_close_at = max(may_close_at, now + self._max_wait_s - waited_s(first, now))
        if may_close_at <= now:
            return first_come(first, now, rule)
        return look_again(may_close_at, BUSY if rule == "longest wait" else MIN_ACTIVE)

    def _has_work(self, group: GroupView) -> bool:
        assert group.active is not None
        active = group.models[group.active]
        return active.queued > 0 if active.has_slots else active.in_flight > 0
