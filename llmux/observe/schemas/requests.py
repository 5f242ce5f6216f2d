"""Current requests, their numbers, and token rates."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import Shape

RequestPhase = Literal["reading", "waiting", "forwarding", "answering", "ended"]


class Counts(Shape, frozen=True):
    """The numbers of requests, for the models where they have changed.

    Attributes:
        at: When.
        models: Requests in flight and requests waiting, by model.
    """

    at: float
    models: dict[str, tuple[int, int]]


class RequestInfo(Shape, frozen=True):
    """A request for a model.

    Attributes:
        id: Identifies it as long as llmux runs.
        model: The requested model; empty while that is unknown, and for the fallback backend.
        phase: reading: its body is arriving; waiting: for the model; forwarding: the backend has
            not answered yet; answering: the response is being sent.
        arrived: When it arrived.
        waited_secs: Time that it has waited for its model.
        client: The client's address.
        method: The HTTP method.
        path: The path, without the query.
        bytes_in: Length of its body.
        bytes_out: Bytes of the response sent so far.
        ended: When it ended; null: it has not.
        status: The status that it was counted as; 499: its client left.
        first_byte_secs: Time from its arrival to the first byte of the response's body; null: there
            is none yet.
        tokens_in: Tokens of the prompt, if the response has reported them; null before its end.
        tokens_out: Tokens of the response, likewise.
        tokens_per_sec: Tokens of the response per second: of a stream since its first byte, else
            since its model had admitted it; null before its end, and if there is no token count.
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
    tokens_per_sec: float | None = None


class RequestList(Shape, frozen=True):
    """The current requests, oldest first.

    Attributes:
        at: When.
        total: Number of current requests.
        requests: The oldest ones.
    """

    at: float
    total: int
    requests: list[RequestInfo]


class RequestChanges(Shape, frozen=True):
    """Changes of requests since the last such event.

    A request that began and ended in between is only listed as ended.

    Attributes:
        at: When.
        changed: Requests whose phase has changed.
        ended: Requests that have ended.
        omitted: Number of requests left out of both lists, since an event's length is limited.
    """

    at: float
    changed: list[RequestInfo]
    ended: list[RequestInfo]
    omitted: int = 0


class TokenRates(Shape, frozen=True):
    """Token rates, for the models where they have changed.

    Attributes:
        at: When.
        models: Tokens per second, by model; see `tokens_per_sec` of a model.
    """

    at: float
    models: dict[str, float]
