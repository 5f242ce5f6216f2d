"""One request's journey: the object that the phases of a request share.

It holds what the phases find out, tells how far the request is, and can end it from outside.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from llmux.errors import LlmuxError
from llmux.observe.schemas import RequestPhase
from llmux.observe.summary import Outcome, RequestSummary, path_of
from llmux.openai.fields import Fields
from llmux.openai.headers import header_value
from llmux.openai.streams import is_token_stream
from llmux.openai.tokens import NO_TOKENS, tokens_of
from llmux.proxy.access_log import CLIENT_LEFT
from llmux.proxy.cors import Sharing
from llmux.proxy.keepalive import KeptAlive
from llmux.proxy.lane import HeaderList, Lane
from llmux.proxy.opening import FirstMessage
from llmux.proxy.stored import repeats_answer
from llmux.proxy.upstreams import Upstream
from llmux.switching.admission import Serving
from llmux.switching.inflight import Flight
from llmux.upstream import Answer, Backend

if TYPE_CHECKING:  # it needs an extra
    from llmux.proxy.tracing import Trace


class Journey:
    """One request under way.

    Attributes:
        id: Unique in this process, and shown to the client.
        lane: The client's side: the request as it came, and the way back.
        client: Address of the client, as trusted proxies forward it; None if unknown.
        arrived_at: When its head had come (Trio's clock).
        sharing: CORS headers for the answer; None without CORS.
        trace: Its trace; None without tracing.

        headers: Headers to forward; set by authentication, replaced by later phases.
        fields: Fields of the body that name a model; set by reading.
        first: First message of a WebSocket, if that names the model; set by reading.
        asked: Name of the model as the client wrote it; set with `model`.
        is_filtered: True once the model's request filter has changed the body.
        model: Name of its model; empty for the fallback, and before routing.
        upstream: Its destination; set by routing, and again at admission: a reload may change it.
        target: Path and query to forward; set by routing.
        redirects: True if the client is sent to the backend's root instead.
        serving: Its stay at the model, in line or in flight.
        passing: Its stay at the fallback.
        expects_stream: True if the answer should be a stream.
        kept_alive: Sends comments while it waits; None if the client gets none.
        pause: Scope of the wait between a refused connection and the next try.
        was_sent: True once any of it may have reached a backend, so that it cannot be repeated.
        backend: The backend that it was sent to; None before, and after a refused connection.

        answer: The backend's answer; None before, and for answers of llmux's own.
        head_s: Seconds from arrival to the head of the answer; None before.
        status: Of the answer; 499 while there is none.
        outcome: How it ended.
        tokens: Token counts that the answer states; set at the end.
        cancelled_with: The error that ends it; None if it was not cancelled.
        told: The phase that the event feed last reported.
    """

    __slots__ = (
        "answer", "arrived_at", "asked", "backend", "cancelled_with", "client", "expects_stream",
        "fields", "first", "head_s", "headers", "id", "is_filtered", "kept_alive", "lane",
        "model", "outcome", "passing", "pause", "redirects", "serving", "sharing", "status",
        "target", "tokens", "told", "trace", "upstream", "was_sent",
    )  # fmt: skip

    # Set by one phase and read by later ones only, so they need no value before.
    headers: HeaderList
    fields: Fields
    upstream: Upstream
    target: bytes
    asked: str

    def __init__(self, id: str, lane: Lane) -> None:  # noqa: A002
        self.id = id
        self.lane = lane
        self.client = lane.peer
        self.arrived_at = trio.current_time()
        self.first: FirstMessage | None = None
        self.model = ""
        self.redirects = self.is_filtered = self.was_sent = False
        self.serving: Serving | None = None
        self.passing: Flight | None = None
        self.backend: Backend | None = None
        self.expects_stream = False
        self.kept_alive: KeptAlive | None = None
        self.sharing: Sharing | None = None
        self.status = CLIENT_LEFT
        self.answer: Answer | None = None
        self.head_s: float | None = None
        self.tokens = NO_TOKENS
        self.outcome: Outcome = "client_left"  # until it is known better
        self.trace: Trace | None = None
        self.cancelled_with: LlmuxError | None = None
        self.pause: trio.CancelScope | None = None
        self.told: RequestPhase | None = None

    @property
    def flight(self) -> Flight | None:
        """Its stay at the backend, the fallback's too; None before admission."""
        return self.passing or (self.serving.flight if self.serving else None)

    @property
    def waited_s(self) -> float:
        return self.serving.waited_s if self.serving else 0.0

    def summary(self) -> RequestSummary:
        """Sum up the request until now; the event of a request that has ended."""
        lane, serving, first_byte_s = self.lane, self.serving, self.first_byte_s
        prompt, completion, cached = self.tokens
        has_queued = uses_model = False
        wait_s, flight = 0.0, None
        if serving is not None:
            has_queued, uses_model = serving.queued, not serving.is_passive
            wait_s, flight = serving.waited_so_far_s, serving.flight
        # By position: so many keywords would take longer than all the rest.
        return RequestSummary(
            self.id,
            lane.method,
            path_of(lane.target),
            self.model,
            self.client,
            self.status,
            self.outcome,
            self.arrived_at,
            trio.current_time(),
            wait_s,
            first_byte_s,
            lane.body.received_bytes,
            lane.sent_bytes,
            prompt,
            completion,
            cached,
            first_byte_s is not None and self.is_token_stream,
            has_queued,
            uses_model,
            None if flight is None else flight.entered_at,
            0 if flight is None else flight.company,
        )

    @property
    def first_byte_s(self) -> float | None:
        """Seconds from arrival to the first byte of the answer's body; None if none has come.

        An answer without a body counts by its head, and llmux's own comments do not count.
        """
        if self.answer is None:
            has_comments_only = self.kept_alive is not None and self.kept_alive.has_begun
            return None if has_comments_only else self.head_s
        if not self.answer.has_body:
            return self.head_s
        first_at = self.answer.seen.first_at
        return None if first_at is None else first_at - self.arrived_at

    @property
    def hears_events(self) -> bool:
        """True if the client got nothing but comments, so that an error goes out as an event."""
        return self.kept_alive is not None and self.kept_alive.has_only_comments

    @property
    def is_token_stream(self) -> bool:
        answer = self.answer
        return (
            answer is not None
            and self.status == HTTPStatus.OK
            and answer.is_stream
            and is_token_stream(answer.headers)
        )

    @property
    def phase(self) -> RequestPhase:
        if self.first_byte_s is not None:
            return "answering"
        if self.passing is not None or (self.serving is not None and self.serving.is_in):
            return "forwarding"
        return "reading" if self.serving is None else "waiting"

    def answers(self, status: int, answer: Answer | None = None) -> list[tuple[bytes, bytes]]:
        """Note that the answer's head goes out now; returns the headers that llmux adds to it.

        Args:
            status: Of the answer.
            answer: The backend's answer; None if llmux itself answers.
        """
        self.status = status
        self.answer = answer
        self.head_s = trio.current_time() - self.arrived_at
        added = [
            (b"x-llmux-wait-ms", b"%d" % round(1000 * self.waited_s)),
            (b"x-llmux-request-id", self.id.encode()),
        ]
        if self.model:
            added.append((b"x-llmux-model", header_value(self.model)))
        if self.sharing is not None:
            added += self.sharing.added
        return added

    def cancel(self, error: LlmuxError) -> None:
        """End the request with an error, whatever phase it is in."""
        self.cancelled_with = error
        flight = self.flight
        if flight is not None and flight.is_in:
            flight.cut(error)
            return
        if self.serving is not None and self.serving.is_waiting:
            self.serving.refuse(error)
            if self.pause is not None:
                self.pause.cancel()
        elif self.lane.reading is not None:
            self.lane.reading.cancel()
        elif self.lane.has_answered and self.lane.cut_scope is not None:
            self.lane.cut_scope.cancel()
        if self.lane.unblock is not None:
            self.lane.unblock()

    def note_sent(self) -> None:
        """Note that its first byte is about to go to a backend."""
        self.was_sent = True

    def read_tokens(self) -> None:
        """Read the token counts from an answer that has ended."""
        answer = self.answer
        if answer is not None and 200 <= self.status < 300 and answer.seen.last:
            self.tokens = tokens_of(
                answer.headers,
                answer.seen.opening,
                answer.seen.ending(),
                is_chunked=answer.framing == "chunked",
            )
            # Checked last: few answers state tokens.
            if self.tokens != NO_TOKENS and repeats_answer(self.lane.method, self.lane.target):
                self.tokens = NO_TOKENS
