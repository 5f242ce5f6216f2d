"""Close models once the requests waiting elsewhere have suffered as much as their users will.

docs/inside/policy-study.md explains the rule and where its parts come from. It decides on measured
values (`llmux.policy.estimates`); only the bound is configurable. The `Scene` says which models
have to leave for another one, so that the rule is the same for one model awake at a time and for
several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

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
    next_retry,
    oldest,
)
from llmux.policy.deadlines import Deadlines
from llmux.policy.estimates import ARRIVALS
from llmux.policy.evictions import Evictions
from llmux.policy.scene import OneAwake, Option, Scene
from llmux.policy.shared import Shared

TICK_S = 0.25
"""Shortest interval to the next decision if nothing happens in between."""

TURN_SHARE = 0.3
"""A turn ended by the bound lasts at least this share of the absence before it. Larger values lower
the mean wait under overload and raise the longest wait (table in docs/inside/policy-study.md)."""

REGRET = 8.0
"""Weight of what a set of models has more at stake than the least of its target's sets."""

MOMENT_S = 1e-3
"""Lower limit for the cost of a switch where it is a divisor."""

# Why models stay.
IN_TURN = "a request elsewhere has waited for max_wait_secs, but this model's turn has just begun"
GATE = "requests are queued inside its server (policy.gate)"
FILLING = "one more of its requests hardly delays those who wait"
COSTLY = "leaving would cost its users more than those who wait have lost so far"
NO_ROOM = "no models that may leave would make room"


class AdaptivePolicy:
    """The default policy."""

    def __init__(self, config: PolicyConfig) -> None:
        self._max_wait_s = config.max_wait_secs
        self._min_active_s = config.min_active_secs
        self._deadlines = Deadlines(config.max_wait_secs)
        self._evictions = Evictions()

    def decide(self, group: GroupView) -> Decision:
        self._deadlines.note(group)
        scene: Scene
        if group.room is None:
            scene = OneAwake(group)
        else:
            scene = Shared(group, group.room, self._evictions)
            if (instead := _instead_of_drains(scene)) is not None:
                return instead
        wanted = scene.wanted
        if not wanted:
            return Stay()
        ready, retry_at = may_be_chosen(wanted, group.now), next_retry(wanted, group.now)
        if not ready:
            return look_again(retry_at, RETRY)
        if scene.is_empty:
            return first_come(oldest(ready), scene.now, COLD)
        return Weighing(scene, ready, self._deadlines, self._min_active_s, self._max_wait_s).decide(
            retry_at
        )


def _instead_of_drains(scene: Shared) -> SwitchTo | None:
    """Return a switch in place of a running one, if models that are idle now would do.

    While its models drain, another one may have become idle. Then the drain is called off.
    """
    for switch in scene.room.switches:
        models = scene.group.models
        if not switch.may_change or not any(models[name].in_flight for name in switch.draining):
            continue
        target = models[switch.target]
        drain = scene.option(target, switch.draining, is_choice=True)
        options = scene.idle_options(target, switch.draining)
        if not options:
            continue
        idle = options[0]
        stake = idle.stake + REGRET * max(0.0, idle.stake - drain.stake)
        if target.ages.squares(scene.now + idle.cost_s + drain.drain_s) >= stake:
            gone = [name for name in switch.evict if name not in switch.draining]
            evict = (*gone, *(view.name for view in idle.evict))
            return SwitchTo(target.name, "idle models make room", "instead", evict)
    return None


class Weighing:
    """One decision with models awake and others wanted.

    Args:
        scene: The view.
        ready: The models that may be chosen.
        deadlines: Those of all requests in line.
        min_active_s: Shortest stay of any model.
        max_wait_s: The bound.
    """

    def __init__(
        self,
        scene: Scene,
        ready: Sequence[ModelView],
        deadlines: Deadlines,
        min_active_s: float,
        max_wait_s: float,
    ) -> None:
        self._scene = scene
        self._deadlines = deadlines
        self._min_active_s, self._max_wait_s = min_active_s, max_wait_s
        self._ranked = _ranked(scene, ready)
        self._found: tuple[ModelView, float] | None = None
        self._closes: dict[str, float] = {}

    def decide(self, retry_at: float) -> Decision:
        """Apply the rules in order: bound, stay open, close; else say when to decide again."""
        scene, now = self._scene, self._scene.now
        ranked, due_at = self._ranked, self._deadlines.due_at
        if not ranked:
            return look_again(retry_at, NO_ROOM)
        overdue_at = max(due_at(oldest(ranked)), self._some_may_leave_at)
        if overdue_at <= now and self._turn_ends_at <= now:
            first = self._tightest[0]
            due = [view for view in ranked if due_at(view) <= now]
            found = next(self._in_time(self._over(due)), None)
            if found is None and self._is_ready(first):
                found = next(self._over([first]), None)
            if found is not None:
                return self._evicting(found, first_come(found.target, now, "bound"))
        next_at = math.inf
        closable: list[Option] = []
        for view in ranked:
            option, close_at = self._closes_first(view)
            if option is not None:
                closable.append(option)
            next_at = min(next_at, close_at)
        if closable and (found := next(self._in_time(closable), None)):
            rule = "close" if found.evict else "fits"
            return self._evicting(found, SwitchTo(found.target.name, _reason(found, now), rule))
        # Decide again before `next_at`: it was computed with today's arrival rate, which falls
        # while no requests arrive.
        leaving = [view for option in scene.options(ranked[0]) for view in option.evict]
        rate = max((scene.rate(view.name) for view in leaving), default=0.0)
        fades_s = ARRIVALS / rate if rate else math.inf
        at = min(now + max(TICK_S, min((next_at - now) / 4, fades_s)), retry_at)
        if overdue_at < at:
            at = min(at, max(overdue_at, self._turn_ends_at))
        why = self._why() if overdue_at > now else IN_TURN
        return LookAgain(at if at > now else now + TICK_S, why)

    def _evicting(self, option: Option, decision: SwitchTo) -> SwitchTo:
        """Name the evictions; with room for one model, the placement evicts all others."""
        if self._scene.group.room is None:
            return decision
        return replace(decision, evict=tuple(view.name for view in option.evict))

    def _why(self) -> str:
        option = self._scene.options(self._ranked[0])[0]
        now = self._scene.now
        if any(view.backend_queued for view in option.evict):
            return GATE
        if any(self._may_leave_at(view) > now for view in option.evict):
            return MIN_ACTIVE
        return FILLING if any(c > now for c in self._closes.values()) else COSTLY

    def _may_leave_at(self, view: ModelView) -> float:
        """Return the earliest time at which a model may be left; see `least_stay_s`."""
        stay_s = least_stay_s(self._scene.measures, view, self._min_active_s, self._max_wait_s)
        return self._scene.since(view) + stay_s

    @property
    def _some_may_leave_at(self) -> float:
        options = self._scene.options(self._ranked[0])
        return min(max(map(self._may_leave_at, o.evict), default=-math.inf) for o in options)

    # ---- Close ----

    def _closes_first(self, view: ModelView) -> tuple[Option | None, float]:
        """Return the first option whose models may close for a target, or None and when one will.

        The options are in order of what is at stake.
        """
        options, now = self._scene.options(view), self._scene.now
        next_at = math.inf
        for option in options:
            close_at = self._closes_at(option, options[0].stake)
            if close_at <= now:
                return option, math.inf
            next_at = min(next_at, close_at)
        return None, next_at

    def _closes_at(self, option: Option, least: float) -> float:
        """Return from when on closing the models of an option pays.

        From then on, the requests in the target's line will have suffered as much by the time they
        are served as closing costs the users of those models.
        """
        if not option.evict:
            return -math.inf
        at = -math.inf
        target = option.target.name
        for view in option.evict:
            if view.backend_queued:
                return self._scene.now + TICK_S
            closes_at = self._closes.get(view.name)
            if closes_at is None or target not in self._scene.needing(view.name):
                closes_at = self._may_close_at(view, target)
            at = max(at, closes_at)
        stake = option.stake + REGRET * (option.stake - least)
        pays_at = option.target.ages.squares_reach(stake)
        return max(at, pays_at - (option.cost_s + option.drain_s))

    def _may_close_at(self, view: ModelView, target: str) -> float:
        """Return from when on a model may stop admitting requests for the sake of a target."""
        needing = self._scene.needing(view.name)
        at = self._may_leave_at(view)
        if target not in needing:
            return max(at, self._open_until(view, needing | {target}))
        at = self._closes[view.name] = max(at, self._open_until(view, needing))
        return at

    def _open_until(self, view: ModelView, needing: AbstractSet[str]) -> float:
        """Return until when admitting one more request costs those waiting elsewhere little.

        It lengthens the drain by its share of a batch; turned away, it would wait for the model's
        next turn. -inf: closing may start at once.

        Args:
            view: A model that is awake.
            needing: The models that wait for it to leave.
        """
        if not view.in_flight:
            return -math.inf
        scene, measures = self._scene, self._scene.measures
        others = [each for each in self._ranked if each.name in needing]
        latency_s = measures.latency_s(view.name, view.in_flight + 1)
        if latency_s is None:
            return -math.inf
        added_s = latency_s / (view.in_flight + 1)
        absence_s = measures.absence_s(view.name)
        if absence_s is None:
            first = others[0]
            away_s = scene.cost_between_s(view, first) + scene.cost_between_s(first, view)
            absence_s = away_s + measures.drain_s(first.name)
        waiting = sum(each.ages.weight for each in others)
        if waiting * added_s >= absence_s:
            return -math.inf
        waited = sum(each.ages.total(scene.now) for each in others)
        enough = absence_s * absence_s / (2 * max(added_s, 1e-9))
        return scene.now + (enough - waited) / waiting

    # ---- Bound ----

    @property
    def _tightest(self) -> tuple[ModelView, float]:
        """The model with the tightest deadline, and its slack; see `Deadlines.tightest`."""
        if self._found is None:
            self._found = self._deadlines.tightest(self._scene)
        return self._found

    @property
    def _turn_ends_at(self) -> float:
        """When the turn of enough models is over, although a request elsewhere is overdue."""
        ends = (self._turns_end_at(o) for o in self._first_options())
        return min(ends, default=math.inf)

    def _first_options(self) -> Sequence[Option]:
        """Return the options of the tightest deadline, or of the first model that has any."""
        first = self._tightest[0]
        return (
            self._scene.options(first)
            if self._is_ready(first)
            else self._scene.options(self._ranked[0])
        )

    def _is_ready(self, view: ModelView) -> bool:
        return any(each is view for each in self._ranked)

    def _turns_end_at(self, option: Option) -> float:
        return max((self._turn_of(view) for view in option.evict), default=self._scene.now)

    def _turn_of(self, view: ModelView) -> float:
        """Return until when a model stays although a request elsewhere is overdue.

        When demand exceeds the GPU, every request becomes overdue, and shorter turns would only
        lose more time to switches. The model with the tightest deadline is still let in on time if
        a turn as long as the switch to it allows that.
        """
        scene, since = self._scene, self._scene.since(view)
        first, slack_s = self._tightest
        absence_s = scene.measures.absence_s(view.name) or 0.0
        least_s = scene.cost_between_s(view, first)
        turn_s = max(least_s + scene.cost_between_s(first, view), TURN_SHARE * absence_s)
        in_time_at = max(since + least_s, scene.now + slack_s)
        return max(self._may_leave_at(view), min(since + turn_s, in_time_at))

    def _over(self, views: Iterable[ModelView]) -> Iterator[Option]:
        """Yield for each model the first of its options whose models' turns are over."""
        now = self._scene.now
        for view in views:
            for option in self._scene.options(view):
                if self._turns_end_at(option) <= now:
                    yield option
                    break

    def _in_time(self, options: Iterable[Option]) -> Iterator[Option]:
        """Yield the options that can go first without making the tightest deadline late."""
        first, slack_s = self._tightest
        for option in options:
            if option.target is first or self._detour_s(option, first) <= slack_s:
                yield option

    def _detour_s(self, via: Option, to: ModelView) -> float:
        """Return how much later `to` wakes if `via` goes first, in seconds.

        That is the switch and the shortest turn of its target, unless there is room for both.
        """
        scene, target = self._scene, via.target
        direct = scene.options(to) if not to.is_moving else ()
        if direct and scene.leaves_room(via, direct[0]):
            return via.cost_s
        leave_s = scene.cost_between_s(target, to)
        stay_s = least_stay_s(scene.measures, target, self._min_active_s, self._max_wait_s)
        there_s = via.cost_s + max(leave_s, stay_s)
        there_s += drain_ahead_s(scene.measures, target, target.queued)
        if not direct:
            return there_s + leave_s
        longer_s = max(0.0, scene.drain_ahead_s(via) - scene.drain_ahead_s(direct[0]))
        return there_s + longer_s + leave_s - direct[0].cost_s


def _ranked(scene: Scene, views: Sequence[ModelView]) -> Sequence[ModelView]:
    """Sort models by the suffering that each second of their switch would end, highest first.

    All are compared at the same time, one round trip ahead with the cheapest switch: a time of its
    own for each would favour expensive switches. Models for which there is no room are left out.
    """
    costs_s = {view.name: o[0].cost_s for view in views if (o := scene.options(view))}
    if not costs_s:
        return []
    then = scene.now + 2 * min(costs_s.values())

    def urgency(view: ModelView) -> float:
        return view.ages.squares(then) / max(costs_s[view.name], MOMENT_S)

    return sorted((v for v in views if v.name in costs_s), key=urgency, reverse=True)


def _reason(option: Option, now: float) -> str:
    view = option.target
    return f"{view.queued} waiting, {view.ages.total(now):.1f} s in all"
