"""Requests on their way, counts of them, and token rates."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import Shape

RequestPhase = Literal["reading", "waiting", "forwarding", "answering", "ended"]


class Counts(Shape, frozen=True):
    """How many requests there are, for the models where that has changed.

    Attributes:
        at: When.
        models: In flight and waiting, by model.
    """

    at: float
    models: dict[str, tuple[int, int]]


class RequestInfo(Shape, frozen=True):
    """A request for a model.

    Attributes:
        id: Its name as long as llmux runs.
        model: What it is for; empty while that is not known, and for the fallback.
        phase: reading: its body arrives; waiting: for the model; forwarding: the model has said
            nothing yet; answering: the answer is on its way.
        arrived: When it came.
        waited_secs: How long it has waited for its model.
        client: Where it comes from.
        method: Its method.
        path: Its path, without the query.
        bytes_in: Length of its body.
        bytes_out: How much of the answer was sent.
        ended: When it ended.
        status: What it was counted as; 499: its client left.
        first_byte_secs: How long after its arrival the first byte of the answer's body came; null:
            none has.
        tokens_in: Tokens of what was asked, once the answer is over and has told of them.
        tokens_out: Tokens of the answer, likewise.
    """

    id: str
    model: str
    phase: RequestPhase
    arrived: float
    waited_secs: float
    client: str | None
    method: str
    path: str
    bytes_in: int
    bytes_out: int
    ended: float | None = None
    status: int | None = None
    first_byte_secs: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class RequestList(Shape, frozen=True):
    """The requests that are being served, oldest first.

    Attributes:
        at: When.
        total: How many there are.
        requests: The oldest of them.
    """

    at: float
    total: int
    requests: list[RequestInfo]


class RequestChanges(Shape, frozen=True):
    """Changes of requests since the last such event.

    A request that came and went in between is told of once, as ended.

    Attributes:
        at: When.
        changed: Those whose phase has changed.
        ended: Those that have ended.
        omitted: How many more there were of both: an event tells of so many only.
    """

    at: float
    changed: list[RequestInfo]
    ended: list[RequestInfo]
    omitted: int = 0


class TokenRates(Shape, frozen=True):
    """How many tokens answers have a second, for the models where that has changed.

    Attributes:
        at: When.
        models: Tokens a second, by model: see `tokens_per_sec` of a model.
    """

    at: float
    models: dict[str, float]
