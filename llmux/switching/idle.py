"""Idle rules: while no request needs a model, put an unused one to sleep, or wake a standby."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmux.switching.commands import Command, Sleep, Wake
from llmux.switching.model import Model


@dataclass(frozen=True, slots=True)
class IdleRules:
    """The idle rules of one group.

    Attributes:
        standby: The model to wake while the group is idle, or None.
        standby_after_s: Seconds for which the group must have been idle before that.
        preload: The model to wake at the start, or None.
    """

    standby: str | None = None
    standby_after_s: float = 300.0
    preload: str | None = None


NO_IDLE_RULES = IdleRules()


def idle_command(
    models: Mapping[str, Model],
    active: Model | None,
    rules: IdleRules,
    *,
    began_at: float,
    now: float,
    min_active_s: float = 0.0,
    standby_from: float = -math.inf,
) -> tuple[Command | None, float]:
    """Return the command that the idle rules call for, or None and when to ask again.

    Call it while no switch runs. Such a command does not stand: it is abandoned as soon as a
    request waits for any model. Times are Trio's, in seconds.

    Args:
        models: The group's models.
        active: The model that is awake, if any.
        rules: The group's idle rules.
        began_at: When llmux began to serve the group.
        now: The current time.
        min_active_s: Minimum time for which a model stays awake.
        standby_from: When the standby may be woken at the earliest.
    """
    if any(
        model.wanted_by or model.in_flight.in_use > len(model.quiet) for model in models.values()
    ):
        return None, math.inf  # the group is in use; a change of that leads to a new decision
    idle_since = max([began_at, *(max(m.idle_since, m.entered_at) for m in models.values())])
    may_leave_at = -math.inf if active is None else active.awake_since + min_active_s
    wake_at = sleep_at = math.inf
    standby = models.get(rules.standby or "")
    if standby is not None and standby is not active:
        after_s = rules.standby_after_s
        wake_at = max(idle_since + after_s, standby.retry_at, may_leave_at, standby_from)
        if wake_at <= now:
            wake = Wake(standby, "nothing else is wanted", rule="standby", is_unasked=True)
            return wake, math.inf
    if active is not None:
        sleep_at = max(active.idle_since + active.idle_sleep_s, may_leave_at)
        if sleep_at <= now:
            return Sleep(active, f"unused for {active.idle_sleep_s:g} s", rule="idle"), math.inf
    return None, min(wake_at, sleep_at)
