"""One request on its way: where it is, what it will be counted as, and how to end it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import trio

from llmux.errors import LlmuxError, ModelAsleep, RequestCancelled, RequestNotFound
from llmux.observe.feed import Feed
from llmux.observe.metrics import Metrics
from llmux.observe.schemas import RequestChanges, RequestInfo, RequestList, RequestPhase
from llmux.openai.streams import is_token_stream
from llmux.openai.tokens import KINDS, NO_TOKENS, Rates, tokens_of
from llmux.openai.wire import header_value
from llmux.proxy.access_log import CLIENT_LEFT
from llmux.proxy.cors import Sharing
from llmux.proxy.held import Body
from llmux.proxy.keepalive import KeptAlive
from llmux.proxy.stored import tells_again
from llmux.proxy.summary import Outcome, RequestSummary, path_of
from llmux.switching.admission import Serving
from llmux.switching.inflight import Flight
from llmux.upstream import Answer, Backend

if TYPE_CHECKING:  # it needs an extra
    from llmux.proxy.tracing import Trace

MOST_TOLD = 50
"""Requests in one batch of the feed: two hundred a second are more than anybody can look at."""

MOST_PATH_BYTES = 256
MOST_METHOD_BYTES = 32
"""More of them is not told: clients may send 64 KiB, and would push what is told off the feed."""


class Travelling(Protocol):
    """What is known of a request's lane here; see `llmux.proxy.Lane`."""

    method: bytes
    target: bytes
    body: Body
    peer: str | None
    has_answered: bool
    cut_scope: trio.CancelScope | None
    reading: trio.CancelScope | None
    message_at: float

    @property
    def is_sending(self) -> bool:
        """Whether it waits until its client has taken something."""
        ...

    def unblock(self) -> None:
        """What was being done was cancelled: end what is being sent, though that may resist."""
        ...

    @property
    def sent_bytes(self) -> int:
        """How much of the answer was sent, without its head."""
        ...


class Journey:
    """One request on its way.

    Attributes:
        id: Its name, another one for each request.
        client: The address of the client, as trusted proxies forward it; None: unknown.
        arrived_at: When its head had come (Trio's clock).
        ended_at: When it ended; None: it has not.
        model: What it is for, once that is known; empty for the fallback.
        serving: Its stay at the model.
        passing: Its stay at the fallback.
        backend: Where it has been forwarded to; None: it has not been, or was refused.
        stream_idle_s: For so long that may send nothing of a stream.
        expects_stream: Whether it asks for one.
        kept_alive: What its client is told while it waits.
        sharing: What a page of another origin may see of the answer; None: it comes from none.
        status: What it will be counted as.
        outcome: How it has ended.
        trace: Its trace; None: there are none.
        answer: The backend's answer; None: there is none yet, or llmux has answered itself.
        head_s: When the head of its answer went out, in seconds since it arrived; None: it has not.
        tokens: Those that its answer has told of, once that is over.
        cancelled_with: Why it is not to go on; None: it is.
        pause: Around what it waits for between a refused connection and its next try.
        told: What the feed was told last of it.
    """

    __slots__ = (
        "answer", "arrived_at", "backend", "cancelled_with", "client", "ended_at",
        "expects_stream", "head_s", "id", "kept_alive", "lane", "model", "outcome", "passing",
        "pause", "serving", "sharing", "status", "stream_idle_s", "tokens", "told", "trace",
    )  # fmt: skip

    def __init__(self, id: str, lane: Travelling) -> None:  # noqa: A002
        self.id = id
        self.lane = lane
        self.client = lane.peer
        self.arrived_at = trio.current_time()
        self.ended_at: float | None = None
        self.model = ""
        self.serving: Serving | None = None
        self.passing: Flight | None = None
        self.backend: Backend | None = None
        self.stream_idle_s = math.inf
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
        """Its stay where it is forwarded to; None: it has not got there."""
        return self.passing or (self.serving.flight if self.serving else None)

    @property
    def waited_s(self) -> float:
        """How long it was in line, in seconds."""
        return self.serving.waited_s if self.serving else 0.0

    def summary(self) -> RequestSummary:
        """Sum up the request, which has ended."""
        lane = self.lane
        return RequestSummary(
            method=lane.method,
            path=path_of(lane.target),
            model=self.model,
            status=self.status,
            outcome=self.outcome,
            wait_s=self.waited_s,
            first_byte_s=self.first_byte_s,
            duration_s=trio.current_time() - self.arrived_at,
            bytes_in=lane.body.received_bytes,
            bytes_out=lane.sent_bytes,
            client=self.client,
            tokens_in=self.tokens.prompt,
            tokens_out=self.tokens.completion,
        )

    @property
    def first_byte_s(self) -> float | None:
        """When the first byte of its answer's body came, in seconds since it arrived.

        Of one without a body it is the head's; comments of llmux's own are none.
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
        """Whether the client has been sent comments only, so that an error is one more event."""
        return self.kept_alive is not None and self.kept_alive.hears_events_of_llmux

    @property
    def is_token_stream(self) -> bool:
        """Whether its answer is one that comes token by token."""
        answer = self.answer
        return (
            answer is not None
            and self.status == HTTPStatus.OK
            and answer.is_stream
            and is_token_stream(answer.headers)
        )

    @property
    def phase(self) -> RequestPhase:
        """Where it is."""
        if self.ended_at is not None:
            return "ended"
        if self.first_byte_s is not None:
            return "answering"
        if self.passing is not None or (self.serving is not None and self.serving.is_in):
            return "forwarding"
        return "reading" if self.serving is None else "waiting"

    def answers(self, status: int, answer: Answer | None = None) -> list[tuple[bytes, bytes]]:
        """Note that the head goes out now; returns the headers that llmux adds.

        Args:
            status: In that head.
            answer: The backend's; None: llmux answers itself.
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
        """Have it end with an error, wherever it is."""
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
        self.lane.unblock()

    def read_tokens(self) -> None:
        """Look for the tokens of its answer, which is over."""
        answer = self.answer
        if answer is not None and 200 <= self.status < 300 and answer.seen.last:
            self.tokens = tokens_of(
                answer.headers,
                answer.seen.opening,
                answer.seen.ending(),
                is_chunked=answer.framing == "chunked",
            )
            if self.tokens != NO_TOKENS and tells_again(self.lane.method, self.lane.target):
                self.tokens = NO_TOKENS

    def count(self, metrics: Metrics) -> None:
        """Count the request; each ends exactly once, here.

        One that has only looked whether its model is awake is no failure, and no alert's business.
        """
        if self.outcome == ModelAsleep.code:
            return
        queued = self.serving is not None and self.serving.queued
        first_byte_s = self.first_byte_s
        metrics.requests.count(self.model, self.status, waited=queued, first_byte_s=first_byte_s)
        for kind, count in zip(KINDS, self.tokens, strict=True):
            if count:
                metrics.tokens.labels(self.model, kind).value += count
        if first_byte_s is not None and self.is_token_stream:
            metrics.first_token.labels(self.model).observe(first_byte_s)
        if self.serving is not None and queued:
            metrics.queue_wait.labels(self.model).observe(self.serving.waited_s)


class Journeys:
    """All requests that are on their way, oldest first."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._under_way: dict[str, Journey] = {}
        self.rates = Rates(feed.clock.now, trio.current_time)
        self._begun = 0
        self._ended: list[RequestInfo] = []  # since the last batch of the feed
        self._omitted = 0
        feed.look_up(self._look)
        feed.look_up(self.rates.news)

    def __iter__(self) -> Iterator[Journey]:
        """Those that are on their way now; nobody may be added meanwhile."""
        return iter(self._under_way.values())

    def begin(self, lane: Travelling) -> Journey:
        """A request has come."""
        self._begun += 1
        journey = Journey(f"{self._feed.boot}-{self._begun}", lane)
        self._under_way[journey.id] = journey
        return journey

    def end(self, journey: Journey) -> None:
        """It has ended."""
        del self._under_way[journey.id]
        journey.read_tokens()
        if journey.tokens.completion:
            self.rates.add(journey.model, journey.tokens.completion)
        journey.ended_at = trio.current_time()
        if self._feed.is_heard:
            if len(self._ended) < MOST_TOLD:
                self._ended.append(self._info(journey))
            else:
                self._omitted += 1

    def list(self, limit: int) -> RequestList:
        """The oldest of them."""
        return RequestList(
            at=self._feed.clock.now(),
            total=len(self._under_way),
            requests=[self._info(each) for each in islice(self._under_way.values(), limit)],
        )

    def cancel(self, id: str) -> None:  # noqa: A002
        """Have a request end with an error.

        Raises:
            RequestNotFound: It is not there, or no more.
        """
        if (journey := self._under_way.get(id)) is None:
            raise RequestNotFound(id)
        journey.cancel(RequestCancelled())

    def _look(self) -> tuple[str, RequestChanges] | None:
        """What has become of them since this was called last."""
        changed = list(islice(self._changed(), MOST_TOLD + 1))
        ended, omitted = self._ended, self._omitted + (len(changed) > MOST_TOLD)
        self._ended, self._omitted = [], 0
        if not (changed or ended):
            return None
        told = changed[:MOST_TOLD]
        for journey in told:
            journey.told = journey.phase
        return "requests", RequestChanges(
            at=self._feed.clock.now(),
            changed=[self._info(journey) for journey in told],
            ended=ended,
            omitted=omitted,
        )

    def _changed(self) -> Iterator[Journey]:
        return (each for each in self._under_way.values() if each.told != each.phase)

    def _info(self, journey: Journey) -> RequestInfo:
        unix, lane = self._feed.clock.unix, journey.lane
        has_ended, first_byte_s = journey.ended_at is not None, journey.first_byte_s
        return RequestInfo(
            id=journey.id,
            model=journey.model,
            phase=journey.phase,
            arrived=unix(journey.arrived_at),
            waited_secs=round(journey.serving.waited_so_far_s, 3) if journey.serving else 0.0,
            client=journey.client,
            method=lane.method[:MOST_METHOD_BYTES].decode("latin-1"),
            path=path_of(lane.target)[:MOST_PATH_BYTES].decode("latin-1"),
            bytes_in=lane.body.received_bytes,
            bytes_out=lane.sent_bytes,
            ended=None if journey.ended_at is None else unix(journey.ended_at),
            status=journey.status if has_ended or first_byte_s is not None else None,
            first_byte_secs=None if first_byte_s is None else round(first_byte_s, 3),
            tokens_in=journey.tokens.prompt,
            tokens_out=journey.tokens.completion,
        )
