"""First come, first served: switch to the model of the oldest waiting request."""

from __future__ import annotations

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, LookAgain, Stay
from llmux.policy.choices import (
    MIN_ACTIVE,
    RETRY,
    first_come,
    may_be_chosen,
    may_leave_at,
    next_retry,
    oldest,
    wanted,
)
from llmux.policy.evictions import Evictions
from llmux.policy.in_order import InOrder

OLDEST = "oldest first"


class FifoPolicy:
    """Switch to the model of the oldest waiting request as soon as `min_active_secs` allows."""

    def __init__(self, config: PolicyConfig) -> None:
        self._min_active_s = config.min_active_secs
        self._evictions = Evictions()

    def decide(self, group: GroupView) -> Decision:
        if group.room is not None:
            return self._decide_in_order(group)
        others = wanted(group)
        if not others:
            return Stay()
        now = group.now
        ready = may_be_chosen(others, now)
        may_start_at = now if ready else next_retry(others, now)
        if group.active is not None:
            may_start_at = max(may_start_at, may_leave_at(group, self._min_active_s))
        if may_start_at > now:
            return LookAgain(may_start_at, MIN_ACTIVE if ready else RETRY)
        return first_come(oldest(ready), now, OLDEST)

    def _decide_in_order(self, group: GroupView) -> Decision:
        turn = InOrder(group, self._evictions, self._min_active_s)
        return turn.decide(
            lambda way: turn.may_leave_at(way.evict),
            lambda _view: True,
            order=turn.ready,
            rule=lambda _way: OLDEST,
            why=MIN_ACTIVE,
        )
