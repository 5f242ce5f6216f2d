"""The ASGI lane: model traffic under any ASGI server that runs Trio.

ModelTraffic     the middleware: which lane serves a request
AsgiLane         one model request (`asgi_request`)
WebSocketLane    one WebSocket (`asgi_websocket`)
OwnRequest       one request for llmux's own paths (`asgi_own`)
Watched          what the three share: the server's own task watches the client (`asgi_watch`)
ModelRequest     what the first two share (`asgi_watch`)
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import trio
from trio_util import periodic

from llmux.api.listeners import wrong_listener
from llmux.downstream.asgi_own import OwnRequest, refuse, vetted, with_whole_body
from llmux.downstream.asgi_request import AsgiLane
from llmux.downstream.asgi_watch import Watched
from llmux.downstream.asgi_websocket import WebSocketLane
from llmux.downstream.own_answers import counted
from llmux.errors import BadRequest, ShuttingDown
from llmux.http.asgi_types import ASGIApp, Receive, Scope, Send
from llmux.http.paths import own_path
from llmux.http.targets import origin_form
from llmux.proxy.access_log import AccessLog, logged
from llmux.proxy.cors import is_shared_path, shared
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import Body
from llmux.proxy.own_site import is_open_path

SWEEP_S = 1.0
"""Interval at which stalled clients are looked for."""

LAST_STALL_S = 1.0
"""Stall limit for event readers during shutdown, which they must not hold up."""


class ModelTraffic:
    """ASGI middleware: model traffic goes to the proxy, the rest to the app inside.

    Args:
        app: Serves llmux's own paths.
        proxy: Carries model traffic.
        access_log: Logs requests for llmux's own paths, too, while it is on.
        nursery: The nursery of the app's lifespan, once that has begun.
        stall_s: Seconds without a byte taken, or sent of a body, after which a client is cut.
        is_apart: True if the control API has a listener of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        proxy: ModelProxy,
        access_log: AccessLog,
        *,
        nursery: Callable[[], trio.Nursery],
        stall_s: float,
        is_apart: bool = False,
    ) -> None:
        self._app = app
        self._is_apart = is_apart
        self._proxy = proxy
        self._access_log = access_log
        self._nursery = nursery
        self._stall_s = stall_s
        self._own_stall_s = stall_s
        self._watched: set[Watched] = set()

    def stop(self) -> None:
        """Cut clients of llmux's own paths sooner from now on; see `LAST_STALL_S`."""
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
            await refuse(error, scope, send)
            return
        if (not_here := wrong_listener(scope, is_apart=self._is_apart)) is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # the server answers 403
            else:
                await refuse(not_here, scope, send)
            return
        lane = self._lane(scope, receive, send)
        if self._start(lane):
            await self._watch(lane)
        else:
            await refuse(ShuttingDown(), scope, send)

    def _lane(self, scope: Scope, receive: Receive, send: Send) -> Watched:
        fields, target = scope["headers"], _target(scope)
        text_bytes = sum(len(name) + len(value) for name, value in fields)
        body = Body(self._proxy.bodies, text_bytes=text_bytes, fields=len(fields))
        if scope["type"] == "websocket":
            # llmux's own paths have no WebSockets: the proxy refuses one that names no model.
            return WebSocketLane(scope, target, receive, send, body, stall_s=self._stall_s)
        if _own_path(scope) is not None:
            return OwnRequest(self._own_app(scope), scope, receive, send)
        return AsgiLane(scope, target, receive, send, body, stall_s=self._stall_s)

    def _own_app(self, scope: Scope) -> ASGIApp:
        """Return the app for llmux's own paths, in the wrappers that this request's path needs."""
        bodies = self._proxy.bodies
        app = with_whole_body(counted(bodies, self._app), bodies, self._stall_s)
        if not is_open_path(scope["raw_path"]):
            app = vetted(app, self._proxy)
        if (cors := self._proxy.cors) is not None and is_shared_path(scope["raw_path"]):
            app = shared(cors, app)
        if self._access_log.is_on:
            peer = scope["client"][0] if scope.get("client") else None
            app = logged(app, self._proxy.client_of(peer, scope["headers"]))
        return app

    def _start(self, lane: Watched) -> bool:
        """Start to serve a request; returns False if the lifespan ends, or has ended."""
        nursery = self._nursery()
        if nursery.cancel_scope.cancel_called:  # the request would be cancelled before its answer
            return False
        try:
            nursery.start_soon(lane.run, self._proxy)
        except RuntimeError:  # closed: cancelled from outside
            return False
        return True

    async def _watch(self, lane: Watched) -> None:
        self._watched.add(lane)
        try:
            await lane.watch()
        finally:
            self._watched.discard(lane)

    async def watch_stalls(self) -> None:
        """Cut clients that take nothing for too long; never returns."""
        async for _ in periodic(min(SWEEP_S, self._stall_s)):
            now = trio.current_time()
            for lane in tuple(self._watched):
                stall_s = self._own_stall_s if isinstance(lane, OwnRequest) else self._stall_s
                if lane.sending_since is not None and lane.sending_since < now - stall_s:
                    lane.watching.cancel()


def _with_origin_form(scope: Scope) -> Scope:
    """Return the scope with a path where the client gave an absolute URI; raises BadRequest."""
    raw: bytes = scope["raw_path"]
    if raw.startswith(b"/"):
        return scope
    path = origin_form(raw)
    return {**scope, "raw_path": path, "path": unquote_to_bytes(path).decode("utf-8", "replace")}


def _own_path(scope: Scope) -> bytes | None:
    method = scope.get("method", "")  # a WebSocket has none
    return own_path(scope["raw_path"], method.encode("latin-1", "replace"))


def _with_own_path(scope: Scope) -> Scope:
    """Return the scope with a path of llmux's own as its routes know it; others unchanged.

    Guards and routes must not see two different paths for one request.
    """
    path = _own_path(scope)
    if path is None or path == scope["raw_path"]:
        return scope
    return {**scope, "raw_path": path, "path": unquote_to_bytes(path).decode("utf-8", "replace")}


def _target(scope: Scope) -> bytes:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path
