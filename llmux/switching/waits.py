"""Estimates of how long a request will wait, from measured switches and latencies."""

from __future__ import annotations

import math

from llmux.policy.evictions import Evictions
from llmux.policy.shared import Shared
from llmux.switching.group import Group
from llmux.switching.model import Model
from llmux.switching.views import view_of


def wait_s(group: Group, model: Model) -> float:
    """Return an estimate of the seconds that a request arriving now would wait in line.

    It assumes that the switch begins at once, although the policy may delay it.
    """
    measures = group.measures
    seconds = _shared_switch_s(group, model) if group.shares_memory else _switch_s(group, model)
    if model.max_in_flight != math.inf:  # as many rounds as there are in line
        latency_s = measures.latency_s(model.name, int(model.max_in_flight)) or 0.0
        seconds += latency_s * model.waiters.count / model.max_in_flight
    return seconds


def _switch_s(group: Group, model: Model) -> float:
    measures, active = group.measures, group.active
    if active is model:
        return 0.0
    seconds = measures.cost_s(group.active_name, model.name)
    if active is not None and active.in_flight.count:
        seconds += measures.drain_s(active.name)
    return seconds


def _shared_switch_s(group: Group, model: Model) -> float:
    """Return the same where models share memory: with the evictions that have least at stake."""
    if model.is_awake:
        return 0.0
    wake_s = group.measures.usual_wake_s(model.name)
    view = view_of(group)
    shown = view.models.get(model.name)
    if view.room is None or shown is None or group.is_waking(model):
        return wake_s
    options = Shared(view, view.room, Evictions()).options(shown)
    return options[0].cost_s + options[0].drain_s if options else wake_s


def retry_after_s(group: Group, model: Model) -> float:
    """Return after how many seconds a request that is refused for the line's length may come again.

    The policy's stay is included if there is a forecast; the first refusal asks for one.
    """
    forecast_s = group.ask_forecast(model.name)
    return wait_s(group, model) if forecast_s is None else forecast_s


def eta_s(group: Group, model: Model) -> float | None:
    """Return `wait_s`, or None if this switch was never measured."""
    if model.admits:
        return 0.0
    if group.shares_memory:
        is_known = model.is_awake or group.measures.wake_s(model.name) is not None
        return wait_s(group, model) if is_known else None
    source = group.active_name
    if source != model.name and group.measures.costs.estimate(source, model.name) is None:
        return None
    return wait_s(group, model)
