"""Estimates of how long a request will wait, from measured switches and latencies."""

from __future__ import annotations

import math

from llmux.policy.room import less
from llmux.switching.group import Group
from llmux.switching.model import Model


def wait_s(group: Group, model: Model) -> float:
    """Return an estimate of the seconds that a request arriving now would wait in line.

    It assumes that the switch begins at once, although the policy may delay it.
    """
    measures, active = group.measures, group.active
    seconds = 0.0
    if group.shares_memory:
        seconds += _shared_wait_s(group, model)
    elif active is not model:
        seconds += measures.cost_s(group.active_name, model.name)
        if active is not None and active.in_flight.count:
            seconds += measures.drain_s(active.name)
    if model.max_in_flight != math.inf:  # as many rounds as there are in line
        latency_s = measures.latency_s(model.name, int(model.max_in_flight)) or 0.0
        seconds += latency_s * model.waiters.count / model.max_in_flight
    return seconds


def retry_after_s(group: Group, model: Model) -> float:
    """Return after how many seconds a request that is refused for the line's length may come again.

    The policy's stay is included if there is a forecast; the first refusal asks for one.
    """
    forecast_s = group.ask_forecast(model.name)
    return wait_s(group, model) if forecast_s is None else forecast_s


def eta_s(group: Group, model: Model) -> float | None:
    """Return `wait_s`, or None if no wake of the model was ever measured."""
    if model.admits:
        return 0.0
    if not model.is_awake and not group.measures.knows_wake(model.name):
        return None
    return wait_s(group, model)


def cost_s(group: Group, model: Model) -> float | None:
    """Return the expected hook time of a switch to a model that sleeps; None: never measured."""
    measures = group.measures
    if not group.shares_memory:
        return measures.costs.estimate(group.active_name, model.name)
    wake_s = measures.wake_s(model.name)
    if wake_s is None:
        return None
    return wake_s + sum(measures.usual_sleep_s(each.name) for each in _leaving(group, model))


def _shared_wait_s(group: Group, model: Model) -> float:
    if model.is_awake:
        return 0.0
    measures, leaving = group.measures, _leaving(group, model)
    drains_s = (measures.drain_s(each.name) for each in leaving if each.in_flight.count)
    hooks_s = sum(measures.usual_sleep_s(each.name) for each in leaving)
    return measures.usual_wake_s(model.name) + hooks_s + max(drains_s, default=0.0)


def _leaving(group: Group, model: Model) -> list[Model]:
    """Return the models that would leave for another one, if the least recently used did.

    The policy may choose others; this takes no more time than a refusal may.
    """
    ledger = group.room.ledger
    if any(plan.target == model.name for plan in ledger.plans):
        return []  # a running switch makes room for it
    missing, found = ledger.missing(model.name), list[Model]()
    for each in sorted(group.awake, key=lambda awake: awake.used_at):
        freed = ledger.freed(each.name)
        helps = any(lack > 0 < back for lack, back in zip(missing, freed, strict=True))
        if helps and not (each.is_kept or each.name in ledger.planned):
            missing = less(missing, freed)
            found.append(each)
    return found
