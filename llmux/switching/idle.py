"""What a group does while nobody wants anything: sleep a model that is not used, wake a standby."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmux.switching.commands import Order
from llmux.switching.model import Model


@dataclass(frozen=True, slots=True)
class IdleRules:
    """What the config says of an idle group.

    Attributes:
        standby: The model that is woken when nothing else is wanted; None: none.
        standby_after_s: How long nothing must have been wanted before that.
        preload: The model that is woken at the start; None: none.
    """

    standby: str | None = None
    standby_after_s: float = 300.0
    preload: str | None = None


NO_IDLE_RULES = IdleRules()


def idle_order(
    models: Mapping[str, Model],
    rules: IdleRules,
    began_at: float,
    now: float,
    *,
    min_active_s: float = 0.0,
) -> tuple[Order | None, float]:
    """What to do in a group in which no switch runs, and when to look again at the latest.

    Such an order does not stand: it is called off as soon as somebody waits for anything.

    Args:
        models: The group's.
        rules: What its config says.
        began_at: When the group was begun to be served.
        now: The time; like all others here of Trio's clock, in seconds.
        min_active_s: How long the model that is awake stays so at least.
    """
    if any(
        model.wanted_by or model.in_flight.in_use > len(model.quiet) for model in models.values()
    ):
        return None, math.inf  # asked again when that changes
    active = next((model for model in models.values() if model.is_awake), None)
    idle_since = max([began_at, *(max(m.idle_since, m.entered_at) for m in models.values())])
    may_leave_at = -math.inf if active is None else active.awake_since + min_active_s
    standby = models.get(rules.standby or "")
    if standby is not None and standby is not active:
        wake_at = max(idle_since + rules.standby_after_s, standby.retry_at, may_leave_at)
        if wake_at <= now:
            return Order(standby, "nothing else is wanted", rule="standby"), math.inf
    else:
        wake_at = math.inf
    sleep_at = math.inf
    if active is not None:
        sleep_at = max(active.idle_since + active.idle_sleep_s, may_leave_at)
    if active is not None and sleep_at <= now:
        reason = f"unused for {active.idle_sleep_s:g} s"
        return Order(active, reason, to="asleep", rule="idle"), math.inf
    return None, min(wake_at, sleep_at)
