"""The policies of llmux 0.9, for people who migrate from it, with their known bugs fixed.

The original reconsidered a deferred decision once, and then not until another request arrived. It
checked the longest wait on arrivals only, so that a lone request could wait forever. And it retried
a failed wake immediately.
"""

from __future__ import annotations

import math

from llmux.config import PolicyConfig
from llmux.config.durations import duration_s
from llmux.policy.base import Decision, GroupView, ModelView, SwitchTo
from llmux.policy.choices import (
    BUSY,
    COLD,
    MIN_ACTIVE,
    arrival_of,
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
from llmux.policy.placing import has_work
from llmux.policy.scene import Option

COALESCE_S = 2.0
"""Default of `options.coalesce_secs`: how long the first request in a line waits for more."""

AMORTIZATION = 0.5
"""Default of `options.amortization_factor`: requests per second of switching."""

WORTH_IT = "worth it"
"""Rule of a switch for a line that is worth it."""

UNWORTHY = "too few wait, and not for long enough, to be worth the switch"
"""Why a model stays that a longer line elsewhere would end."""


class CostAwarePolicy:
    """Serve for as long as the switch away costs, then switch for a line that is worth it.

    A line is worth it if its length is `amortization_factor` times the seconds of the switch, or if
    its first request has waited for `coalesce_secs`. A request that has waited for `max_wait_secs`
    ends any stay.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._max_wait_s = config.max_wait_secs
        self._min_active_s = config.min_active_secs
        self._coalesce_s = _option(config, "coalesce_secs", COALESCE_S)
        self._amortization = _option(config, "amortization_factor", AMORTIZATION)
        self._evictions = Evictions()

    def decide(self, group: GroupView) -> Decision:
        if group.room is not None:
            return self._decide_in_order(group)
        others, now = wanted(group), group.now
        ready = may_be_chosen(others, now)
        if not ready:
            return until_retry(others, now)
        if group.active is None:
            return first_come(oldest(ready), now, COLD)
        due = {view.name: self._due_at(group, view) for view in ready}
        first = min(ready, key=lambda view: (due[view.name], now - waited_s(view, now)))
        return (
            first_come(first, now, WORTH_IT)
            if due[first.name] <= now
            else look_again(due[first.name], UNWORTHY)
        )

    def _due_at(self, group: GroupView, view: ModelView) -> float:
        """Return when this model's turn comes if nothing changes."""
        assert group.active_since is not None
        cost_s = group.measures.cost_s(group.active, view.name)
        leaves_at = may_leave_at(group, self._min_active_s, self._max_wait_s)
        return self._turn_at(view, group.now, cost_s, group.active_since, leaves_at)

    def _turn_at(
        self, view: ModelView, now: float, cost_s: float, since: float, leaves_at: float
    ) -> float:
        """Return when a model's turn comes, if what leaves for it has been awake since then."""
        arrived_at = now - waited_s(view, now)
        is_worth_it = view.queued >= max(1, math.ceil(self._amortization * cost_s))
        gathered_at = arrived_at if is_worth_it else arrived_at + self._coalesce_s
        served_at = max(gathered_at, since + cost_s)
        return max(min(served_at, arrived_at + self._max_wait_s), leaves_at)

    def _decide_in_order(self, group: GroupView) -> Decision:
        turn, now = InOrder(group, self._evictions, self._min_active_s, self._max_wait_s), group.now

        def begins_at(way: Option) -> float:
            since = max(map(turn.scene.since, way.evict), default=-math.inf)
            leaves_at = turn.may_leave_at(way.evict)
            return self._turn_at(way.target, now, way.cost_s, since, leaves_at)

        due = {v.name: min(map(begins_at, turn.scene.ways(v)), default=now) for v in turn.ready}
        return turn.decide(
            begins_at,
            lambda view: waited_s(view, now) >= self._max_wait_s,
            order=sorted(turn.ready, key=lambda view: (due[view.name], arrival_of(view))),
            rule=lambda _way: WORTH_IT,
            why=UNWORTHY,
        )


def _option(config: PolicyConfig, name: str, default: float) -> float:
    given = config.options.get(name, default)
    is_duration = isinstance(given, str) and name.endswith("_secs")
    value = duration_s(given) if is_duration else float(given)
    if not 0 <= value < math.inf:
        raise ValueError(f"options.{name} must be a number from 0 on")
    return value


LONGEST_WAIT, LONGEST_LINE = "longest wait", "longest line"
"""Rules of `TimeSlicePolicy`."""


class TimeSlicePolicy:
    """Serve the active model until it is idle, then the model with the longest line.

    A request that has waited for `max_wait_secs` ends the stay early.
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
        if not ready:
            return until_retry(others, now)
        first = oldest(ready)
        if group.active is None:
            return first_come(first, now, COLD)
        active = group.models[group.active]
        leaves_at = may_leave_at(group, self._min_active_s, self._max_wait_s)
        is_busy = has_work(active)
        if is_busy:
            leaves_at = max(leaves_at, now + self._max_wait_s - waited_s(first, now))
        if leaves_at > now:
            return look_again(leaves_at, BUSY if is_busy else MIN_ACTIVE)
        if is_busy:
            return first_come(first, now, LONGEST_WAIT)
        longest = max(ready, key=lambda view: view.queued)
        return SwitchTo(longest.name, f"the longest line: {longest.queued} waiting", LONGEST_LINE)

    def _decide_in_order(self, group: GroupView) -> Decision:
        turn, now = InOrder(group, self._evictions, self._min_active_s, self._max_wait_s), group.now

        def is_overdue(view: ModelView) -> bool:
            return waited_s(view, now) >= self._max_wait_s

        def begins_at(way: Option) -> float:
            at = turn.may_leave_at(way.evict)
            if any(map(has_work, way.evict)):
                at = max(at, now + self._max_wait_s - waited_s(way.target, now))
            return at

        order = turn.ready
        if not turn.scene.is_empty:
            overdue = [view for view in order if is_overdue(view)]
            others = [v for v in may_be_chosen(turn.scene.wanted, now) if not is_overdue(v)]
            order = [*overdue, *sorted(others, key=lambda view: -view.queued)]
        return turn.decide(
            begins_at,
            is_overdue,
            order=order,
            rule=lambda way: LONGEST_WAIT if any(map(has_work, way.evict)) else LONGEST_LINE,
            why=BUSY,
        )
