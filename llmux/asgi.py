"""The ASGI lane: model traffic under any ASGI server that runs Trio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import trio
from trio_util import periodic

from llmux.access_log import logged
from llmux.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.asgi_websocket import WebSocketLane
from llmux.backend import Answer
from llmux.bodies import Body
from llmux.control.doors import refusal
from llmux.cors import is_shared_path, shared
from llmux.errors import BadRequest, LlmuxError, RequestTooSlow
from llmux.http1 import origin_form
from llmux.logs import get_logger
from llmux.openai import error_answer, is_own_path
from llmux.proxy import ClientLeft, HeaderList, ModelProxy, is_event_end

NOTHING = nullcontext()

SWEEP_S = 1.0
"""How often stalled clients are looked for."""

LAST_STALL_S = 1.0
"""For so long, once llmux stops, may who watches it take nothing: it must not hold that up."""

log = get_logger(__name__)

# Hypercorn adds its own to every response.
SERVER_HEADERS = frozenset({b"date", b"server"})


class ModelTraffic:
    """ASGI middleware: model traffic goes to the proxy, the rest to the app inside.

    Args:
        app: What serves llmux's own paths.
        proxy: Carries model traffic.
        nursery: The nursery of the app's lifespan, once that has begun.
        stall_s: Seconds after which a client that takes nothing is cut.
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
        self._lanes: set[AsgiLane | OwnRequest] = set()

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
            scope = _with_origin_form(scope)
        except BadRequest as error:
            await _refuse(error, send)
            return
        if (not_here := refusal(scope, is_apart=self._is_apart)) is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # the server answers 403
            else:
                await _refuse(not_here, send)
            return
        body = Body(self._proxy.bodies)
        if scope["type"] == "websocket":
            # On llmux's own paths there is none: there it names no model.
            target, stall_s = _target(scope), self._stall_s
            await self._proxy.serve(
                WebSocketLane(scope, target, receive, send, body, stall_s=stall_s)
            )
            return
        if is_own_path(scope["raw_path"]):
            await self._watched(OwnRequest(self._own_app(scope), scope, receive, send))
            return
        lane = AsgiLane(scope, receive, send, body)
        if self._proxy.admits(lane.headers):  # else it is refused with its body unread
            await lane.receive_body()
        await self._watched(lane)

    def _own_app(self, scope: Scope) -> ASGIApp:
        """What serves llmux's own path of a request."""
        app = self._app
        if (cors := self._proxy.cors) is not None and is_shared_path(scope["raw_path"]):
            app = shared(cors, app)
        if self._proxy.logs_access:
            peer = scope["client"][0] if scope.get("client") else None
            app = logged(app, self._proxy.client_of(peer, scope["headers"]))
        return app

    async def _watched(self, lane: AsgiLane | OwnRequest) -> None:
        """Serve a request in a task of the lifespan, and watch its client meanwhile.

        Hypercorn shields its `send`: nothing can cancel a task that sends to a client which does
        not read. But when the app returns, Hypercorn closes the socket, and that ends the `send`.
        """
        self._lanes.add(lane)
        self._nursery().start_soon(lane.run, self._proxy)
        try:
            with lane.watching:
                await lane.wait_left()
                if not lane.is_ending:
                    lane.scope.cancel()
                await lane.ended.wait()
        finally:
            if not lane.ended.is_set():
                lane.scope.cancel()
            self._lanes.discard(lane)

    async def watch_stalls(self) -> None:
        """Give up on clients that take nothing for too long, for ever."""
        async for _ in periodic(min(SWEEP_S, self._stall_s)):
            now = trio.current_time()
            for lane in tuple(self._lanes):
                stall_s = self._own_stall_s if isinstance(lane, OwnRequest) else self._stall_s
                if lane.sending_since is not None and lane.sending_since < now - stall_s:
                    lane.watching.cancel()


class OwnRequest:
    """A request for llmux's own paths, on its way through the app inside.

    The app hears of no disconnect once the response has ended: Hypercorn says so while the task
    that sends the last of it is still to recycle the connection or close it. Whoever cancels that
    task then, as Quart does, leaves a connection that is never closed: not when idle, not at
    shutdown.

    Attributes:
        scope, watching, ended, is_ending, sending_since: As in `AsgiLane`.
    """

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._asgi_scope = scope
        self._receive = receive
        self._asgi_send = send
        self.scope = trio.CancelScope()
        self.watching = trio.CancelScope()
        self.ended = trio.Event()
        self.is_ending = False
        self.sending_since: float | None = None

    async def run(self, _proxy: ModelProxy) -> None:
        """Serve it."""
        try:
            with self.scope:
                await self._app(self._asgi_scope, self._hear, self._send)
        except Exception:
            log.exception("own_path_failed", path=self._asgi_scope["path"])
        finally:
            self.ended.set()
            self.watching.cancel()

    async def wait_left(self) -> None:
        """The app itself hears when the client leaves."""
        await self.ended.wait()

    async def _hear(self) -> Message:
        """The server's next message."""
        message = await self._receive()
        if self.is_ending and message["type"] == "http.disconnect":
            await trio.sleep_forever()
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_ending = True
        self.sending_since = trio.current_time()
        await self._asgi_send(message)
        self.sending_since = None


class AsgiLane:
    """One ASGI request; see `llmux.proxy.Lane`.

    A response that is given up half-way is simply not finished: the server then closes the
    connection without the end that the framing promises.

    Attributes:
        scope: Around the task that serves it.
        watching: Around the server's own task, which watches the client; cancelled when there is
            no more to wait for: the request is given up, or its client stalls.
        ended: Set when it is served.
        is_ending: The last of the response is being sent, or has been: a disconnect that the server
            reports now is the end of the response (ASGI 3, HTTP: Disconnect).
        sent_bytes: See `Lane`.
        sending_since: Since when the server has been taking a piece; None if it is not.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, body: Body) -> None:
        self.body = body
        self.method: bytes = scope["method"].encode("ascii")
        self.target = _target(scope)
        self.headers: HeaderList = scope["headers"]
        self.peer: str | None = scope["client"][0] if scope.get("client") else None
        self.scheme: str = scope["scheme"]
        self.has_answered = False
        self.upgrade = b""  # an ASGI server does not pass these on
        self.cut_scope: trio.CancelScope | None = (
            None  # Hypercorn sends nothing for what is cancelled
        )
        self.scope = trio.CancelScope()
        self.watching = trio.CancelScope()
        self.ended = trio.Event()
        self.is_ending = False
        self.sent_bytes = 0
        self.sending_since: float | None = None
        self._stands_after_event = False
        self._mistake: LlmuxError | ClientLeft | None = None
        self._receive = receive
        self._asgi_send = send

    async def run(self, proxy: ModelProxy) -> None:
        """Serve the request; what goes wrong with it must not end the lifespan that runs this."""
        try:
            with self.scope:
                await proxy.serve(self)
        except trio.BusyResourceError:  # the server is telling the client something of its own
            log.debug("answer_dropped", path=self.target)
        except Exception:
            log.exception("request_failed", path=self.target)
        finally:
            self.ended.set()
            if not self.is_ending:
                self.watching.cancel()

    async def _send(self, message: Message) -> None:
        self.sending_since = trio.current_time()
        self.is_ending = not message.get("more_body", True)
        await self._asgi_send(message)
        self.sending_since = None
        self.sent_bytes += len(message.get("body", b""))

    async def receive_body(self) -> None:
        """Take in the body, or what is wrong with it; `read_body` then has it."""
        try:
            with trio.move_on_after(self.body.longest_s) as deadline:
                await self._receive_body()
            if deadline.cancelled_caught:
                raise RequestTooSlow
        except (LlmuxError, ClientLeft) as error:
            self._mistake = error
        except BaseException:
            self.body.release()  # nobody else will
            raise

    async def read_body(self) -> None:
        """It was read before; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        if self._mistake is not None:
            raise self._mistake

    async def _receive_body(self) -> None:
        self.body.announce(self._content_length())
        pieces: list[bytes] = []
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            pieces.append(message.get("body", b""))
            self.body.grow(len(pieces[-1]))
            more = message.get("more_body", False)
        self.body.data = b"".join(pieces)

    def _content_length(self) -> int:
        for name, value in self.headers:
            if name.lower() == b"content-length":
                try:
                    return int(value)
                except ValueError:
                    raise BadRequest("Content-Length is not a number") from None
        return 0

    async def wait_left(self) -> None:
        """Return when the client has left; not before the body was received."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def present(self) -> AbstractAsyncContextManager[None]:
        """The task's scope does it."""
        return NOTHING

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
        except trio.Cancelled:
            self._stands_after_event = chunk is sent and is_event_end(answer, chunk)
            raise
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def begin_events(self, headers: HeaderList) -> None:
        """Send 200 and headers of a stream of events that llmux itself begins."""
        await self._start(HTTPStatus.OK, headers)

    async def send_events(self, data: bytes) -> None:
        """Send some of that stream."""
        self._stands_after_event = False
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._stands_after_event = data.endswith((b"\n\n", b"\r\n\r\n"))

    async def end_events(self) -> None:
        """End it as it should."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_last_event(self, event: bytes) -> None:
        """Send this after a stream of events that was cut between two of them."""
        if self._stands_after_event:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        await self._start(status, headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: HeaderList) -> None:
        self.has_answered = True
        kept = [(name, value) for name, value in headers if name.lower() not in SERVER_HEADERS]
        await self._send({"type": "http.response.start", "status": status, "headers": kept})


async def _refuse(error: LlmuxError, send: Send) -> None:
    """Answer what is not served, and close: behind a CONNECT, Hypercorn would read no more."""
    status, headers, body = error_answer(error)
    closing = [*headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": closing})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _with_origin_form(scope: Scope) -> Scope:
    """The scope with path and query where the client gave an absolute URI; raises BadRequest."""
    raw: bytes = scope["raw_path"]
    if raw.startswith((b"/", b"*")):
        return scope
    path = origin_form(raw)
    return {**scope, "raw_path": path, "path": unquote_to_bytes(path).decode("utf-8", "replace")}


def _target(scope: Scope) -> bytes:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path
