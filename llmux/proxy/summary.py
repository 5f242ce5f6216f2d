"""The summary of a request that has ended, as the access log and traces report it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["done", "cut", "client_left"] | str
"""How a request ended: answered to its last byte, cut by llmux or the backend after the first byte,
abandoned by its client, or the code of the error that it was answered with."""


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """One request, from its arrival to its end.

    Attributes:
        method: As the client wrote it.
        path: Raw, without the query, which may hold a key.
        model: Configured name of the model; empty if there is none.
        status: HTTP status of the answer, or the one that the request is counted under.
        outcome: How it ended.
        wait_s: Time in line, in seconds.
        first_byte_s: Seconds from arrival to the first byte of the answer's body, or to its head if
            it has no body; None if there was no answer.
        duration_s: Seconds from arrival to the end.
        bytes_in: Bytes received of the request's body.
        bytes_out: Bytes sent behind the answer's head. The fast lane relays the framing of chunks
            as it came, so it counts.
        client: Address of the client; None if unknown.
        tokens_in: Prompt tokens as the answer states them; None if it does not.
        tokens_out: Completion tokens, likewise.
    """

    method: bytes
    path: bytes
    model: str
    status: int
    outcome: Outcome
    wait_s: float
    first_byte_s: float | None
    duration_s: float
    bytes_in: int
    bytes_out: int
    client: str | None
    tokens_in: int | None = None
    tokens_out: int | None = None


def path_of(target: bytes) -> bytes:
    return target.partition(b"?")[0]


def milliseconds(seconds: float) -> float:
    """Convert seconds to milliseconds with three decimals, the precision of logs and traces."""
    return round(1000 * seconds, 3)
