"""Decides on the next command of a group.

It is the first queued command, or else one from the policy, or else one from the idle rules. All of
this is synchronous: `Switcher` starts to wait for a change without a checkpoint after the decision,
so that it misses none. The placement names the models to evict when the command starts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import trio
from msgspec.structs import replace as replace_in

from llmux.observe.logs import get_logger
from llmux.policy import Decision, GroupView, LineFirst, LookAgain, ModelView, Policy, SwitchTo
from llmux.policy.base import LEAST_STEP_S, by_name
from llmux.switching.commands import Command, Wake
from llmux.switching.group import Group
from llmux.switching.idle import idle_command
from llmux.switching.model import Model

log = get_logger(__name__)


class Decider:
    """Decides on the next command of one group.

    Attributes:
        policy: The policy that it asks.
    """

    def __init__(self, group: Group, policy: Policy) -> None:
        self._group = group
        self._began_at = 0.0
        self._why_it_stays = ""
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Use another policy, with the group's current settings."""
        self._has_looked_back = False
        self.policy = LineFirst(policy, self._group.settings, self._group.measures)

    def begin(self) -> None:
        """Start counting idle time, and queue the wake of the model that the config preloads."""
        self._began_at = trio.current_time()
        group = self._group
        model = group.models.get(group.idle_rules.preload or "")
        is_free = not any(each.holds_gpu for each in group.models.values())
        # An operator's command may be queued already; it takes precedence.
        if model is not None and is_free and not group.commands:
            group.queue(Wake(model, "at the start", stands=True, rule="preload"))

    def decide(self) -> tuple[Command | None, float]:
        """Return the next command, or None and when to decide again (Trio's clock, seconds)."""
        group = self._group
        look_again_at = math.inf
        command: Command | None = None
        if group.commands:
            command = group.commands.popleft()
        elif group.mode == "auto":
            command, look_again_at = self._choose()
        return command, look_again_at

    def place(self, command: Command) -> Command:
        """Return a command with the models to evict filled in, just before it starts.

        Not earlier: other models may hold the GPU now than when it was queued or decided.
        """
        if not isinstance(command, Wake) or command.target.is_awake:
            return command
        return replace(command, evict=self._group.evictions_for(command.target))

    def _choose(self) -> tuple[Command | None, float]:
        """Ask the policy, and then the idle rules if it wants no switch."""
        group = self._group
        decision = self.policy.decide(self._view())
        if isinstance(decision, SwitchTo):
            self._why_it_stays = ""
            target = group.models[decision.model]
            # A policy of the user's own may choose what the view says that it may not.
            if target.is_failing and not group.may_try(target):
                return None, group.trial_at(target)
            return self._wake(target, decision), math.inf
        # A policy of the user's own may return None to stay.
        self._why_it_stays = getattr(decision, "why", "")
        look_again_at = self._next_look(decision)
        if group.pins.current is not None or not group.has_idle_rules:
            return None, look_again_at
        command, at = self._idle_command()
        return command, min(at, look_again_at)

    def _next_look(self, decision: Decision | None) -> float:
        if not isinstance(decision, LookAgain):
            return math.inf
        now = trio.current_time()
        if not decision.is_ahead(now) and not self._has_looked_back:
            self._has_looked_back = True
            hint = f"LookAgain needs a time after view.now; asked again every {LEAST_STEP_S} s"
            log.warning("policy_looks_back", group=self._group.name, hint=hint)
        return decision.next_at(now)

    @property
    def why_it_stays(self) -> str:
        """Why the model that is awake stays although requests wait for others; empty: none do."""
        group, active = self._group, self._group.active
        if active is None or not any(each.wanted_by for each in group.others(active)):
            return ""
        return f"{active.name} is pinned" if group.pins.current else self._why_it_stays

    @staticmethod
    def _wake(target: Model, decision: SwitchTo) -> Wake:
        return Wake(
            target,
            decision.reason,
            rule=decision.rule,
            stands=not target.wanted_by,
            is_trial=target.is_failing,
        )

    def _idle_command(self) -> tuple[Command | None, float]:
        group = self._group
        standby = group.models.get(group.idle_rules.standby or "")
        is_failing = standby is not None and standby.is_failing
        command, at = idle_command(
            group.models,
            group.active,
            group.idle_rules,
            began_at=self._began_at,
            now=trio.current_time(),
            min_active_s=group.settings.min_active_secs,
            standby_from=group.trial_at(standby) if standby and is_failing else -math.inf,
        )
        if is_failing and isinstance(command, Wake):
            command = replace(command, is_trial=True)
        return command, at

    def _view(self) -> GroupView:
        group, active = self._group, self._group.active
        shown = list(group.models.values())
        if (pinned := group.pins.model) is not None:  # the policy may choose nothing else
            shown = [each for each in shown if each is active or each.name == pinned]
        return GroupView(
            now=trio.current_time(),
            active=active.name if active else None,
            active_since=active.awake_since if active else None,
            models=by_name(self._shown(model) for model in shown),
            measures=group.measures.estimates,
        )

    def _shown(self, model: Model) -> ModelView:
        """Return a model's view; a failing one may be chosen only when it may be tried."""
        view = model.view()
        if not model.is_failing or model.is_awake:
            return view
        return replace_in(view, retry_at=self._group.trial_at(model))
