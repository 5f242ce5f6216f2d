"""What a host expects: enough to choose among several hosts, and no more."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from llmux.observe.schemas.base import Shape

HostState = Literal["ready", "cordoned", "stopping", "dead"]

Amount = Annotated[float, Meta(ge=0, le=1e12)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
"""Bounds that keep a wrong number of one host out of what is worked out for all."""


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

    wait_secs: Amount | None
    refused: str | None
    awake: bool
    running: Count
    waiting: Count
    max_in_flight: Annotated[int, Meta(ge=1, le=2**53)] | None
    arrivals_per_sec: Amount
    latency_secs: Amount | None
    cost_secs: Amount | None
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
