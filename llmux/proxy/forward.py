"""A request's journey, top to bottom: read it, find its model, get in, forward, relay.

Model traffic is answered here, below Quart: one coroutine sees a request from its head to the last
byte of its response, so that an ordinary `async with` holds the model for exactly that long. How
the bytes come in and go out is the lane's business (`llmux.downstream.asgi` for any ASGI server).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import trio

from llmux.config import Config, ModelConfig
from llmux.errors import (
    BackendBroke,
    BackendError,
    BackendRefused,
    BadRequest,
    BodyTooLarge,
    IdNotFound,
    InternalError,
    InvalidKey,
    LlmuxError,
    ModelNotFound,
    NoModel,
    NotReady,
    ShuttingDown,
    StreamCut,
)
from llmux.http.clients import ClientLines
from llmux.http.paths import (
    UPSTREAM,
    PassivePaths,
    Whereabouts,
    may_redirect,
    merged,
    own_path,
    relative,
    segments,
    tidy,
)
from llmux.http.targets import check_request_line
from llmux.observe.feed import Feed
from llmux.observe.journal import NO_JOURNAL, Journal
from llmux.observe.logs import get_logger
from llmux.observe.metrics import Metrics
from llmux.openai.codings import Bounds, content_codings
from llmux.openai.dialects import (
    FRESH,
    close_reason,
    dialect_of,
    plain_path,
    realtime_event,
    seen_of,
    told,
)
from llmux.openai.jsonbody import LARGE_BYTES, may_be_wide
from llmux.openai.scanning import Hurry, Pause, TooLong
from llmux.openai.streams import (
    is_event_stream,
    is_json_lines,
    json_line,
    streams_unasked,
    unbuffered,
    waits_for_events,
)
from llmux.openai.tokens import KINDS
from llmux.openai.wire import (
    Fields,
    Meanings,
    Named,
    agreed_body,
    agreed_target,
    decoded_headers,
    decoded_text,
    disagrees,
    error_answer,
    find_model,
    header,
    read_coded,
    read_fields,
    request_headers,
    response_headers,
)
from llmux.proxy.access_log import log_request
from llmux.proxy.beside import run_beside
from llmux.proxy.cors import Cors
from llmux.proxy.held import Bodies
from llmux.proxy.journey import Journey, Journeys
from llmux.proxy.keepalive import KeptAlive
from llmux.proxy.lane import ClientLeft, HeaderList, Lane
from llmux.proxy.late import LateAnswer, comes_as_events
from llmux.proxy.opening import (
    GREETING,
    FirstMessage,
    agreed_protocol,
    names_no_model,
    opened_headers,
)
from llmux.proxy.own_site import OwnSite, without_page
from llmux.proxy.stored import Stored, id_of, ids_of, makes_stored
from llmux.switching.hints import NEVER_SWITCH, NO_HINTS, PASSIVE, Hints, read_hints
from llmux.switching.inflight import InFlight
from llmux.switching.switchboard import Switchboard
from llmux.upstream import Answer, Backend

if TYPE_CHECKING:  # it needs an extra
    from llmux.proxy.tracing import Tracing

T = TypeVar("T")

HUGE_BYTES = 8 << 20
"""Bodies over this are looked through in a line of their own: few prompts are so long."""

LARGE_MESSAGE_BYTES = 16 << 10
"""First messages over this are read beside the event loop: 1 MiB of empty objects takes 0.5 s."""

OF_COMMENTS = frozenset({
    b"content-type", b"content-length", b"content-encoding", b"cache-control", b"x-accel-buffering",
})  # fmt: skip
"""Headers of an answer that are llmux's own where comments come before it."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two tries while a server loads: the first, doubling up to the second."""

ASKS_ONLY = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Answers to these, and to what only looks, do not show that a model has loaded: llama.cpp lists it
before."""

log = get_logger(__name__)


class StillLoads(Exception):
    """The backend of a model that was just woken says that it is not ready."""


class Upstream:
    """A model as the proxy sees it: where it is, and what it wants to be told."""

    def __init__(self, backend: Backend, config: ModelConfig | None = None) -> None:
        self.backend = backend
        self.upstream_model = config.name_sent if config else None
        self.extra_headers: Mapping[str, str] = config.headers if config else {}
        idle_s = config.stream_idle_secs if config else None
        self.stream_idle_s = math.inf if idle_s is None else idle_s
        self.websocket = config.websocket if config else None


class Outgoing:
    """A request on its way to a backend.

    Attributes:
        named: What it is for.
        fields: Those of its body that name a model.
        received: The headers that may be passed on.
        first: The message of a WebSocket that names the model; None: the request itself does.
    """

    __slots__ = ("_lane", "fields", "first", "named", "received")

    def __init__(
        self,
        lane: Lane,
        named: Named,
        fields: Fields,
        received: HeaderList,
        first: FirstMessage | None = None,
    ) -> None:
        self._lane = lane
        self.first = first
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
            if self.first is not None and name is not None:
                lane.replace_first(self.first.renamed(name))
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


def _within(
    work: Callable[[Bounds], T], most_bytes: int, count: Callable[[int], None], pause: Pause
) -> T:
    return work(Bounds(most_bytes, pause, count))


def _on_loop(count: Callable[[int], None]) -> Callable[[int], None]:
    def call(by: int) -> None:
        trio.from_thread.run_sync(count, by)

    return call


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
        self._hurry = Hurry()
        self._opening: set[trio.CancelScope] = set()  # WebSockets without their first message
        self._is_stopping = False
        self._lines = ClientLines(config.limits.queued_per_client)
        self._fallback: Upstream | None = None
        self._dead_peer_s = config.limits.dead_peer_secs
        self._stored = Stored(config.limits.remembered_ids)
        # Those whose answers may have the id of what can be asked for later, already in mid-answer;
        # with how much of the beginning was looked at, so that none is looked at twice.
        self._storing: dict[Journey, int] = {}
        self.apply(config)
        self._upstreams = {
            model.name: Upstream(self._backend_at(model.base_url), model)
            for model in config.models.values()
        }
        for name in config.models:
            self._show_tokens(name)

    def apply(self, config: Config) -> None:
        """Use another config from now on, but for what `use` is told of its models."""
        self._names = config.names
        self._meanings = Meanings(
            (model.name, model.aliases, model.base_url, model.name_sent)
            for model in config.models.values()
        )
        self.logs_access = config.access_log
        self._default_model = config.default_model
        self._passive = {name: PassivePaths(config.passive_of(name)) for name in config.models}
        self._stored.most = config.limits.remembered_ids
        self._heeds_hints = config.policy.client_hints
        self._websocket = config.policy.websocket
        self._keepalive_s = config.policy.waiting_keepalive_secs
        self._api_keys = config.api_keys or None
        self._forwards_keys = config.forward_api_keys
        self._forwards_origin = config.forward_origin
        self.own_site = OwnSite(config)
        self.cors = Cors(config.cors_origins) if config.cors_origins else None
        self.bodies.apply(config.limits)
        self._lines.limit = config.limits.queued_per_client
        self._proxies = config.proxies
        before = self._fallback.backend if self._fallback else None
        if before is None or before.base_url != config.fallback:
            if before is not None:
                before.close()  # once those in flight are done with it
            url = config.fallback
            self._fallback = Upstream(self._backend_at(url)) if url else None

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Use another config for a model from now on, or none any more."""
        before = self._upstreams.pop(name, None)
        backend = before.backend if before else None
        if backend is not None and (model is None or backend.base_url != model.base_url):
            backend.close()  # once those in flight are done with it
            backend = None
        if model is not None:
            self._upstreams[name] = Upstream(backend or self._backend_at(model.base_url), model)
            self._show_tokens(name)

    def _backend_at(self, url: str) -> Backend:
        return Backend(url, dead_peer_s=self._dead_peer_s)

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
            why = BackendError(str(error))
            await self._say_last(lane, journey, why)
            await self._refuse(lane, journey, why)
        except StreamCut as cut:
            cause = cut.why or NotReady(journey.model)
            journey.outcome = "cut" if lane.has_answered else cause.code
            log.warning("response_cut", model=journey.model, reason=cause.message)
            await self._say_last(lane, journey, cause)
            await self._refuse(lane, journey, cause)
        except LlmuxError as error:
            # Else it would keep what it was raised from in memory, half a body perhaps, for as long
            # as the client takes to hear of it.
            refusal = journey.cancelled_with or error.with_traceback(None)
            journey.outcome = refusal.code
            await self._refuse(lane, journey, refusal)
        except Exception as error:
            journey.outcome = InternalError.code
            log.exception("internal_error", model=journey.model)
            await self._refuse(lane, journey, InternalError(error))
        finally:
            lane.body.release()
            if self._storing and self._storing.pop(journey, None) is not None:
                self._learn(journey, is_over=True)
            self._finish(journey)

    def _finish(self, journey: Journey) -> None:
        """Tell of a request that has just ended: count it, and log, journal and trace it."""
        self.journeys.end(journey)
        journey.count(self._metrics)
        serving = journey.serving
        if serving is not None and not serving.is_passive and self._journal.is_kept:
            self._journal.add(serving.entry(journey.status))
        if self.logs_access or journey.trace is not None:
            summary = journey.summary()
            if self.logs_access:
                log_request(summary)
            if journey.trace is not None:
                journey.trace.end(summary)

    def client_of(self, peer: str | None, headers: HeaderList) -> str | None:
        """The address of the client, as trusted proxies forward it."""
        return self._proxies.client(peer, headers)

    async def _forward(self, lane: Lane, journey: Journey) -> None:
        if self.cors is not None:
            journey.sharing = self.cors.sharing(lane.headers)
            if (allowed := self.cors.preflight(lane.method, lane.headers)) is not None:
                status = HTTPStatus.NO_CONTENT
                await lane.reply(status, [*allowed, *journey.answers(status)], b"")
                return
        received = lane.headers if self._api_keys is None else self._admit(lane.headers)
        if self.own_site.vet(lane.peer, lane.headers) and not self._forwards_origin:
            received = without_page(received)
        check_request_line(lane.method, lane.target)
        lane.body.count_head()
        if self._proxies:
            received = self._proxies.believed(lane.peer, received)
        await lane.read_body()
        fields = await self._read_fields(lane)
        first = None
        if lane.upgrade and names_no_model(lane.target, lane.headers, fields, self._names):
            first = await self._open(lane, journey)
            fields, received = first.fields, opened_headers(received)
        upstream, named = self._route(lane, fields, journey)
        if named.target is not lane.target and not lane.upgrade and _lacks_slash(lane, named):
            journey.serving = None  # it asks nothing of the model
            await self._redirect(lane, journey)
            return
        named = Named(named.name, tidy(named.target))
        if makes_stored(lane.method, named.target, stores=fields.stores):
            self._storing[journey] = 0
        outgoing = Outgoing(lane, named, fields, received, first)
        journey.expects_stream = fields.asks_for_stream or (
            not fields.codings and streams_unasked(lane.target, lane.body.data)
        )
        if self._keepalive_s is not None and waits_for_events(
            lane.method, lane.target, lane.headers, asks_for_stream=journey.expects_stream
        ):
            # The status line may be out before it is known how the answer is encoded. Without the
            # header any coding would do (RFC 9110, section 12.5.3).
            kept = [each for each in received if each[0].lower() != b"accept-encoding"]
            outgoing.received = [*kept, (b"Accept-Encoding", b"identity")]
            journey.kept_alive = KeptAlive(
                lane, self._keepalive_s, lambda: journey.answers(HTTPStatus.OK)
            )
            async with lane.present(), journey.kept_alive.waiting():
                await self._exchange(lane, journey, outgoing, upstream)
            return
        async with lane.present():
            await self._exchange(lane, journey, outgoing, upstream)

    async def _read_fields(self, lane: Lane) -> Fields:
        """Look through the body: a large one beside the event loop, which goes on meanwhile."""
        headers, data = lane.headers, lane.body.data
        codings = content_codings(headers) if data else ()
        if len(data) <= LARGE_BYTES and not codings:
            try:
                return read_fields(headers, data, self._hurry.begin())
            except TooLong:
                pass
        if codings or may_be_wide(data):
            async with lane.present():
                return await self._on_decoded(lane, partial(read_coded, headers, data, codings))
        limiter = self._reading if len(data) <= HUGE_BYTES else self._reading_huge
        async with lane.present():
            return await run_beside(lambda pause: read_fields(headers, data, pause), limiter)

    def stop(self) -> None:
        """Wait for no WebSocket's first message: no model would get it any more."""
        self._is_stopping = True
        for scope in self._opening:
            scope.cancel()

    async def _open(self, lane: Lane, journey: Journey) -> FirstMessage:
        """Accept a WebSocket whose handshake names no model; returns its first message."""
        if self._is_stopping:
            raise ShuttingDown
        greeting = GREETING if plain_path(lane.target).endswith(b"/realtime") else b""
        data = b""
        with trio.CancelScope() as scope:
            self._opening.add(scope)
            try:
                headers = [(b"x-llmux-request-id", journey.id.encode())]
                data = await lane.hear_first(headers, greeting)
            finally:
                self._opening.discard(scope)
        if scope.cancelled_caught:
            raise ShuttingDown
        names = self._names
        if len(data) <= LARGE_MESSAGE_BYTES:
            return FirstMessage(data, names)
        return await run_beside(lambda _: FirstMessage(data, names), self._reading)

    async def _on_decoded(self, lane: Lane, work: Callable[[Bounds], T]) -> T:
        """Do some work for which the body is decompressed: at once if that is small.

        How large it is turns out on the way. What is too large for a line begins again in the next.

        Args:
            lane: Whose body it is.
            work: What to do, within bounds.

        Raises:
            BodyTooLarge: It is larger than a body may be.
            QueueFull: There is no room for it.
        """
        most = self.bodies.most_bytes
        if len(lane.body.data) <= LARGE_BYTES:
            with suppress(TooLong):
                return work(Bounds(min(LARGE_BYTES, most), self._hurry.begin()))
        for limiter, limit in ((self._reading, HUGE_BYTES), (self._reading_huge, most)):
            with suppress(TooLong), lane.body.copying() as count:
                done = partial(_within, work, min(limit, most), _on_loop(count))
                return await run_beside(done, limiter)
        raise BodyTooLarge(most)

    async def _decode(self, lane: Lane, journey: Journey, outgoing: Outgoing, to: Upstream) -> None:
        """Undo the codings of a body in which a name has to be replaced."""
        fields = outgoing.fields
        if not fields.codings or not journey.model:
            return
        if not disagrees(fields, self._meanings, journey.model, to.upstream_model):
            return
        codings = fields.codings
        plain = await self._on_decoded(lane, partial(decoded_text, lane.body.data, codings))
        lane.body.swap(plain)
        fields.codings = ()
        outgoing.received = decoded_headers(outgoing.received, codings)

    async def _exchange(
        self, lane: Lane, journey: Journey, outgoing: Outgoing, upstream: Upstream
    ) -> None:
        try:
            await self._answer(lane, journey, outgoing, upstream)
        except BackendRefused:
            if journey.serving is None or journey.serving.is_passive:
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
        return self._api_keys.without(headers, carriers)

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
                serving.note_loading("answered 503")
            except BackendRefused as error:
                if not (has_looked and serving.is_warming):
                    raise
                serving.note_loading(str(error))
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
            journey.backend = None  # it has refused: nothing is awaited of it
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
        journey.backend, journey.stream_idle_s = upstream.backend, upstream.stream_idle_s
        await self._decode(lane, journey, outgoing, upstream)
        async with outgoing.exchange(journey, upstream, self._meanings) as answer:
            if (serving := journey.serving) is not None and not serving.is_warm:
                if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    if serving.is_warming and not serving.is_passive:
                        raise StillLoads
                elif not (serving.is_passive or lane.method in ASKS_ONLY) or answer.status == 101:
                    serving.note_warm()
            lane.body.release()
            if answer.stream is not None and journey.serving is not None:
                assert journey.serving.flight is not None
                how = upstream.websocket or self._websocket
                journey.serving.flight.open_socket(lane, how)
            kept = _kept(lane, journey, outgoing, upstream, answer)
            if journey.kept_alive is None or await self._comes_in_time(journey, answer, kept):
                added = journey.answers(answer.status, answer)
                await lane.relay(answer, [*kept, *added])
                return
            journey.answer = answer
            dialect = dialect_of(lane.target, lane.headers)
            await LateAnswer(lane, journey.kept_alive, answer, dialect, self.bodies).send()
            await lane.end_events()

    @staticmethod
    async def _comes_in_time(journey: Journey, answer: Answer, kept: HeaderList) -> bool:
        """Whether an answer can go out with its own status line, now that its body has begun."""
        alive = journey.kept_alive
        assert alive is not None
        if comes_as_events(answer):
            alive.answered = [each for each in kept if each[0].lower() not in OF_COMMENTS]
            await answer.wait_begun()
        return alive.give_way()

    def _route(self, lane: Lane, fields: Fields, journey: Journey) -> tuple[Upstream, Named]:
        try:
            named, model = self._find(lane, fields)
        except (NoModel, ModelNotFound) as missing:
            if self._fallback is None:
                raise
            is_named = isinstance(missing, ModelNotFound)
            fields.check_stranger(
                lambda name: self._names.find(name) is not None, names_model=is_named
            )
            return self._fallback, Named("", lane.target)
        journey.model = model
        journey.serving = self._board.serving(
            journey.model,
            lane.cut_scope,
            self._hints(lane, model, named.target),
            request=journey.id,
            place=self._lines.place(journey.client),
        )
        if journey.trace is not None:
            journey.trace.named(named.name, journey.model, journey.serving)
        return self._upstreams[journey.model], named

    def _find(self, lane: Lane, fields: Fields) -> tuple[Named, str]:
        """What a request is for: the name that it gives, and the model; see `find_model`."""
        try:
            named = find_model(lane.target, lane.headers, fields, self._names)
        except NoModel:
            model = self._model_of_unnamed(lane, fields)
            return Named(model, lane.target), model
        model_found = self._names.find(named.name)
        if model_found is None:
            raise ModelNotFound(named.name)
        return named, model_found

    def _model_of_unnamed(self, lane: Lane, fields: Fields) -> str:
        """The model of a request that names none: by what it goes on with, else the default.

        Raises:
            NoModel: There is none, or what it goes on with is the fallback's.
            IdNotFound: Nobody knows who has made what it goes on with.
            BadRequest: It may name one, but cannot be read.
        """
        path = lane.target.partition(b"?")[0]
        if path == b"*" or own_path(path) is not None or merged(path).startswith(UPSTREAM):
            raise NoModel
        in_path = id_of(lane.target)
        ids = [in_path, *fields.mentions] if in_path else fields.mentions
        for each in ids:
            maker = self._maker(each)
            if maker is not None and maker in self._names:
                return self._names[maker]
            if maker == "" and self._fallback is not None:
                raise NoModel
        if ids:
            if in_path and not lane.body.data and self._fallback is not None:
                raise NoModel  # nothing but the id leaves the house
            raise IdNotFound(ids[0])
        if self._default_model is None:
            raise NoModel
        fields.check_read(names_model=False)
        return self._names[self._default_model]

    def _maker(self, id: str) -> str | None:  # noqa: A002
        """The model that has made what has this id, also if its answer is still being sent."""
        maker = self._stored.maker(id)
        if maker is None:
            for journey, looked_at in self._storing.items():
                answer = journey.answer
                if answer is not None and len(answer.seen.opening) > looked_at:
                    self._storing[journey] = len(answer.seen.opening)
                    self._learn(journey)
            maker = self._stored.maker(id)
        return maker

    def _learn(self, journey: Journey, *, is_over: bool = False) -> None:
        """Note what a model has made, as its answer says at its beginning, or once it is over."""
        answer = journey.answer
        if answer is None or not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return
        is_chunked, opening = answer.framing == "chunked", answer.seen.opening
        ending = answer.seen.ending() if is_over else b""
        for each in ids_of(answer.headers, opening, ending, is_chunked=is_chunked):
            self._stored.note(each, journey.model)

    def _hints(self, lane: Lane, model: str, target: bytes) -> Hints:
        passive = self._passive.get(model)
        if passive is not None and not lane.upgrade and passive.has(target):
            return PASSIVE
        if self._heeds_hints:
            return read_hints(lane.headers)
        # This one takes nothing from anybody.
        is_modest = header(lane.headers, b"x-llmux-switch").lower() == b"never"
        return NEVER_SWITCH if is_modest else NO_HINTS

    async def _redirect(self, lane: Lane, journey: Journey) -> None:
        """Send the client to the root of a backend, below which relative links lead further."""
        path, mark, query = lane.target.partition(b"?")
        status = HTTPStatus.PERMANENT_REDIRECT  # which keeps method and body
        location = relative(path, path.lstrip(b"/") + b"/" + mark + query)
        headers = [(b"location", location), (b"content-length", b"0")]
        await lane.reply(status, [*headers, *journey.answers(status)], b"")

    @staticmethod
    async def _say_last(lane: Lane, journey: Journey, error: LlmuxError) -> None:
        """Tell the client of a stream, or of a WebSocket, why it ends, where it stands."""
        if not lane.has_answered or journey.hears_events:
            return
        if lane.upgrade:
            await lane.close_socket(*close_reason(error), realtime_event(lane.target, error))
        elif last := _last_words(lane, journey, error):
            await lane.send_last_event(last)

    async def _refuse(self, lane: Lane, journey: Journey, error: LlmuxError) -> None:
        lane.body.release()  # the client may take its time
        if lane.has_answered:
            if journey.hears_events:
                dialect = dialect_of(lane.target, lane.headers)
                await lane.send_events(dialect.events(told(error), FRESH))
                await lane.end_events()
            return
        lane.body.release()  # the client may take a while to hear of it
        status, headers, body = error_answer(error, dialect_of(lane.target, lane.headers))
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


def _kept(
    lane: Lane, journey: Journey, outgoing: Outgoing, upstream: Upstream, answer: Answer
) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that its client gets."""
    kept = response_headers(answer.headers, answer.status)
    if answer.is_stream:
        kept = unbuffered(kept)
    if lane.upgrade and answer.stream is not None:
        kept += agreed_protocol(lane.headers, answer.headers)
    if may_redirect(answer.status):
        kept = _whereabouts(lane, outgoing.named, upstream.backend).applied(kept)
    return kept if journey.sharing is None else journey.sharing.applied(kept)


def _lacks_slash(lane: Lane, named: Named) -> bool:
    """Whether a path names a backend's root without the slash, as `/upstream/NAME` does."""
    root, path = named.target.partition(b"?")[0], lane.target.partition(b"?")[0]
    return root == b"/" and not path.endswith(b"/")


def _whereabouts(lane: Lane, named: Named, backend: Backend) -> Whereabouts:
    """Where the client of a request finds what its backend has."""
    asked = lane.target.partition(b"?")[0]
    below = b""
    if merged(asked).startswith(UPSTREAM):
        # What is asked of the backend is what the path ends with, but for slashes too many.
        count = len(segments(named.target.partition(b"?")[0]))
        parts = segments(asked)
        below = b"".join(b"/" + part for part in parts[: len(parts) - count])
    own_host = header(lane.headers, b"host")
    return Whereabouts(backend.base_url, asked=asked, below=below, own_host=own_host)


def _last_words(lane: Lane, journey: Journey, error: LlmuxError) -> bytes:
    """What a stream ends with that fails, as its client knows it; nothing if there is no way."""
    answer = journey.answer
    if answer is None:
        return b""
    dialect = dialect_of(lane.target, lane.headers)
    has_comments = journey.kept_alive is not None and journey.kept_alive.has_begun
    if has_comments or is_event_stream(answer.headers):
        stream = seen_of(answer.seen.opening, answer.seen.ending())
        return dialect.events(told(error), stream)
    if is_json_lines(answer.headers, dialect):
        return json_line(answer.headers, dialect.line(told(error)))
    return b""
