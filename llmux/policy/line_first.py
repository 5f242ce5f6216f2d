"""Admit a model's own line before a switch away from it; without a limit it would be in flight."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, Policy, Stay, SwitchTo
from llmux.policy.choices import arrival_of, look_again
from llmux.policy.estimates import Measures

LINE_FIRST = "the switch is decided; its requests that came before are let in first"
"""Why it stays meanwhile."""


class DeferredSwitch(NamedTuple):
    """A switch that was decided and waits for the line of the active model.

    Attributes:
        decision: The switch.
        active_since: When the stay that it ends began.
        since: When it was decided.
        in_flight: Number of requests in flight and in line at that time.
    """

    decision: SwitchTo
    active_since: float | None
    since: float
    in_flight: int


class LineFirst:
    """Wrap a policy so that a switch first admits the requests that were in line at its decision.

    `max_in_flight` limits how many requests a backend gets at once, not how many a turn serves.
    Without it, all requests that arrived before the decision are in flight, and the drain serves
    them. With it, some are still in line for a slot; if a switch left them there, each turn would
    serve one batch, and a loaded GPU would do little but switch. So the drain begins with them: the
    model stays awake, later arrivals queue behind them, and it closes once the last of them is in
    flight. Meanwhile the policy is asked again only if nobody waits for the chosen target any more.

    Models that freeze their requests are exempt: there, leaving early is the point. Where several
    models are awake, each eviction does this for its own model (`Steps.let_line_in_first`), so that
    it holds up no other switch.

    Args:
        policy: The wrapped policy.
        config: `drain_timeout_secs` limits this part of the drain, too.
        measures: Receives the duration of this part.
    """

    def __init__(self, policy: Policy, config: PolicyConfig, measures: Measures) -> None:
        self._policy = policy
        self._measures = measures
        self._deferred: DeferredSwitch | None = None
        limit_s, cuts = config.drain_timeout_secs, config.on_drain_timeout == "cut"
        self._limit_s = limit_s if cuts and limit_s is not None else math.inf

    def decide(self, group: GroupView) -> Decision:
        if group.room is not None:
            return self._policy.decide(group)
        deferred, self._deferred = self._deferred, None
        if deferred is not None and deferred.active_since != group.active_since:
            deferred = None
        if deferred is not None and _is_wanted(deferred.decision, group):
            decision: Decision = deferred.decision
        else:
            decision = self._policy.decide(group)
        if group.active is None or not isinstance(decision, SwitchTo):
            return decision
        active = group.models[group.active]
        if decision.model == active.name:
            return Stay()
        if active.freezes or not (active.queued or deferred):
            return decision
        since = deferred.since if deferred else group.now
        in_all = deferred.in_flight if deferred else active.in_flight + active.queued
        if arrival_of(active) > since or group.now >= since + self._limit_s:
            self._measures.note_line_first(active.name, group.now - since, in_all)
            return decision
        self._deferred = DeferredSwitch(decision, group.active_since, since, in_all)
        return look_again(since + self._limit_s, LINE_FIRST)


def _is_wanted(decision: SwitchTo, group: GroupView) -> bool:
    target = group.models.get(decision.model)
    return target is not None and target.queued > 0
