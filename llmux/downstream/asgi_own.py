"""Requests for llmux's own paths under an ASGI server: bounded before the app inside sees them."""

from __future__ import annotations

from contextlib import suppress

import trio

from llmux.base.names import shown
from llmux.downstream.asgi_watch import LEFT_S, SERVER_BREAKS, Watched, collect, content_length
from llmux.errors import Forbidden, LlmuxError
from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.observe.logs import get_logger
from llmux.openai.answers import error_answer
from llmux.openai.dialects import dialect_of
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import SMALL_OWN_BYTES, Bodies, Body
from llmux.proxy.lane import ClientLeft

OWN_BODY_BYTES = 1 << 20
"""Limit for bodies of llmux's own paths, all of them short commands (nginx's default)."""

log = get_logger(__name__)


class OwnRequest(Watched):
    """A request for llmux's own paths, on its way through the app inside.

    The app is not told of a disconnect once the response has ended. Hypercorn reports one while the
    task that sends the end of the response has still to recycle the connection or close it. If the
    app cancels that task then, as Quart does, the connection is never closed: neither when idle nor
    at shutdown.
    """

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self._app = app
        self._asgi_scope = scope

    async def serve(self, _proxy: ModelProxy) -> None:
        """See `Watched`."""
        try:
            await self._app(self._asgi_scope, self._receive_next, self._send_checked)
        except Exception:
            log.exception("own_path_failed", path=shown(self._asgi_scope["path"]))

    async def _receive_next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.end_within(LEFT_S)
            if self.is_ending:
                await trio.sleep_forever()
        return message

    async def _send_checked(self, message: Message) -> None:
        try:
            await self.send(message)
        except ClientLeft:  # the app inside would take it for an error
            self.scope.cancel()
            await trio.lowlevel.checkpoint()


def vetted(app: ASGIApp, proxy: ModelProxy) -> ASGIApp:
    """Wrap an app for llmux's own paths, so that pages of other sites cannot call it."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope["client"][0] if scope.get("client") else None
        try:
            proxy.own_site.vet(peer, scope["headers"])
        except Forbidden as error:
            await refuse(error, scope, send)
            return
        await app(scope, receive, send)

    return serve


def with_whole_body(app: ASGIApp, bodies: Bodies, stall_s: float) -> ASGIApp:
    """Wrap an app for llmux's own paths, so that it is called with the whole body received.

    Quart would otherwise hold a slow request for as long as its client likes.

    Args:
        app: Called once the body is there.
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


def _worded(error: LlmuxError, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the error's answer in the words of the client's API: status, headers, body."""
    return error_answer(error, dialect_of(scope["raw_path"], scope["headers"]))


async def refuse(error: LlmuxError, scope: Scope, send: Send) -> None:
    """Answer a request or a handshake with an error, and close the connection.

    Behind a CONNECT, Hypercorn would read nothing more.
    """
    status, headers, body = _worded(error, scope)
    closing = [*headers, (b"connection", b"close")]
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    with suppress(*SERVER_BREAKS):
        await send({"type": f"{kind}.start", "status": status, "headers": closing})
        await send({"type": f"{kind}.body", "body": body, "more_body": False})
