"""Close a model once the requests waiting elsewhere have suffered as much as its own users will.

docs/inside/policy-study.md explains the rule and where its parts come from. It decides on measured
values (`llmux.policy.estimates`); only the bound is configurable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, LookAgain, ModelView, Stay, SwitchTo
from llmux.policy.choices import (
    COLD,
    MIN_ACTIVE,
    RETRY,
    drain_ahead_s,
    first_come,
    least_stay_s,
    look_again,
    may_be_chosen,
    may_leave_at,
    next_retry,
    oldest,
    wanted,
)
from llmux.policy.deadlines import Deadlines
from llmux.policy.estimates import ARRIVALS

TICK_S = 0.25
"""Shortest interval to the next decision if nothing happens in between."""

TURN_SHARE = 0.3
"""A turn ended by the bound lasts at least this share of the absence before it. Larger values lower
the mean wait under overload and raise the longest wait (table in docs/inside/policy-study.md)."""

SUSPENDED = 2.0
"""Cost, in units of A squared, of freezing a request in flight for an absence of A seconds. On
average it has already been frozen for A/2: (A/2 + A)^2 - (A/2)^2. In simulation, 1 and 4 are
worse."""

MOMENT_S = 1e-3
"""Lower limit for the cost of a switch where it is a divisor."""

# Why it stays.
IN_TURN = "a request elsewhere has waited for max_wait_secs, but this model's turn has just begun"
GATE = "requests are queued inside its server (policy.gate)"
FILLING = "one more of its requests hardly delays those who wait"
COSTLY = "leaving would cost its users more than those who wait have lost so far"


class AdaptivePolicy:
    """The default policy."""

    def __init__(self, config: PolicyConfig) -> None:
        self._max_wait_s = config.max_wait_secs
        self._min_active_s = config.min_active_secs
        self._deadlines = Deadlines(config.max_wait_secs)

    def decide(self, group: GroupView) -> Decision:
        self._deadlines.note(group)
        others = wanted(group)
        if not others:
            return Stay()
        ready, retry_at = may_be_chosen(others, group.now), next_retry(others, group.now)
        if not ready:
            return look_again(retry_at, RETRY)
        if group.active is None:
            return first_come(oldest(ready), group.now, COLD)
        return self._weigh(group, group.models[group.active], ready, retry_at)

    def _weigh(
        self, group: GroupView, active: ModelView, others: Sequence[ModelView], retry_at: float
    ) -> Decision:
        """Apply the rules in order: bound, stay open, close; else say when to decide again."""
        now, due_at = group.now, self._deadlines.due_at
        leaves_at = may_leave_at(group, self._min_active_s, self._max_wait_s)
        overdue_at = max(due_at(oldest(others)), leaves_at)
        ranked = _ranked(group, active, others)

        # A function, since the answer is expensive and most decisions do not need it.
        def tightest() -> tuple[ModelView, float]:
            return self._deadlines.tightest(group, active, others)

        def look_by(at: float, why: str) -> Decision:
            if overdue_at < at:
                at = min(at, max(overdue_at, _turn_ends_at(group, active, *tightest())))
            return LookAgain(at, IN_TURN if overdue_at <= now else why)

        if overdue_at <= now and _turn_ends_at(group, active, *tightest()) <= now:
            first, slack_s = tightest()
            in_time = self._in_time(group, ranked, first, slack_s)
            return first_come(next((v for v in in_time if due_at(v) <= now), first), now, "bound")
        if active.backend_queued:
            return look_by(now + TICK_S, GATE)
        open_until = _open_until(group, active, ranked)
        closing_at = max(leaves_at, open_until)
        next_at = math.inf
        closable: list[ModelView] = []
        for view, pays_at in _closing_pays_at(group, active, ranked):
            close_at = max(closing_at, pays_at)
            if close_at > now:
                next_at = min(next_at, close_at)
            else:
                closable.append(view)
        if closable and (found := next(self._in_time(group, closable, *tightest()), None)):
            return SwitchTo(found.name, _reason(found, now), "close")
        # Decide again before `next_at`: it was computed with today's arrival rate, which falls
        # while no requests arrive.
        rate = group.measures.arrivals_per_s(active.name, now)
        fades_s = ARRIVALS / rate if rate else math.inf
        soon = now + max(TICK_S, min((next_at - now) / 4, fades_s))
        why = MIN_ACTIVE if leaves_at > now else FILLING if open_until > now else COSTLY
        return look_by(min(soon, retry_at), why)

    def _in_time(
        self, group: GroupView, views: Sequence[ModelView], tightest: ModelView, slack_s: float
    ) -> Iterator[ModelView]:
        """Yield the models that can go first without making the tightest deadline late."""
        for view in views:
            if view is tightest or self._detour_s(group, view, tightest) <= slack_s:
                yield view

    def _detour_s(self, group: GroupView, via: ModelView, to: ModelView) -> float:
        """Return how much later `to` wakes if `via` has its shortest turn first, in seconds."""
        assert group.active is not None
        measures = group.measures
        leave_s = measures.cost_s(via.name, to.name)
        turn_s = max(leave_s, least_stay_s(measures, via, self._min_active_s, self._max_wait_s))
        drain_s = drain_ahead_s(measures, via, via.queued)
        there_s = measures.cost_s(group.active, via.name) + turn_s + drain_s
        return there_s + leave_s - measures.cost_s(group.active, to.name)


def _round_trip_s(group: GroupView, active: ModelView, view: ModelView) -> float:
    cost_s = group.measures.cost_s
    return cost_s(active.name, view.name) + cost_s(view.name, active.name)


def _turn_ends_at(
    group: GroupView, active: ModelView, tightest: ModelView, slack_s: float
) -> float:
    """Return until when the active model stays although a request elsewhere is overdue.

    When demand exceeds the GPU, every request becomes overdue, and shorter turns would only lose
    more time to switches. The model with the tightest deadline is still let in on time if a turn as
    long as the switch to it allows that.
    """
    assert group.active_since is not None
    absence_s = group.measures.absence_s(active.name) or 0.0
    turn_s = max(_round_trip_s(group, active, tightest), TURN_SHARE * absence_s)
    least_s = group.measures.cost_s(active.name, tightest.name)
    in_time_at = max(group.active_since + least_s, group.now + slack_s)
    return min(group.active_since + turn_s, in_time_at)


def _ranked(
    group: GroupView, active: ModelView, others: Sequence[ModelView]
) -> Sequence[ModelView]:
    """Sort models by the suffering that each second of their switch would end, highest first.

    All are compared at the same time, one round trip ahead with the cheapest switch: a time of its
    own for each would favour expensive switches.
    """
    costs_s = {view.name: group.measures.cost_s(active.name, view.name) for view in others}
    then = group.now + 2 * min(costs_s.values())

    def urgency(view: ModelView) -> float:
        return view.ages.squares(then) / max(costs_s[view.name], MOMENT_S)

    return sorted(others, key=urgency, reverse=True)


def _open_until(group: GroupView, active: ModelView, others: Sequence[ModelView]) -> float:
    """Return until when admitting one more request costs those waiting elsewhere little.

    It lengthens the drain by its share of a batch; turned away, it would wait for the model's next
    turn. -inf: closing may start at once.
    """
    measures = group.measures
    in_flight = active.in_flight
    latency_s = measures.latency_s(active.name, in_flight + 1) if in_flight else None
    if latency_s is None:
        return -math.inf
    added_s = latency_s / (in_flight + 1)
    absence_s = measures.absence_s(active.name)
    if absence_s is None:
        absence_s = _round_trip_s(group, active, others[0]) + measures.drain_s(others[0].name)
    waiting = sum(view.ages.weight for view in others)
    if waiting * added_s >= absence_s:
        return -math.inf
    waited = sum(view.ages.total(group.now) for view in others)
    enough = absence_s * absence_s / (2 * max(added_s, 1e-9))
    return group.now + (enough - waited) / waiting


def _closing_pays_at(
    group: GroupView, active: ModelView, others: Sequence[ModelView]
) -> Iterator[tuple[ModelView, float]]:
    """Yield each model, and from when on closing the active one for it pays.

    From then on, the requests in its line will have suffered as much by the time they are served as
    closing costs the users of the active model. Suffering is the square of a wait. A request that
    arrives while the active model is away for a round trip S waits for the rest of S, which adds up
    to the arrival rate times the integral of t^2 from 0 to S. Requests frozen in flight wait for
    the whole absence, in addition to earlier ones.
    """
    measures, here = group.measures, active.name
    cost_s = measures.cost_s
    rate = measures.arrivals_per_s(here, group.now)
    drain_s = measures.drain_s(here) if active.in_flight else 0.0
    absence_s = measures.absence_s(here) or 0.0
    for view in others:
        leave_s = cost_s(here, view.name)
        round_trip_s = leave_s + cost_s(view.name, here)
        at_stake = rate * round_trip_s**3 / 3
        if active.freezes:
            frozen = active.in_flight + active.queued
            at_stake += SUSPENDED * frozen * max(round_trip_s, absence_s) ** 2
        yield view, view.ages.squares_reach(at_stake) - (leave_s + drain_s)


def _reason(view: ModelView, now: float) -> str:
    return f"{view.queued} waiting, {view.ages.total(now):.1f} s in all"
