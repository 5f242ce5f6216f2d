"""What became of one request: what the access log and traces say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmux.base.names import MAX_SHOWN, shown

Outcome = Literal["done", "cut", "client_left"] | str
"""How a request ended: answered to its last byte; cut by llmux or its backend after its first; left
by its client; or the code of the error that it was answered with."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has just ended.

    Attributes:
        method: As the client wrote it.
        path: Raw, without the query: that may hold a key.
        model: The configured name of the model that it was for; empty if none.
        status: As answered, or what it is counted as.
        outcome: How it ended.
        wait_s: How long it was in line, in seconds.
        first_byte_s: When its response's body began, or without one its head, in seconds from its
            arrival; None if it never did.
        duration_s: When it ended, seconds from its arrival.
        bytes_in: What was received of its body.
        bytes_out: What was sent of its response after the head, with the framing of chunks where
            that is passed on as it came (the fast lane).
        client: The peer's address; None if unknown.
        tokens_in: Tokens of what was asked, by the answer's own word; None if it does not say.
        tokens_out: Tokens of the answer, likewise.
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
    """A target without its query."""
    return target.partition(b"?")[0]


def shown_path(target: bytes) -> str:
    """A target's path as it may be told: not its query, and not all of a long one."""
    return shown(path_of(target)[: MAX_SHOWN + 1].decode("latin-1"))


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds with three decimals, as logs and traces have them."""
    return round(1000 * seconds, 3)
