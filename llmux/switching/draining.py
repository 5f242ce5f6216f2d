"""Draining: wait for requests in flight, or cut those that a drain must not wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio
from trio_util import periodic

from llmux.config import PolicyConfig
from llmux.observe.logs import get_logger
from llmux.switching.group import Group
from llmux.switching.inflight import Flight
from llmux.switching.model import Model, Phase

SLOW_DRAIN_S = 60.0
"""Interval at which a drain that lasts is logged."""

log = get_logger(__name__)


async def wait_drained(model: Model, settings: PolicyConfig) -> None:
    """Wait for the requests in flight; at `drain_timeout_secs`, cut them or log a warning."""
    timeout_s = settings.drain_timeout_secs
    with trio.move_on_after(math.inf if timeout_s is None else timeout_s) as limit:
        await model.in_flight.wait_empty()
    if limit.cancelled_caught:
        cuts = settings.on_drain_timeout == "cut"
        event = "drain_cut" if cuts else "drain_over_time"
        log.warning(event, model=model.name, in_flight=model.in_flight.count)
        if cuts:
            model.in_flight.cut()
        await model.in_flight.wait_empty()


def cut_sockets(model: Model, flights: Sequence[Flight]) -> None:
    """Cut WebSockets that are in the way of a switch, a removal or another request."""
    for flight in flights:
        flight.cut()
    if flights:
        log.info("websockets_cut", model=model.name, count=len(flights))


def look_at_sockets(group: Group) -> None:
    """Cut WebSockets that are in the way. Called periodically, since no event marks quiet ones.

    A drain or removal does not wait for a WebSocket that is quiet or yields. A request that waits
    for a slot takes the one of a quiet WebSocket.
    """
    for model in group.models.values():
        if not (yielding := model.yielding):
            continue
        is_draining = model.phase is Phase.DRAINING and model.is_drained
        if is_draining or model.name in group.leaving:
            cut_sockets(model, yielding)
        elif model.is_awake and model.waiters.count:
            cut_sockets(model, model.quiet[: model.waiters.count])
        # Policies and idle rules do not count these WebSockets, so the decision may change.
        group.changed.set()


async def log_slow_drain(model: Model) -> None:
    """Log a drain every minute, until cancelled."""
    async for drained_s, _ in periodic(SLOW_DRAIN_S):
        if not drained_s:
            continue  # `periodic` yields at once, before the first interval
        entered_at = model.in_flight.oldest
        oldest_s = 0.0 if entered_at is None else trio.current_time() - entered_at
        log.warning(
            "drain_slow",
            model=model.name,
            in_flight=model.in_flight.count,
            oldest_secs=round(oldest_s, 1),
            drain_secs=round(drained_s, 1),
        )
