"""Estimates of how long a request will wait, from measured switches and latencies."""

from __future__ import annotations

import math

from llmux.switching.group import Group
from llmux.switching.model import Model


def wait_s(group: Group, model: Model) -> float:
    """Return an estimate of the seconds that a request arriving now would wait in line.

    It assumes that the switch begins at once, although the policy may delay it.
    """
    measures, active = group.measures, group.active
    seconds = 0.0
    if active is not model:
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
    """Return `wait_s`, or None if this switch was never measured."""
    if model.admits:
        return 0.0
    source = group.active_name
    if source != model.name and group.measures.costs.estimate(source, model.name) is None:
        return None
    return wait_s(group, model)
