"""A request's journey, top to bottom: read it, find its model, get in, forward, relay.

Model traffic is answered here, below Quart: one coroutine sees a request from its head to the last
byte of its response, so that an ordinary `async with` holds the model for exactly that long. How
the bytes come in and go out is the lane's business (`llmux.asgi` for any ASGI server).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import trio

from llmux.access_log import log_request
from llmux.backend import Answer, Backend
from llmux.bodies import Bodies, Body
from llmux.clients import ClientLines
from llmux.config import Config, ModelConfig
from llmux.cors import Cors
from llmux.ended import Ended
from llmux.errors import (
    BackendBroke,
    BackendError,
    BackendRefused,
    BadRequest,
    InternalError,
    InvalidKey,
    LlmuxError,
    ModelNotFound,
    NoModel,
    NoStream,
    NotReady,
    StreamCut,
)
from llmux.feed import Feed
from llmux.hints import NO_HINTS, read_hints
from llmux.inflight import InFlight
from llmux.journal import NO_JOURNAL, Journal
from llmux.journey import Journey, Journeys
from llmux.jsonbody import LARGE_BYTES
from llmux.keepalive import KeptAlive
from llmux.logs import get_logger
from llmux.metrics import Metrics
from llmux.openai import (
    Fields,
    Meanings,
    Named,
    agreed_body,
    agreed_target,
    error_answer,
    error_event,
    find_model,
    read_fields,
    request_headers,
    response_headers,
)
from llmux.streams import is_event_stream, unbuffered
from llmux.switchboard import Switchboard
from llmux.targets import check_request_line
from llmux.tokens import KINDS

if TYPE_CHECKING:  # it needs an extra
    from llmux.tracing import Trace, Tracing

HeaderList = Sequence[tuple[bytes, bytes]]

HUGE_BYTES = 8 << 20
"""Bodies over this are looked through in a line of their own: few prompts are so long."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two tries while a server loads: the first, doubling up to the second."""

ASKS_ONLY = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Answers to these do not show that a model has loaded: llama.cpp lists it before."""

log = get_logger(__name__)


class ClientLeft(Exception):
    """The client closed its connection."""


class StillLoads(Exception):
    """The backend of a model that was just woken says that it is not ready."""


class Lane(Protocol):
    """One client's request and the way back: bytes in, bytes out.

    Attributes:
        method: As the client wrote it.
        target: Raw path and query.
        headers: As received.
        body: What has been read of its body.
        peer: The client's address, where the server knows it.
        scheme: http or https.
        has_answered: Whether a status line was sent; from then on only a cut can tell of an error.
        upgrade: The protocol that the client wants to change to; empty if none.
        cut_scope: A scope that is around the request already, and in which `reply` works even once
            it is cancelled; None if there is none.
        reading: What to cancel while `read_body` waits; None when it does not.
    """

    method: bytes
    target: bytes
    headers: HeaderList
    body: Body
    peer: str | None
    scheme: str
    has_answered: bool
    upgrade: bytes
    cut_scope: trio.CancelScope | None
    reading: trio.CancelScope | None

    @property
    def sent_bytes(self) -> int:
        """What was sent of the response after its head."""
        ...

    async def read_body(self) -> None:
        """Read the whole body; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        ...

    def present(self) -> AbstractAsyncContextManager[None]:
        """Cancel what runs inside when the client leaves, unless something around it does.

        Raises:
            ClientLeft: It left.
        """
        ...

    def unblock(self) -> None:
        """What was being done was cancelled: end what is being sent, though that may resist."""
        ...

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, chunk by chunk, to its end."""
        ...

    async def begin_events(self, headers: HeaderList) -> None:
        """Send 200 and headers of a stream of events that llmux itself begins."""
        ...

    async def send_events(self, data: bytes) -> None:
        """Send some of that stream."""
        ...

    async def end_events(self) -> None:
        """End it as it should."""
        ...

    async def send_last_event(self, event: bytes) -> None:
        """Send this after a stream of events that was cut between two of them, if it was that."""
        ...

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        ...


class Upstream:
    """A model as the proxy sees it: where it is, and what it wants to be told."""

    def __init__(self, backend: Backend, config: ModelConfig | None = None) -> None:
        self.backend = backend
        self.upstream_model = config.upstream_model if config else None
        self.extra_headers: Mapping[str, str] = config.headers if config else {}


class Outgoing:
    """A request on its way to a backend.

    Attributes:
        named: What it is for.
        fields: Those of its body that name a model.
        received: The headers that may be passed on.
    """

    __slots__ = ("_lane", "fields", "named", "received")

    def __init__(self, lane: Lane, named: Named, fields: Fields, received: HeaderList) -> None:
        self._lane = lane
        self.named = named
        self.fields = fields
        self.received = received

    def exchange(
        self, journey: Journey, upstream: Upstream, meanings: Meanings
    ) -> AbstractAsyncContextManager[Answer]:
        """Send it; entering yields the answer.

        Args:
            journey: What it is part of.
            upstream: Where it goes: not known before, for a new config may come while it waits.
            meanings: Which names are other models'.

        Raises:
            BadRequest: It cannot be sent, or names another model where that cannot be replaced.
        """
        lane, target = self._lane, self.named.target
        if model := journey.model:
            name = upstream.upstream_model
            lane.body.data = agreed_body(lane.body.data, self.fields, meanings, model, name)
            target = agreed_target(target, meanings, model, name)
        headers = request_headers(
            self.received, client=lane.peer, scheme=lane.scheme, extra=upstream.extra_headers
        )
        if lane.upgrade:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", lane.upgrade)]

        def exchange(headers: HeaderList) -> AbstractAsyncContextManager[Answer]:
            try:
                return upstream.backend.exchange(lane.method, target, headers, lane.body.data)
            except ValueError as error:
                raise BadRequest(f"The request cannot be passed on: {error}") from None

        if journey.trace is None:
            return exchange(headers)
        base_url = upstream.backend.base_url
        return journey.trace.forward(exchange, headers, base_url=base_url, target=target)


def _pause() -> None:
    """Let the event loop have the interpreter; raises trio.Cancelled once nobody waits any more."""
    trio.from_thread.check_cancelled()
    time.sleep(0)


class ModelProxy:
    """Carries model traffic from a lane to the backend of the model that it names."""

    def __init__(
        self,
        config: Config,
        board: Switchboard,
        metrics: Metrics,
        journal: Journal = NO_JOURNAL,
        *,
        feed: Feed | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._board = board
        self._metrics = metrics
        self._journal = journal
        self.journeys = Journeys(feed or Feed())
        self._passing = InFlight()  # to the fallback
        self.bodies = Bodies(config.limits)
        # One at a time: they would only share the interpreter, and with the event loop, too.
        self._reading = trio.CapacityLimiter(1)
        # Seconds of work at worst; a prompt of a usual size need not wait behind it.
        self._reading_huge = trio.CapacityLimiter(1)
        self._lines = ClientLines(config.limits.queued_per_client)
        self._fallback: Upstream | None = None
        self.apply(config)
        self._upstreams = {
            model.name: Upstream(Backend(model.base_url), model) for model in config.models.values()
        }
        for name in config.models:
            self._show_tokens(name)

    def apply(self, config: Config) -> None:
        """Use another config from now on, but for what `use` is told of its models."""
        self._names = config.names
        self._meanings = Meanings(
            (model.name, model.aliases, model.base_url, model.upstream_model)
            for model in config.models.values()
        )
        self.logs_access = config.access_log
        self._heeds_hints = config.policy.client_hints
        self._keepalive_s = config.policy.waiting_keepalive_secs
        self._api_keys = config.api_keys or None
        self._forwards_keys = config.forward_api_keys
        self.cors = Cors(config.cors_origins) if config.cors_origins else None
        self.bodies.apply(config.limits)
        self._lines.limit = config.limits.queued_per_client
        self._proxies = config.proxies
        before = self._fallback.backend if self._fallback else None
        if before is None or before.base_url != config.fallback:
            if before is not None:
                before.close()  # once those in flight are done with it
            self._fallback = Upstream(Backend(config.fallback)) if config.fallback else None

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Use another config for a model from now on, or none any more."""
        before = self._upstreams.pop(name, None)
        backend = before.backend if before else None
        if backend is not None and (model is None or backend.base_url != model.base_url):
            backend.close()  # once those in flight are done with it
            backend = None
        if model is not None:
            self._upstreams[name] = Upstream(backend or Backend(model.base_url), model)
            self._show_tokens(name)

    def _show_tokens(self, model: str) -> None:
        """Export its tokens from zero on, or Prometheus would see no increase in the first ones."""
        for kind in KINDS:
            self._metrics.tokens.labels(model, kind)

    async def serve(self, lane: Lane) -> None:
        """Answer one request, whatever happens to it."""
        journey = self.journeys.begin(lane)
        if self._proxies:
            journey.client = self._proxies.client(lane.peer, lane.headers)
        try:
            if self._tracing is not None:
                journey.trace = self._tracing.begin(
                    lane.method, lane.target, lane.headers, journey.client
                )
            await self._forward(lane, journey)
            journey.outcome = "done"
        except ClientLeft:
            pass
        except BackendBroke as error:
            # If the status line is out, the lane leaves the response without its end.
            journey.outcome = "cut" if lane.has_answered else BackendError.code
            log.warning("response_cut", model=journey.model, reason=str(error))
            await self._refuse(lane, journey, BackendError(str(error)))
        except StreamCut as cut:
            why = cut.why or NotReady(journey.model)
            journey.outcome = "cut" if lane.has_answered else why.code
            log.warning("response_cut", model=journey.model, reason=why.message)
            if lane.has_answered and not journey.hears_events:
                await lane.send_last_event(error_event(why))
            await self._refuse(lane, journey, why)
        except LlmuxError as error:
            # Else it would keep what it was raised from in memory, half a body perhaps, for as long
            # as the client takes to hear of it.
            why = journey.cancelled_with or error.with_traceback(None)
            journey.outcome = why.code
            await self._refuse(lane, journey, why)
        except Exception as error:
            journey.outcome = InternalError.code
            log.exception("internal_error", model=journey.model)
            await self._refuse(lane, journey, InternalError(error))
        finally:
            lane.body.release()
            self.journeys.end(journey)
            journey.count(self._metrics)
            if journey.serving is not None and self._journal.is_kept:
                self._journal.add(journey.serving.entry(journey.status))
            if self.logs_access or journey.trace is not None:
                self._tell(journey.ended(), journey.trace)

    def _tell(self, ended: Ended, trace: Trace | None) -> None:
        if self.logs_access:
            log_request(ended)
        if trace is not None:
            trace.end(ended)

    def client_of(self, peer: str | None, headers: HeaderList) -> str | None:
        """The address of the client, as trusted proxies forward it."""
        return self._proxies.client(peer, headers)

    def admits(self, headers: HeaderList) -> bool:
        """Whether a request with these headers may come in at all."""
        return self._api_keys is None or bool(self._api_keys.accepts(headers))

    async def _forward(self, lane: Lane, journey: Journey) -> None:
        if self.cors is not None:
            journey.sharing = self.cors.sharing(lane.headers)
            if (allowed := self.cors.preflight(lane.method, lane.headers)) is not None:
                status = HTTPStatus.NO_CONTENT
                await lane.reply(status, [*allowed, *journey.answers(status)], b"")
                return
        received = lane.headers if self._api_keys is None else self._admit(lane.headers)
        check_request_line(lane.method, lane.target)
        lane.body.count_head()
        if self._proxies:
            received = self._proxies.believed(lane.peer, received)
        await lane.read_body()
        fields = await self._read_fields(lane)
        upstream, named = self._route(lane, fields, journey)
        outgoing = Outgoing(lane, named, fields, received)
        if self._keepalive_s is not None and fields.asks_for_stream:
            # The status line may be out before it is known how the answer is encoded.
            outgoing.received = [each for each in received if each[0].lower() != b"accept-encoding"]
            journey.kept_alive = KeptAlive(
                lane, self._keepalive_s, lambda: journey.answers(HTTPStatus.OK)
            )
            async with lane.present(), journey.kept_alive.waiting():
                await self._exchange(lane, journey, outgoing, upstream)
            return
        async with lane.present():
            await self._exchange(lane, journey, outgoing, upstream)

    async def _read_fields(self, lane: Lane) -> Fields:
        """Look through the body: a large one beside the event loop, which goes on meanwhile.

        A thread that was given up on would go on, with a body in memory that nobody counts: so it
        is waited for, and ends at its next pause.
        """
        data = lane.body.data
        if len(data) <= LARGE_BYTES:
            return read_fields(lane.headers, data)
        limiter = self._reading if len(data) <= HUGE_BYTES else self._reading_huge
        async with lane.present():
            return await trio.to_thread.run_sync(
                read_fields, lane.headers, data, _pause, limiter=limiter
            )

    async def _exchange(
        self, lane: Lane, journey: Journey, outgoing: Outgoing, upstream: Upstream
    ) -> None:
        try:
            await self._answer(lane, journey, outgoing, upstream)
        except BackendRefused:
            if journey.serving is None:
                raise
            # It has seen nothing of the request, which may wait until the model is up again.
            with trio.CancelScope() as journey.pause, journey.serving.waiting_beside_line():
                await self._board.refused(journey.model)
            await self._answer(lane, journey, outgoing, upstream, has_looked=True)

    def _admit(self, headers: HeaderList) -> HeaderList:
        """The headers without llmux's own key, if the backend is not to see it."""
        assert self._api_keys is not None
        carriers = self._api_keys.accepts(headers)
        if not carriers:
            raise InvalidKey
        if self._forwards_keys:
            return headers
        return [field for field in headers if field[0].lower() not in carriers]

    async def _answer(
        self,
        lane: Lane,
        journey: Journey,
        outgoing: Outgoing,
        upstream: Upstream,
        *,
        has_looked: bool = False,
    ) -> None:
        if journey.cancelled_with is not None:  # before it got here
            raise journey.cancelled_with
        if journey.serving is None:
            with self._passing.enter(lane.cut_scope) as journey.passing:
                journey.passing.on_cut = lane.unblock
                await self._pass_on(lane, journey, outgoing, upstream)
            return
        async with journey.serving as serving:
            assert serving.flight is not None
            serving.flight.on_cut = lane.unblock
            if journey.cancelled_with is not None:  # in the instant between grant and entry
                raise journey.cancelled_with
            # A new config may have come while it waited.
            upstream = self._upstreams.get(journey.model, upstream)
            try:
                await self._pass_on(lane, journey, outgoing, upstream)
            except StillLoads:
                pass
            except BackendRefused:
                if not (has_looked and serving.is_warming):
                    raise
            else:
                return
            await self._pass_on_once_loaded(lane, journey, outgoing, upstream)

    async def _pass_on_once_loaded(
        self, lane: Lane, journey: Journey, outgoing: Outgoing, upstream: Upstream
    ) -> None:
        """Try again until the backend has loaded, or could have.

        In flight, so that no switch comes between; nothing of an answer has been passed on, and the
        backend has done nothing with the request, whose body is still held.
        """
        serving, pause_s = journey.serving, FIRST_PAUSE_S
        assert serving is not None
        while True:
            await serving.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                await self._pass_on(lane, journey, outgoing, upstream)
            except StillLoads:
                continue
            except BackendRefused:
                if not serving.is_warming:
                    raise
            else:
                return

    async def _pass_on(
        self, lane: Lane, journey: Journey, outgoing: Outgoing, upstream: Upstream
    ) -> None:
        async with outgoing.exchange(journey, upstream, self._meanings) as answer:
            if (serving := journey.serving) is not None and not serving.is_warm:
                if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    if serving.is_warming:
                        raise StillLoads
                elif lane.method not in ASKS_ONLY or answer.status == 101:
                    serving.note_warm()
            lane.body.release()
            if journey.kept_alive is not None:
                await journey.kept_alive.stop()
                if journey.kept_alive.has_begun:
                    journey.answer = answer
                    await self._go_on(lane, answer)
                    return
            added = journey.answers(answer.status, answer)
            kept = response_headers(answer.headers, answer.status)
            if answer.is_stream:
                kept = unbuffered(kept)
            if journey.sharing is not None:
                kept = journey.sharing.applied(kept)
            await lane.relay(answer, [*kept, *added])

    @staticmethod
    async def _go_on(lane: Lane, answer: Answer) -> None:
        """Send an answer to a client that has its status line already."""
        if answer.status == HTTPStatus.OK and is_event_stream(answer.headers):
            async for data in answer.chunks():
                await lane.send_events(data)
        else:
            await lane.send_events(error_event(NoStream(answer.status, await answer.read())))
        await lane.end_events()

    def _route(self, lane: Lane, fields: Fields, journey: Journey) -> tuple[Upstream, Named]:
        try:
            named = find_model(lane.target, lane.headers, fields, self._names)
            if named.name not in self._names:
                raise ModelNotFound(named.name)
        except (NoModel, ModelNotFound):
            if self._fallback is None:
                raise
            return self._fallback, Named("", lane.target)
        journey.model = self._names[named.name]
        hints = read_hints(lane.headers) if self._heeds_hints else NO_HINTS
        journey.serving = self._board.serving(
            journey.model,
            lane.cut_scope,
            hints,
            request=journey.id,
            place=self._lines.place(journey.client),
        )
        if journey.trace is not None:
            journey.trace.named(named.name, journey.model, journey.serving)
        return self._upstreams[journey.model], named

    async def _refuse(self, lane: Lane, journey: Journey, error: LlmuxError) -> None:
        lane.body.release()  # the client may take its time
        if lane.has_answered:
            if journey.hears_events:
                await lane.send_events(error_event(error))
                await lane.end_events()
            return
        lane.body.release()  # the client may take a while to hear of it
        status, headers, body = error_answer(error)
        with self.bodies.answering(len(body)):
            await lane.reply(status, [*headers, *journey.answers(status)], body)

    def heard_since(self, model: str, since: float) -> bool:
        """Whether a byte has come from a model's backend since then (Trio's clock, seconds)."""
        upstream = self._upstreams.get(model)  # it may have been removed just now
        return upstream is not None and upstream.backend.heard_at() >= since

    def forget_idle(self, model: str) -> None:
        """Close the idle connections to a model's backend, which is about to sleep."""
        if (upstream := self._upstreams.get(model)) is not None:
            upstream.backend.close_idle()

    def backend(self, model: str) -> Backend:
        """The backend of a model."""
        return self._upstreams[model].backend

    def close(self) -> None:
        """Close the idle connections to all backends."""
        for upstream in (*self._upstreams.values(), self._fallback):
            if upstream is not None:
                upstream.backend.close()


def is_event_end(answer: Answer, sent: bytes, after: bytes = b"") -> bool:
    """Whether what was sent last of a stream of events ends with the end of one.

    Should it only look so, then what is sent next breaks the framing of a stream that ends broken
    anyway.

    Args:
        answer: What is being sent.
        sent: The last piece.
        after: What the framing puts after an event.
    """
    return is_event_stream(answer.headers) and (
        sent.endswith((b"\n\n" + after, b"\r\n\r\n" + after))
    )
