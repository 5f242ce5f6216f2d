"""Helpers that policies share: models with demand, their order, and the shortest stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llmux.policy.base import GroupView, LookAgain, ModelView, Stay, SwitchTo
from llmux.policy.estimates import Estimates

SLICE = 10.0
"""Shortest stay of a model that resumes frozen requests, in multiples of its switch cost.

At most an eleventh of the time is then spent on switches. In simulation, 5 and 20 are worse."""

COLD = "nothing was awake"
"""Rule of switches from an idle GPU, which need no weighing."""

LEAST_SLICE_S = 1.0
"""Lower limit of that stay, however cheap the switch: frozen requests must make progress."""


MIN_ACTIVE = "it has been awake for less than min_active_secs, or has frozen requests to go on with"
"""Why a model stays that may not be left yet (`may_leave_at`)."""

BUSY = "it still has work"
"""Why a model stays that has requests of its own."""

RETRY = "the next try of a model that failed to wake is not due"
"""Why nothing is woken for the requests that wait."""


def wanted(group: GroupView) -> list[ModelView]:
    """Return the models with waiting requests, except the active one."""
    active = group.active
    return [v for v in group.models.values() if v.queued and v.name != active]


def may_be_chosen(models: Iterable[ModelView], now: float) -> list[ModelView]:
    """Return the models that are not backing off after a failed wake."""
    return [view for view in models if view.retry_at <= now]


def next_retry(models: Sequence[ModelView], now: float) -> float:
    """Return when the next backoff after a failed wake ends; infinity if there is none."""
    return min((view.retry_at for view in models if view.retry_at > now), default=math.inf)


def until_retry(models: Sequence[ModelView], now: float) -> LookAgain | Stay:
    """Return the decision where all models that are wanted are backing off, if there are any."""
    return look_again(next_retry(models, now), RETRY if models else "")


def may_leave_at(group: GroupView, min_active_s: float, max_wait_s: float = math.inf) -> float:
    """Return the earliest time at which the active model may be left.

    That is after `min_active_secs`; later if it resumes frozen requests, since the GPU would do
    nothing but switch if they made no progress. The same holds for a model whose slots are taken
    when it wakes, where draining is off.
    """
    assert group.active is not None
    assert group.active_since is not None
    active = group.models[group.active]
    return group.active_since + least_stay_s(group.measures, active, min_active_s, max_wait_s)


def least_stay_s(
    measures: Estimates, view: ModelView, min_active_s: float, max_wait_s: float = math.inf
) -> float:
    """Return the shortest stay of a model with its present requests, in seconds."""
    if not (view.freezes and (view.in_flight or view.queued)):
        return min_active_s
    slice_s = min(SLICE * measures.typical_cost_s(view.name), max_wait_s)
    return max(min_active_s, slice_s, LEAST_SLICE_S)


def drain_ahead_s(measures: Estimates, view: ModelView, in_flight: int) -> float:
    """Return the expected drain of this many requests, in seconds; 0 if the model freezes them."""
    return 0.0 if view.freezes else measures.drain_ahead_s(view.name, in_flight)


def oldest(models: Sequence[ModelView]) -> ModelView:
    """Return the model with the oldest waiting request."""
    return min(models, key=arrival_of)


def arrival_of(view: ModelView) -> float:
    """Return when the oldest waiting request arrived; infinity if there is none."""
    return math.inf if view.oldest_arrival is None else view.oldest_arrival


def waited_s(view: ModelView, now: float) -> float:
    """Return how long the oldest request has waited, in seconds."""
    return now - arrival_of(view)


def first_come(view: ModelView, now: float, rule: str) -> SwitchTo:
    """Return the switch to a model because of its oldest request."""
    return SwitchTo(view.name, f"its oldest request waits {waited_s(view, now):.1f} s", rule)


def look_again(at: float, why: str) -> LookAgain | Stay:
    """Return `LookAgain(at)`, or `Stay` if `at` is infinite."""
    return Stay(why) if at == math.inf else LookAgain(at, why)
