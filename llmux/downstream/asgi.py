"""The ASGI lane: model traffic under any ASGI server that runs Trio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import trio
from trio_util import periodic

from llmux.api.doors import refusal
from llmux.base.names import shown
from llmux.downstream.asgi_watch import LEFT_S, SERVER_BREAKS, Watched, collect, content_length
from llmux.downstream.asgi_websocket import WebSocketLane
from llmux.downstream.own_answers import counted
from llmux.errors import BackendBroke, BadRequest, Forbidden, LlmuxError
from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.http.paths import own_path
from llmux.http.targets import origin_form
from llmux.observe.logs import get_logger
from llmux.openai.dialects import dialect_of
from llmux.openai.streams import EVENT_ENDS, stands_between
from llmux.openai.wire import error_answer
from llmux.proxy.access_log import logged
from llmux.proxy.cors import is_shared_path, shared
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import SMALL_OWN_BYTES, Bodies, Body
from llmux.proxy.lane import ClientLeft, HeaderList
from llmux.proxy.own_site import is_open_path
from llmux.upstream import Answer

NOTHING = nullcontext()

SWEEP_S = 1.0
"""How often stalled clients are looked for."""

LAST_STALL_S = 1.0
"""For so long, once llmux stops, may who watches it take nothing: it must not hold that up."""

OWN_BODY_BYTES = 1 << 20
"""The longest body for llmux's own paths, all short orders (nginx's default for any body)."""

log = get_logger(__name__)

# Hypercorn adds its own to every response.
SERVER_HEADERS = frozenset({b"date", b"server"})


class ModelTraffic:
    """ASGI middleware: model traffic goes to the proxy, the rest to the app inside.

    Args:
        app: What serves llmux's own paths.
        proxy: Carries model traffic.
        nursery: The nursery of the app's lifespan, once that has begun.
        stall_s: Seconds without a byte taken, or sent of a body, after which a client is cut.
        is_apart: Whether the control API has a listener of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        proxy: ModelProxy,
        *,
        nursery: Callable[[], trio.Nursery],
        stall_s: float,
        is_apart: bool = False,
    ) -> None:
        self._app = app
        self._is_apart = is_apart
        self._proxy = proxy
        self._nursery = nursery
        self._stall_s = stall_s
        self._own_stall_s = stall_s
        self._watched: set[Watched] = set()

    def stop(self) -> None:
        """Have less patience with those whose requests are llmux's own."""
        self._own_stall_s = min(self._stall_s, LAST_STALL_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            if scope.get("method") == "CONNECT":
                raise BadRequest("CONNECT is not supported")
            scope = _with_own_path(_with_origin_form(scope))
        except BadRequest as error:
            await _refuse(error, scope, send)
            return
        if (not_here := refusal(scope, is_apart=self._is_apart)) is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # the server answers 403
            else:
                await _refuse(not_here, scope, send)
            return
        await self._serve(self._lane(scope, receive, send))

    def _lane(self, scope: Scope, receive: Receive, send: Send) -> Watched:
        fields = scope["headers"]
        text_bytes = sum(len(name) + len(value) for name, value in fields)
        body = Body(self._proxy.bodies, text_bytes=text_bytes, fields=len(fields))
        if scope["type"] == "websocket":
            # On llmux's own paths there is none: there it names no model.
            target, stall_s = _target(scope), self._stall_s
            return WebSocketLane(scope, target, receive, send, body, stall_s=stall_s)
        if _own_path(scope) is not None:
            return OwnRequest(self._own_app(scope), scope, receive, send)
        return AsgiLane(scope, receive, send, body, stall_s=self._stall_s)

    def _own_app(self, scope: Scope) -> ASGIApp:
        """What serves llmux's own path of a request."""
        bodies = self._proxy.bodies
        app = with_whole_body(counted(bodies, self._app), bodies, self._stall_s)
        if not is_open_path(scope["raw_path"]):
            app = vetted(app, self._proxy)
        if (cors := self._proxy.cors) is not None and is_shared_path(scope["raw_path"]):
            app = shared(cors, app)
        if self._proxy.logs_access:
            peer = scope["client"][0] if scope.get("client") else None
            app = logged(app, self._proxy.client_of(peer, scope["headers"]))
        return app

    async def _serve(self, lane: Watched) -> None:
        self._watched.add(lane)
        self._nursery().start_soon(lane.run, self._proxy)
        try:
            await lane.watch()
        finally:
            self._watched.discard(lane)

    async def watch_stalls(self) -> None:
        """Give up on clients that take nothing for too long, for ever."""
        async for _ in periodic(min(SWEEP_S, self._stall_s)):
            now = trio.current_time()
            for lane in tuple(self._watched):
                stall_s = self._own_stall_s if isinstance(lane, OwnRequest) else self._stall_s
                if lane.sending_since is not None and lane.sending_since < now - stall_s:
                    lane.watching.cancel()


class OwnRequest(Watched):
    """A request for llmux's own paths, on its way through the app inside.

    The app hears of no disconnect once the response has ended: Hypercorn says so while the task
    that sends the last of it is still to recycle the connection or close it. Whoever cancels that
    task then, as Quart does, leaves a connection that is never closed: not when idle, not at
    shutdown.
    """

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self._app = app
        self._asgi_scope = scope

    async def serve(self, _proxy: ModelProxy) -> None:
        """Serve it."""
        try:
            await self._app(self._asgi_scope, self._hear, self._tell)
        except Exception:
            log.exception("own_path_failed", path=shown(self._asgi_scope["path"]))

    async def _hear(self) -> Message:
        """The server's next message."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.end_within(LEFT_S)
            if self.is_ending:
                await trio.sleep_forever()
        return message

    async def _tell(self, message: Message) -> None:
        try:
            await self.send(message)
        except ClientLeft:  # the app inside would take it for an error
            self.scope.cancel()
            await trio.lowlevel.checkpoint()


def vetted(app: ASGIApp, proxy: ModelProxy) -> ASGIApp:
    """An app for llmux's own paths that pages of other sites do not reach."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope["client"][0] if scope.get("client") else None
        try:
            proxy.own_site.vet(peer, scope["headers"])
        except Forbidden as error:
            await _refuse(error, scope, send)
            return
        await app(scope, receive, send)

    return serve


def with_whole_body(app: ASGIApp, bodies: Bodies, stall_s: float) -> ASGIApp:
    """An app that is called once a request's body is there; it must be short, and keep coming.

    Args:
        app: An app for llmux's own paths.
        bodies: Where bodies are counted.
        stall_s: Seconds without a byte after which the request is refused.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(bodies, free_bytes=SMALL_OWN_BYTES)
        is_told = False

        async def receive_whole() -> Message:
            nonlocal is_told
            if is_told:
                return await receive()
            is_told = True
            return {"type": "http.request", "body": body.data, "more_body": False}

        try:
            length = content_length(scope["headers"])
            await collect(
                receive,
                body,
                length,
                most_bytes=OWN_BODY_BYTES,
                stall_s=stall_s,
                scope=trio.CancelScope(),
            )
            await app(scope, receive_whole, send)
        except ClientLeft:
            pass
        except LlmuxError as error:
            status, headers, answer = _worded(error, scope)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": answer, "more_body": False})
        finally:
            body.release()

    return serve


class AsgiLane(Watched):
    """One ASGI request; see `llmux.proxy.lane.Lane`.

    A response that is given up half-way is simply not finished: the server then closes the
    connection without the end that the framing promises.

    Attributes:
        sent_bytes: See `Lane`.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, body: Body, *, stall_s: float
    ) -> None:
        super().__init__(receive, send)
        self.body = body
        self.method: bytes = scope["method"].encode("latin-1", "replace")
        self.target = _target(scope)
        self.headers: HeaderList = scope["headers"]
        self.peer: str | None = scope["client"][0] if scope.get("client") else None
        self.scheme: str = scope["scheme"]
        self.has_answered = False
        self.upgrade = b""  # an ASGI server does not pass these on
        self.cut_scope: trio.CancelScope | None = (
            None  # Hypercorn sends nothing for what is cancelled
        )
        self.reading: trio.CancelScope | None = None
        self.sent_bytes = 0
        self._stall_s = stall_s
        self._stands_between = False
        self._tail = b""  # of what was sent of a stream
        self._reads_no_more = trio.Event()

    async def serve(self, proxy: ModelProxy) -> None:
        """See `Watched`."""
        try:
            await proxy.serve(self)
        finally:
            self._reads_no_more.set()

    async def _send(self, message: Message) -> None:
        await self.send(message)
        self.sent_bytes += len(message.get("body", b""))

    async def read_body(self) -> None:
        """Read the whole body; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        self.reading = trio.CancelScope()
        try:
            await collect(
                self._receive,
                self.body,
                content_length(self.headers),
                most_bytes=self.body.most_bytes,
                stall_s=self._stall_s,
                scope=self.reading,
            )
        finally:
            self.reading = None
            self._reads_no_more.set()

    async def wait_left(self) -> None:
        """Return when the client has left; what comes before that is for nobody."""
        await self._reads_no_more.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def present(self) -> AbstractAsyncContextManager[None]:
        """The task's scope does it."""
        return NOTHING

    async def hear_first(self, headers: HeaderList, greeting: bytes) -> bytes:  # noqa: ARG002
        """An ASGI server tells of WebSockets in another way: none is upgraded here."""
        raise BadRequest("Not a WebSocket")

    def replace_first(self, message: bytes) -> None:
        """See `hear_first`."""

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, chunk by chunk, to its end."""
        await self._start(answer.status, headers)
        chunk = sent = b""
        try:
            async for chunk in answer.chunks():
                more = not answer.has_ended  # the last one says so, and saves a message
                await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
                if not more:
                    return
                sent = chunk
                self._tail = self._tail[-4:] + chunk[-4:]
        except (trio.Cancelled, BackendBroke):
            if chunk is sent and answer.is_stream:
                self._stands_between = stands_between(answer.headers, self._tail)
            raise
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def begin_events(self, headers: HeaderList) -> None:
        """Send 200 and headers of a stream of events that llmux itself begins."""
        await self._start(HTTPStatus.OK, headers)

    async def send_events(self, data: bytes) -> None:
        """Send some of that stream."""
        self._stands_between = False
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._tail = self._tail[-4:] + data[-4:]
        self._stands_between = self._tail.endswith(EVENT_ENDS)

    async def end_events(self) -> None:
        """End it as it should."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_last_event(self, event: bytes) -> None:
        """Send this after a stream that was cut between two of its events, or of its lines."""
        if self._stands_between:
            with suppress(ClientLeft):
                await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def close_socket(self, code: int, reason: str, event: bytes) -> None:
        """There is none."""

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        await self._start(status, headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: HeaderList) -> None:
        self.has_answered = True
        self._reads_no_more.set()
        kept = [(name, value) for name, value in headers if name.lower() not in SERVER_HEADERS]
        await self._send({"type": "http.response.start", "status": status, "headers": kept})


def _worded(error: LlmuxError, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """The answer that an error carries, as the client of this scope words it."""
    return error_answer(error, dialect_of(scope["raw_path"], scope["headers"]))


async def _refuse(error: LlmuxError, scope: Scope, send: Send) -> None:
    """Answer what is not served, and close: behind a CONNECT, Hypercorn would read no more."""
    status, headers, body = _worded(error, scope)
    closing = [*headers, (b"connection", b"close")]
    with suppress(*SERVER_BREAKS):
        await send({"type": "http.response.start", "status": status, "headers": closing})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _with_origin_form(scope: Scope) -> Scope:
    """The scope with path and query where the client gave an absolute URI; raises BadRequest."""
    raw: bytes = scope["raw_path"]
    if raw.startswith(b"/"):
        return scope
    path = origin_form(raw)
    return {**scope, "raw_path": path, "path": unquote_to_bytes(path).decode("utf-8", "replace")}


def _own_path(scope: Scope) -> bytes | None:
    method = scope.get("method", "")  # a WebSocket has none
    return own_path(scope["raw_path"], method.encode("latin-1", "replace"))


def _with_own_path(scope: Scope) -> Scope:
    """The scope with a path of llmux's own as its routes know it; any other scope as it is.

    So nobody looks at one path here, and at another one behind: neither the guards nor the routes.
    """
    path = _own_path(scope)
    if path is None or path == scope["raw_path"]:
        return scope
    return {**scope, "raw_path": path, "path": unquote_to_bytes(path).decode("utf-8", "replace")}


def _target(scope: Scope) -> bytes:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path
