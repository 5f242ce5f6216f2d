"""What policies have in common: who waits for another model, and whose turn it would be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmux.policy.base import GroupView, LookAgain, ModelView, Stay, SwitchTo
from llmux.policy.estimates import Estimates

SLICE = 10.0
"""How many times the cost of its switch a model that goes on with frozen requests stays for them.

At most an eleventh of the time then goes into switching. Simulated, 5 and 20 are worse."""

COLD = "nothing was awake"
"""The rule that needs no weighing."""

LEAST_SLICE_S = 1.0
"""And at least so long, whatever the switch costs: frozen requests must get on."""


def wanted(group: GroupView) -> list[ModelView]:
    """The models other than the active one that requests wait for."""
    active = group.active
    return [v for v in group.models.values() if v.queued and v.name != active]


def may_be_chosen(models: Sequence[ModelView], now: float) -> list[ModelView]:
    """Those whose last wake did not fail just now: such a model delays nobody else."""
    return [view for view in models if view.retry_at <= now]


def next_retry(models: Sequence[ModelView], now: float) -> float:
    """When the next of them may be chosen that may not be now; infinity if there is none."""
    return min((view.retry_at for view in models if view.retry_at > now), default=math.inf)


def may_leave_at(group: GroupView, min_active_s: float, max_wait_s: float = math.inf) -> float:
    """When the active model may be left: after `min_active_secs`, and not without a use.

    A model that goes on with frozen requests must get on with them before others take its place, or
    the GPU would do nothing but switch. So must one whose slots are taken when it wakes, where
    draining is off.
    """
    assert group.active is not None
    assert group.active_since is not None
    active = group.models[group.active]
    return group.active_since + least_stay_s(group.measures, active, min_active_s, max_wait_s)


def least_stay_s(
    measures: Estimates, view: ModelView, min_active_s: float, max_wait_s: float = math.inf
) -> float:
    """How long a model stays awake at least, with the requests it has or will have."""
    if not (view.freezes and (view.in_flight or view.queued)):
        return min_active_s
    slice_s = min(SLICE * measures.typical_cost_s(view.name), max_wait_s)
    return max(min_active_s, slice_s, LEAST_SLICE_S)


def drain_ahead_s(measures: Estimates, view: ModelView, in_flight: int) -> float:
    """How long a drain of so many requests will take; nothing where none is waited for."""
    return 0.0 if view.freezes else measures.drain_ahead_s(view.name, in_flight)


def oldest(models: Sequence[ModelView]) -> ModelView:
    """The model whose first request in line arrived first."""
    return min(models, key=arrival_of)


def arrival_of(view: ModelView) -> float:
    """When the first in this line came; infinity if there is none."""
    return math.inf if view.oldest_arrival is None else view.oldest_arrival


def waited_s(view: ModelView, now: float) -> float:
    """How long the first in its line has waited, in seconds."""
    return now - arrival_of(view)


def first_come(view: ModelView, now: float, rule: str) -> SwitchTo:
    """The switch to a model because of the first in its line."""
    return SwitchTo(view.name, f"its oldest request waits {waited_s(view, now):.1f} s", rule)


def look_again(at: float) -> LookAgain | Stay:
    """Look again at a time, which may be never."""
    return Stay() if at == math.inf else LookAgain(at)
