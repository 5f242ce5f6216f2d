"""What a host expects: enough to choose among several hosts, and no more."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import Shape

HostState = Literal["ready", "cordoned", "stopping", "dead"]


class ModelOutlook(Shape, frozen=True):
    """What a request for a model would meet if it arrived now.

    Attributes:
        wait_secs: Its expected wait in line, the policy's own stay included; 0: it would be
            admitted at once. null: unknown.
        refused: The `error.code` that it would get; null: it would be served.
        awake: True if the model admits requests.
        running: Number of requests in flight.
        waiting: Number of requests in line.
        max_in_flight: Limit of the requests in flight; null: no limit.
        arrivals_per_sec: Its requests per second that reached this host of late.
        latency_secs: Usual time from a request's admission to the end of its response, with as many
            in flight as now; null: not measured.
        cost_secs: Expected hook time of a switch to it; 0 if it is awake. null: not measured.
        aliases: Other names for it.
    """

    wait_secs: float | None
    refused: str | None
    awake: bool
    running: int
    waiting: int
    max_in_flight: int | None
    arrivals_per_sec: float
    latency_secs: float | None
    cost_secs: float | None
    aliases: list[str] = []  # noqa: RUF012 - msgspec copies it


class Outlook(Shape, frozen=True):
    """What a host would do with a request that arrived now.

    Attributes:
        at: When this was found out.
        boot: Identifies this start of the host's llmux.
        state: ready, or why new requests are refused.
        models: Its models, by name.
    """

    at: float
    boot: str
    state: HostState
    models: dict[str, ModelOutlook]
