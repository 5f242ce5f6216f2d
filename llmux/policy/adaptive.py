"""Close a model when those who wait elsewhere have suffered as much as its own users will.

The rule in words, and where its parts come from: docs/policies.md. What it needs to know it
measures (`llmux.policy.estimates`); there is nothing to configure but the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, LookAgain, ModelView, Stay, SwitchTo
from llmux.policy.choices import (
    COLD,
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
"""Least time to the next look, where nothing happens before."""

TURN_SHARE = 0.3
"""A turn that the bound ends has lasted at least this share of the absence before it. Larger ones
lower the mean wait under overload and raise the longest (docs/policies.md has the table)."""

SUSPENDED = 2.0
"""What a request in flight suffers that is frozen for an absence A, in A squared. It has waited for
half of one already, on average: (A/2 + A)^2 - (A/2)^2. Simulated, 1 and 4 are worse."""

MOMENT_S = 1e-3
"""The least that a switch is taken to cost where something is divided by it."""


class AdaptivePolicy:
    """The policy that llmux uses if the config names none."""

    def __init__(self, config: PolicyConfig) -> None:
        self._max_wait_s = config.max_wait_secs
        self._min_active_s = config.min_active_secs
        self._deadlines = Deadlines(config.max_wait_secs)

    def decide(self, group: GroupView) -> Decision:
        """Say what to do now."""
        self._deadlines.note(group)
        others = wanted(group)
        if not others:
            return Stay()
        ready = may_be_chosen(others, group.now)
        if not ready:
            return look_again(next_retry(others, group.now))
        if group.active is None:
            return first_come(oldest(ready), group.now, COLD)
        return self._weigh(group, group.models[group.active], ready)

    def _weigh(self, group: GroupView, active: ModelView, others: Sequence[ModelView]) -> Decision:
        """Bound, then stay open, then close; and if none applies, when to look again."""
        now, due_at = group.now, self._deadlines.due_at
        leaves_at = may_leave_at(group, self._min_active_s, self._max_wait_s)
        overdue_at = max(due_at(oldest(others)), leaves_at)
        ranked = _ranked(group, active, others)

        # Who has the least time, and how much, takes a while to find out, and mostly nobody asks.
        def tightest() -> tuple[ModelView, float]:
            return self._deadlines.tightest(group, active, others)

        def look_by(at: float) -> Decision:
            if overdue_at < at:
                at = min(at, max(overdue_at, _turn_ends_at(group, active, *tightest())))
            return LookAgain(at)

        if overdue_at <= now and _turn_ends_at(group, active, *tightest()) <= now:
            first, slack_s = tightest()
            in_time = self._in_time(group, ranked, first, slack_s)
            return first_come(next((v for v in in_time if due_at(v) <= now), first), now, "bound")
        if active.backend_queued:
            return look_by(now + TICK_S)
        closing_at = max(leaves_at, _open_until(group, active, ranked))
        next_at = math.inf
        ripe: list[ModelView] = []
        for view in ranked:
            close_at = max(closing_at, _suffered_enough_at(group, active, view))
            if close_at > now:
                next_at = min(next_at, close_at)
            else:
                ripe.append(view)
        if ripe and (found := next(self._in_time(group, ripe, *tightest()), None)):
            return SwitchTo(found.name, _reason(found, now), "close")
        # Sooner than the sums say: the rate of arrivals in them falls while none come.
        rate = group.measures.arrivals_per_s(active.name, now)
        fades_s = ARRIVALS / rate if rate else math.inf
        soon = now + max(TICK_S, min((next_at - now) / 4, fades_s))
        return look_by(min(soon, next_retry(wanted(group), now)))

    def _in_time(
        self, group: GroupView, views: Sequence[ModelView], tightest: ModelView, slack_s: float
    ) -> Iterator[ModelView]:
        """Nobody goes before the one with the least time who would take more than that."""
        for view in views:
            if view is tightest or self._detour_s(group, view, tightest) <= slack_s:
                yield view

    def _detour_s(self, group: GroupView, via: ModelView, to: ModelView) -> float:
        """How much later than at once a model is reached if another has a short turn before it."""
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
    """Until when a model stays though others have waited for too long.

    When more is asked for than the GPU can give, everyone waits for too long; going round in
    shorter turns would only make it worse. But who has the least time is to be let in in time, if a
    turn as long as the switch is enough for that.
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
    """Who is next: the most suffering ended for each second that the switch takes.

    All are weighed at the same time, a round trip ahead with the quickest of them: each at its own
    would make slow switches look good.
    """
    costs_s = {view.name: group.measures.cost_s(active.name, view.name) for view in others}
    then = group.now + 2 * min(costs_s.values())

    def urgency(view: ModelView) -> float:
        return view.ages.squares(then) / max(costs_s[view.name], MOMENT_S)

    return sorted(others, key=urgency, reverse=True)


def _open_until(group: GroupView, active: ModelView, others: Sequence[ModelView]) -> float:
    """Until when to stay open: one more request costs those who wait elsewhere little.

    It lengthens the drain by its share of a batch; turned away, it would wait for the model's next
    turn. -inf: not at all.
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


def _suffered_enough_at(group: GroupView, active: ModelView, view: ModelView) -> float:
    """When those in a line will have suffered as much, once served, as a closing will cost here.

    Suffering grows with the square of the wait. Whoever comes for the active model while it is away
    for a round trip S waits for what is left of it: rate times the integral of t^2 from 0 to S.
    Those who are frozen in flight with it wait for its whole absence, again.
    """
    measures = group.measures
    drain_s = measures.drain_s(active.name) if active.in_flight else 0.0
    served_after_s = measures.cost_s(active.name, view.name) + drain_s
    rate = measures.arrivals_per_s(active.name, group.now)
    round_trip_s = _round_trip_s(group, active, view)
    at_stake = rate * round_trip_s**3 / 3
    if active.freezes:
        absence_s = max(round_trip_s, measures.absence_s(active.name) or 0.0)
        at_stake += SUSPENDED * (active.in_flight + active.queued) * absence_s**2
    return view.ages.squares_reach(at_stake) - served_after_s


def _reason(view: ModelView, now: float) -> str:
    return f"{view.queued} waiting, {view.ages.total(now):.1f} s in all"
