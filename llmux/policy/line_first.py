"""Before a model is left, let in its own line, which without a limit would be inside of it."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, GroupView, Policy, Stay, SwitchTo
from llmux.policy.choices import arrival_of, look_again
from llmux.policy.estimates import Measures


class Held(NamedTuple):
    """A switch that was decided, and waits for the line: in which stay, since when.

    `in_flight` is how many there were then, those in line included.
    """

    decision: SwitchTo
    active_since: float | None
    since: float
    in_flight: int


class LineFirst:
    """Any policy, but a switch serves those first who stood in line when it was decided.

    `max_in_flight` says how many requests a backend gets at once, not how many a turn is for.
    Without it all who came before a switch was decided are inside of the backend, and the drain
    serves them. With it some are still in line for a slot; were they left there, each turn would be
    for one batch, and a loaded GPU would do little but switch. So they belong to the drain, which
    begins with them: the model stays awake, whoever comes later stands behind them, and it closes
    once the last of them is in. The policy is asked again meanwhile only if nobody waits for the
    one that it has chosen any more.

    Not where models sleep with their requests: there leaving early is what is wanted.

    Args:
        policy: Decides everything else.
        config: Its `drain_timeout_secs` holds for this part of the drain, too.
        measures: Is told how long it took.
    """

    def __init__(self, policy: Policy, config: PolicyConfig, measures: Measures) -> None:
        self._policy = policy
        self._measures = measures
        self._held: Held | None = None
        limit_s, cuts = config.drain_timeout_secs, config.on_drain_timeout == "cut"
        self._limit_s = limit_s if cuts and limit_s is not None else math.inf

    def decide(self, group: GroupView) -> Decision:
        """Say what to do now."""
        held, self._held = self._held, None
        if held is not None and held.active_since != group.active_since:
            held = None
        if held is not None and _is_wanted(held.decision, group):
            decision: Decision = held.decision
        else:
            decision = self._policy.decide(group)
        if group.active is None or not isinstance(decision, SwitchTo):
            return decision
        active = group.models[group.active]
        if decision.model == active.name:
            return Stay()
        if active.freezes or not (active.queued or held):
            return decision
        since = held.since if held else group.now
        in_all = held.in_flight if held else active.in_flight + active.queued
        if arrival_of(active) > since or group.now >= since + self._limit_s:
            self._measures.note_line_first(active.name, group.now - since, in_all)
            return decision
        self._held = Held(decision, group.active_since, since, in_all)
        return look_again(since + self._limit_s)


def _is_wanted(decision: SwitchTo, group: GroupView) -> bool:
    target = group.models.get(decision.model)
    return target is not None and target.queued > 0
