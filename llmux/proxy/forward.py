"""A request from its head to the last byte of its answer, in named phases with one object.

    begin ─ authenticate ─ read ─ route ─ admit ─ forward ─ answer ─ finish

`serve` runs them in this order; the `Journey` is the one object that they share, and each phase
fills in what it finds out. Admission and forwarding form the inner loop: if the backend refuses the
connection, the request goes back in line; if the backend still loads, it is asked again.

Model traffic is answered here, below Quart: one coroutine sees a request from its head to the last
byte of its response, so that an ordinary `async with` holds the model for exactly that long. How
the bytes come in and go out is the lane's business (`llmux.proxy.lane`).
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from llmux.config import Config, ModelConfig
from llmux.errors import BackendRefused, BadRequest, InvalidKey, LlmuxError, ModelAsleep
from llmux.http.clients import ClientLines
from llmux.http.targets import check_request_line
from llmux.observe.events import Events
from llmux.observe.feed import Feed
from llmux.openai.filtering import Filter
from llmux.openai.headers import own_pseudonym, request_headers
from llmux.openai.naming import Meanings
from llmux.openai.ollama import asks_to_show
from llmux.openai.rewriting import needs_rewrite, rewrite_body, rewrite_target
from llmux.openai.streams import streams_unasked, waits_for_events
from llmux.proxy.answering import fail, redirect, relay
from llmux.proxy.cors import Cors
from llmux.proxy.describing import NoDescription, check_describes, describe
from llmux.proxy.held import Bodies
from llmux.proxy.journey import Journey
from llmux.proxy.journeys import Journeys
from llmux.proxy.keepalive import KeptAlive
from llmux.proxy.lane import ClientLeft, HeaderList, Lane
from llmux.proxy.loading import StillLoads, check_loaded
from llmux.proxy.own_site import OwnSite, without_page
from llmux.proxy.reading import Reader
from llmux.proxy.routing import Router
from llmux.proxy.upstreams import Upstreams
from llmux.switching.inflight import InFlight
from llmux.switching.switchboard import Switchboard
from llmux.upstream import Answer

if TYPE_CHECKING:  # it needs an extra
    from llmux.proxy.tracing import Tracing

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Pauses between tries while a server loads: from the first, doubling, up to the second."""


class ModelProxy:
    """Carries model traffic from a lane to the backend of the model that it names."""

    def __init__(
        self,
        config: Config,
        board: Switchboard,
        events: Events,
        *,
        feed: Feed | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._board = board
        self._events = events
        self.journeys = Journeys(feed or Feed(), events)
        self._passing = InFlight()  # to the fallback
        self.bodies = Bodies(config.limits)
        self.upstreams = Upstreams(config)
        self._lines = ClientLines(config.limits.queued_per_client)
        self._reader = Reader(config, self.bodies)
        self._created = time.time()
        self._pseudonym = own_pseudonym()
        self._router = Router(config, board, self.upstreams, self._lines, self._pseudonym)
        self._read_config(config)

    # ---- Configuration ----

    def apply(self, config: Config) -> None:
        """Use another config from now on, except for its models: see `use`."""
        self.bodies.apply(config.limits)
        self.upstreams.apply(config)
        self._lines.limit = config.limits.queued_per_client
        self._reader.apply(config)
        self._router.apply(config)
        self._read_config(config)

    def _read_config(self, config: Config) -> None:
        self._meanings = Meanings(
            (model.name, model.alias_names, model.base_url, model.name_sent)
            for model in config.models.values()
        )
        self._websocket = config.policy.websocket
        self._keepalive_s = config.policy.waiting_keepalive_secs
        self._api_keys = config.api_keys or None
        self._forwards_keys = config.forward_api_keys
        self._forwards_origin = config.forward_origin
        self.own_site = OwnSite(config)
        self.cors = Cors(config.cors_origins) if config.cors_origins else None
        self._proxies = config.proxies

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Replace a model's config, or remove the model (None)."""
        self.upstreams.use(name, model)

    def client_of(self, peer: str | None, headers: HeaderList) -> str | None:
        """Return the address of the client, as trusted proxies forward it."""
        return self._proxies.client(peer, headers)

    def stop(self) -> None:
        self._reader.stop()

    def cut(self, why: LlmuxError) -> None:
        """Cut every request in flight, also those to the fallback, and tell their clients why."""
        for model in self._board.models.values():
            model.in_flight.cut(why)
        self._passing.cut(why)

    # ---- The phases of a request ----

    async def serve(self, lane: Lane) -> None:
        """Answer one request, whatever happens to it."""
        journey = self.journeys.begin(lane)
        if self._proxies:
            journey.client = self._proxies.client(lane.peer, lane.headers)
        try:
            if self._tracing is not None:
                journey.trace = self._tracing.begin(
                    journey.id, lane.method, lane.target, lane.headers, journey.client
                )
            await self._carry(journey)
            journey.outcome = "done"
        except ClientLeft:
            pass
        except Exception as error:
            await fail(journey, error, self.bodies)
        finally:
            lane.body.release()
            self._router.makers.end(journey)
            self._finish(journey)

    async def _carry(self, journey: Journey) -> None:
        """Run the phases up to the answer."""
        lane = journey.lane
        if self.cors is not None:
            journey.sharing = self.cors.sharing(lane.headers)
            if (allowed := self.cors.preflight(lane.method, lane.headers)) is not None:
                status = HTTPStatus.NO_CONTENT
                await lane.reply(status, [*allowed, *journey.answers(status)], b"")
                return
        self._authenticate(journey)
        await self._reader.read(journey)
        self._route(journey)
        if journey.redirects:
            journey.serving = None  # a redirect needs no model
            await redirect(journey)
            return
        self._expect(journey)
        async with lane.present():
            if journey.kept_alive is None:
                await self._admit_or_describe(journey)
            else:
                async with journey.kept_alive.waiting():
                    await self._admit(journey)

    async def _admit_or_describe(self, journey: Journey) -> None:
        """Forward the request, or answer Ollama's `/api/show` in place of the model's server."""
        try:
            await self._admit(journey)
        except (ModelAsleep, NoDescription):
            if not asks_to_show(journey.target):
                raise
            await describe(journey, self._created, self.bodies)

    def _authenticate(self, journey: Journey) -> None:
        """Check the key, the page behind the request and the request line; set `journey.headers`.

        Comes before the body is read and the head is counted: strangers must not fill the memory.
        """
        lane = journey.lane
        headers = lane.headers if self._api_keys is None else self._without_key(lane.headers)
        if self.own_site.vet(lane.peer, lane.headers) and not self._forwards_origin:
            headers = without_page(headers)
        check_request_line(lane.method, lane.target)
        lane.body.count_head()
        if self._proxies:
            headers = self._proxies.believed(lane.peer, headers)
        journey.headers = headers

    def _without_key(self, headers: HeaderList) -> HeaderList:
        """Return the headers without llmux's key, unless backends get it; raises InvalidKey."""
        assert self._api_keys is not None
        carriers = self._api_keys.accepts(headers)
        if not carriers:
            raise InvalidKey
        if self._forwards_keys:
            return headers
        return self._api_keys.without(headers, carriers)

    def _route(self, journey: Journey) -> None:
        """Find the model; keep a decoded body's text only if a name in it is to be replaced.

        Has no checkpoint: the text is not counted until it is kept.
        """
        fields = journey.fields
        try:
            self._router.route(journey)
            if fields.decoded is not None and self._disagrees(journey):
                self._reader.keep_decoded(journey)
        finally:
            fields.decoded = None

    def _expect(self, journey: Journey) -> None:
        """Note whether the client expects a stream, and may get comments until it begins."""
        lane, fields = journey.lane, journey.fields
        journey.expects_stream = fields.asks_for_stream or (
            not fields.codings and streams_unasked(lane.target, lane.body.data)
        )
        events = lane.events
        if (
            self._keepalive_s is not None
            and events is not None
            and waits_for_events(
                lane.method, lane.target, lane.headers, asks_for_stream=journey.expects_stream
            )
        ):
            # Comments go out as plain text before the backend chooses a coding. Without the header
            # it could choose any (RFC 9110, section 12.5.3).
            kept = [each for each in journey.headers if each[0].lower() != b"accept-encoding"]
            journey.headers = [*kept, (b"Accept-Encoding", b"identity")]
            journey.kept_alive = KeptAlive(
                events, self._keepalive_s, lambda: journey.answers(HTTPStatus.OK)
            )

    async def _admit(self, journey: Journey) -> None:
        """Wait for the model and forward the request; retry once if the backend refuses it."""
        try:
            await self._enter(journey)
        except BackendRefused:
            if journey.serving is None or journey.serving.is_passive:
                raise
            # Nothing was sent, so the request can wait until the model is up again.
            with trio.CancelScope() as journey.pause, journey.serving.waiting_beside_line():
                await self._board.refused(journey.model)
            await self._enter(journey, has_looked=True)

    async def _enter(self, journey: Journey, *, has_looked: bool = False) -> None:
        """Wait until the model admits the request, and hold the model until it is answered.

        Args:
            journey: The request.
            has_looked: True if the model's health was checked since the backend refused.
        """
        lane = journey.lane
        if journey.cancelled_with is not None:  # during an earlier phase
            raise journey.cancelled_with
        if journey.serving is None:
            self._board.check_cordon()
            with self._passing.enter(lane.cut_scope) as journey.passing:
                journey.passing.on_cut = lane.unblock
                await self._forward(journey)
            return
        async with journey.serving as serving:
            assert serving.flight is not None
            serving.flight.on_cut = lane.unblock
            if journey.cancelled_with is not None:  # between grant and entry
                raise journey.cancelled_with
            # The config may have been reloaded while it waited.
            journey.upstream = self.upstreams.get(journey.model, journey.upstream)
            try:
                await self._forward(journey)
            except StillLoads:
                serving.note_loading("answered 503")
            except BackendRefused as error:
                if not (has_looked and serving.is_warming):
                    raise
                serving.note_loading(str(error))
            else:
                return
            await self._forward_once_loaded(journey)

    async def _forward_once_loaded(self, journey: Journey) -> None:
        """Retry until the backend has loaded, or its time to load is over.

        The request stays in flight, so that no switch comes between. Retrying is safe: the body is
        still held, nothing was sent to the client, and the backend has not worked on the request.
        """
        serving, pause_s = journey.serving, FIRST_PAUSE_S
        assert serving is not None
        while True:
            journey.backend = None  # `QuietWatch` must not wait for it meanwhile
            await serving.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                await self._forward(journey)
            except StillLoads:
                continue
            except BackendRefused:
                if not serving.is_warming:
                    raise
            else:
                return

    async def _forward(self, journey: Journey) -> None:
        journey.backend = journey.upstream.backend
        if journey.fields.codings and self._disagrees(journey):
            await self._reader.decode(journey)
        if journey.upstream.filters is not None and not journey.is_filtered:
            if (chosen := self._filter_of(journey)) is not None:
                await self._reader.filter(journey, chosen)
            journey.is_filtered = True
        async with self._exchange(journey) as answer:
            if journey.serving is not None:
                check_loaded(journey, answer)
                self._note_socket(journey, answer)
                if journey.serving.is_passive:
                    check_describes(journey, answer)
            # From here on the request cannot be retried.
            journey.lane.body.release()
            await relay(journey, answer, self.bodies)

    def _disagrees(self, journey: Journey) -> bool:
        """Return whether the body must change: it has another name, or its fields are filtered."""
        model, name = journey.model, journey.upstream.upstream_model
        return bool(model) and (
            needs_rewrite(journey.fields, self._meanings, model, name)
            or self._filter_of(journey) is not None
        )

    @staticmethod
    def _filter_of(journey: Journey) -> Filter | None:
        """Return the request filter of the name that the client used; mostly None."""
        filters = journey.upstream.filters
        if filters is None or not journey.fields.is_json:
            return None
        return filters.find(journey.asked)

    def _exchange(self, journey: Journey) -> AbstractAsyncContextManager[Answer]:
        """Rewrite the request for its upstream; entering the result sends it.

        Done after admission only, since a reload may change the upstream while the request waits.

        Raises:
            BadRequest: Not sendable, or names another model where that cannot be replaced.
        """
        lane, upstream, target = journey.lane, journey.upstream, journey.target
        if model := journey.model:
            name = upstream.upstream_model
            lane.body.data = rewrite_body(
                lane.body.data, journey.fields, self._meanings, model, name
            )
            target = rewrite_target(target, self._meanings, model, name)
            if journey.first is not None and name is not None:
                assert lane.tunnel is not None
                lane.tunnel.replace_first_message(journey.first.renamed(name))
        headers = request_headers(
            journey.headers,
            client=lane.peer,
            scheme=lane.scheme,
            extra=upstream.extra_headers,
            pseudonym=self._pseudonym,
        )
        if lane.upgrade:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", lane.upgrade)]

        def exchange(headers: HeaderList) -> AbstractAsyncContextManager[Answer]:
            try:
                return upstream.backend.exchange(
                    lane.method, target, headers, lane.body.data, journey.note_sent
                )
            except ValueError as error:
                raise BadRequest(f"The request cannot be forwarded: {error}") from None

        if journey.trace is None:
            return exchange(headers)
        base_url = upstream.backend.base_url
        return journey.trace.forward(exchange, headers, base_url=base_url, target=target)

    def _note_socket(self, journey: Journey, answer: Answer) -> None:
        """Count a WebSocket as one from now on: it may stay open when its model is drained."""
        if answer.stream is not None:
            serving, tunnel = journey.serving, journey.lane.tunnel
            assert serving is not None
            assert serving.flight is not None
            assert tunnel is not None
            serving.flight.open_socket(tunnel, journey.upstream.websocket or self._websocket)

    def _finish(self, journey: Journey) -> None:
        """Tell of a request that has just ended; each ends exactly once, here."""
        self.journeys.end(journey)
        journey.read_tokens()
        self._events.request_ended.tell(journey.summary())
