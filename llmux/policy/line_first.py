"""Before a model is left: those in its own line, who would be inside of it without a limit."""

from __future__ import annotations

import math

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, Policy, Snapshot, Stay, SwitchTo
from llmux.policy.choices import arrival_of, look_again


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
    """

    def __init__(self, policy: Policy, config: PolicyConfig) -> None:
        self._policy = policy
        self._held: SwitchTo | None = None  # decided, but for the line
        self._held_since: float | None = None  # in the stay that began then
        limit_s, cuts = config.drain_timeout_secs, config.on_drain_timeout == "cut"
        self._limit_s = limit_s if cuts and limit_s is not None else math.inf

    def decide(self, snapshot: Snapshot) -> Decision:
        """Say what to do now."""
        decision = self._kept(snapshot) or self._policy.decide(snapshot)
        if snapshot.active is None:
            return decision
        if isinstance(decision, SwitchTo) and decision.model == snapshot.active:
            decision = Stay()
        active, measures = snapshot.models[snapshot.active], snapshot.measures
        if not isinstance(decision, SwitchTo) or active.freezes:
            measures.note_stays(active.name)
            return decision
        if not active.queued:
            return decision
        in_all = active.in_flight + active.queued
        decided_at = measures.note_closing(active.name, snapshot.now, in_all)
        if arrival_of(active) > decided_at or snapshot.now >= decided_at + self._limit_s:
            return decision
        self._held, self._held_since = decision, snapshot.active_since
        return look_again(decided_at + self._limit_s)

    def _kept(self, snapshot: Snapshot) -> SwitchTo | None:
        """What was decided, if the same model is awake, and somebody still waits for the other."""
        held, self._held = self._held, None
        if held is None or snapshot.active_since != self._held_since:
            return None
        target = snapshot.models.get(held.model)
        return held if target is not None and target.queued else None
