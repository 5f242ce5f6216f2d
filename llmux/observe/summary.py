"""The summary of a request that has ended, as its listeners get it (`Events.request_ended`)."""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["done", "cut", "client_left"] | str
"""How a request ended: answered to its last byte, cut by llmux or the backend after the first byte,
abandoned by its client, or the code of the error that it was answered with."""


LEAST_TIMED_S = 0.001
"""An answer that took less came in one piece, and says nothing of a rate."""


class RequestSummary(msgspec.Struct, frozen=True, gc=False):
    """One request, from its arrival to its end (or until now, in a list of those under way).

    A struct outside of the garbage collector, since one is made for each request.

    Attributes:
        id: Unique in this process; empty for llmux's own paths.
        method: As the client wrote it.
        path: Raw, without the query, which may hold a key.
        model: Configured name of the model; empty if there is none.
        client: Address of the client; None if unknown.
        status: HTTP status of the answer, or the one that the request is counted under.
        outcome: How it ended.
        arrived_at: When its head had come (Trio's clock).
        ended_at: When it ended (Trio's clock).
        wait_s: Time in line, in seconds.
        first_byte_s: Seconds from arrival to the first byte of the answer's body, or to its head if
            it has no body; None if there was no answer.
        bytes_in: Bytes received of the request's body.
        bytes_out: Bytes sent behind the answer's head. The fast lane relays the framing of chunks
            as it came, so it counts.
        tokens_in: Prompt tokens as the answer states them; None if it does not.
        tokens_out: Completion tokens, likewise.
        tokens_cached: Those of `tokens_in` that came from a cache, likewise.
        is_token_stream: True if its answer came token by token.
        has_queued: True if it had to wait in line.
        uses_model: True if it asked something of its model: it was not for the fallback, not
            redirected, and its path not a passive one.
        admitted_at: When the model admitted it (Trio's clock); None if it never did.
        company: Requests in flight on the model then, itself included.
    """

    id: str
    method: bytes
    path: bytes
    model: str
    client: str | None
    status: int
    outcome: Outcome
    arrived_at: float
    ended_at: float
    wait_s: float
    first_byte_s: float | None
    bytes_in: int
    bytes_out: int
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    is_token_stream: bool = False
    has_queued: bool = False
    uses_model: bool = False
    admitted_at: float | None = None
    company: int = 0

    @property
    def duration_s(self) -> float:
        """Seconds from arrival to the end."""
        return self.ended_at - self.arrived_at

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of the answer per second of its generation, as far as llmux sees it.

        A stream is timed from its first byte on, which brings the first token. Other answers are
        timed from their admission on, so their prompts count, too.
        """
        tokens, began_at = self.tokens_out or 0, self.admitted_at
        if self.is_token_stream and self.first_byte_s is not None:
            tokens, began_at = tokens - 1, self.arrived_at + self.first_byte_s
        if tokens <= 0 or began_at is None or self.ended_at - began_at < LEAST_TIMED_S:
            return None
        return tokens / (self.ended_at - began_at)


def path_of(target: bytes) -> bytes:
    return target.partition(b"?")[0]


def milliseconds(seconds: float) -> float:
    """Convert seconds to milliseconds with three decimals, the precision of logs and traces."""
    return round(1000 * seconds, 3)
