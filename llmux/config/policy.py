"""Section of the config about switching."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from llmux.config.models import OnSwitch
from llmux.config.section import Section
from llmux.config.values import Name, PositiveInt, Seconds

POLICY_NAMES = ("adaptive", "fifo", "exhaustive", "cost_aware", "time_slice")
"""The built-in policies, which `llmux.policy.load` makes."""

PolicyName = Annotated[
    Name,
    Meta(
        extra_json_schema={
            "anyOf": [
                {"enum": list(POLICY_NAMES)},
                {"type": "string", "pattern": r"^[\w.]+:\w+$"},
            ]
        }
    ),
]


class PolicyConfig(Section, frozen=True, kw_only=True):
    """When to switch, and how long to wait for it.

    Attributes:
        name: One of adaptive, fifo, exhaustive, cost_aware or time_slice; package.module:Class for
            your own.
        request_timeout_secs: Maximum wait for a model; null for no limit.
        drain_before_switch: Let requests in flight finish before their model sleeps.
        drain_timeout_secs: Maximum duration of a drain; null for no limit.
        on_drain_timeout: Cut the requests that are still in flight then, or only log them and wait.
        websocket: Effect of WebSockets on a switch: they hold it up, are ignored and stay open, or
            are cut at once.
        websocket_idle_secs: Cut a WebSocket without a message for this long once a request waits
            for its place; null for never. Pings are no messages.
        waiting_keepalive_secs: Interval of the comments that a client waiting for server-sent
            events gets until the first byte of its response's body; null for none.
        min_active_secs: Minimum time that a model stays awake.
        alive_interval_secs: Interval of the alive hook for the model that is awake; 0 for never.
        alive_failures: Consecutive failures after which a model counts as down; 1 if its backend
            has refused a connection.
        wake_failures: Consecutive failed wakes after which a model is tried again only while no
            other model of its group is served, or by an operator; meanwhile its requests get 503
            model_failing. null for never.
        max_wait_secs: After this long a wait a request's model is next, or soon: docs/policies.md.
        abandon_wakes: End a wake hook once no request waits for its model any more, then run the
            sleep hook; otherwise the wake goes on.
        gate: Do not leave a model while its backend's metrics (vLLM's) report waiting requests.
        client_hints: Honour the headers x-llmux-priority and x-llmux-max-wait of requests.
        options: Options for your own policy, passed on unchecked.
    """

    name: PolicyName = "adaptive"
    request_timeout_secs: Annotated[float, Meta(ge=0)] | None = None
    drain_before_switch: bool = True
    drain_timeout_secs: Seconds | None = None
    on_drain_timeout: Literal["cut", "wait"] = "cut"
    websocket: OnSwitch = "hold"
    websocket_idle_secs: Seconds | None = 300.0
    waiting_keepalive_secs: Seconds | None = None
    min_active_secs: Annotated[float, Meta(ge=0)] = 0.0
    alive_interval_secs: Annotated[float, Meta(ge=0)] = 30.0
    alive_failures: PositiveInt = 3
    wake_failures: PositiveInt | None = 3
    max_wait_secs: Seconds = 300.0
    abandon_wakes: bool = False
    gate: bool = False
    client_hints: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it
