"""WebSockets on the ASGI lane: message by message, since ASGI hides the frames."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from llmux import wire
from llmux.asgi_types import Message, Receive, Scope, Send
from llmux.asgi_watch import LEFT_S, Watched
from llmux.backend import Answer
from llmux.backend.connections import Stream
from llmux.bodies import Body
from llmux.dialects import INTERNAL_CLOSE, close_reason
from llmux.errors import BackendError
from llmux.openai import header
from llmux.proxy import ClientLeft, HeaderList, ModelProxy

# The server has negotiated these with the client; llmux has its own with the backend.
MAX_MESSAGE_BYTES = 16 << 20
"""Of one message from a backend, which is held until it is whole; Hypercorn's of a client's."""

HANDSHAKE_HEADERS = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"}
)


class WebSocketLane(Watched):
    """One WebSocket of an ASGI server; see `llmux.proxy.Lane`."""

    def __init__(
        self,
        scope: Scope,
        target: bytes,
        receive: Receive,
        send: Send,
        body: Body,
        *,
        stall_s: float,
    ) -> None:
        super().__init__(receive, send)
        self.body = body
        self.method = b"GET"
        self.target = target
        self.headers: HeaderList = _handshake(scope["headers"])
        self.peer: str | None = scope["client"][0] if scope.get("client") else None
        self.scheme = "https" if scope["scheme"] in ("wss", "https") else "http"
        self.has_answered = False
        self.upgrade = b"websocket"
        self.cut_scope: trio.CancelScope | None = None
        self.reading: trio.CancelScope | None = None
        self.sent_bytes = 0
        self._stall_s = stall_s
        self._frames = Connection(ConnectionType.CLIENT)
        self._backend: Stream | None = None
        self._sending = trio.Lock()
        self._message = bytearray()  # what has come of one
        self._has_closed = False

    async def serve(self, proxy: ModelProxy) -> None:
        """See `Watched`."""
        await proxy.serve(self)

    async def read_body(self) -> None:
        """A handshake has none; raises ClientLeft."""
        if (await self._receive())["type"] != "websocket.connect":
            raise ClientLeft

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """Cancel what runs inside when the client leaves, and carry its messages until then."""
        error: Exception | None = None
        has_left = False

        async def carry() -> None:
            nonlocal has_left
            while (message := await self._receive())["type"] == "websocket.receive":
                await self._to_backend(_event(message))
            self.end_within(LEFT_S)
            await self._to_backend(CloseConnection(code=message.get("code") or 1000))
            has_left = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            try:
                yield
            except Exception as caught:
                error = caught  # raised again outside, or the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error
        if has_left:
            raise ClientLeft

    async def _to_backend(self, event: Event) -> None:
        """Send what may still be sent; a reply to the backend waits for a message on its way."""
        async with self._sending:
            state = self._frames.state
            is_reply = state is ConnectionState.REMOTE_CLOSING and isinstance(
                event, CloseConnection
            )
            if self._backend is not None and (state is ConnectionState.OPEN or is_reply):
                try:
                    with suppress(*wire.BREAKS):
                        await wire.send_on(self._backend, self._frames.send(event), self._stall_s)
                except trio.TooSlowError:
                    # Behind what is not taken, nobody can see whether the client has left.
                    await trio.aclose_forcefully(self._backend)

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Accept what the backend accepts, and carry its messages until it closes."""
        if answer.stream is None:
            await self.reply(answer.status, headers, await answer.read())
            return
        self.has_answered = True
        protocol = header(answer.headers, b"sec-websocket-protocol")
        passed = [(n.lower(), v) for n, v in headers if not n.lower().startswith(b"sec-websocket-")]
        accept = {"type": "websocket.accept", "headers": passed}
        await self.send({**accept, "subprotocol": protocol.decode("latin-1") or None})
        self._backend = answer.stream
        data = answer.early
        code = 1006
        while self._frames.state is not ConnectionState.CLOSED:
            try:
                data = data or bytes(await answer.stream.receive_some(wire.RECEIVE_BYTES))
            except wire.BREAKS:
                break
            if not data:
                break
            self._frames.receive_data(data)
            data = b""
            for event in self._frames.events():
                if isinstance(event, CloseConnection):
                    code = event.code
                await self._from_backend(event)
                if self._is_too_large:
                    break
            if self._is_too_large:
                code = CloseReason.MESSAGE_TOO_BIG
                await self._to_backend(CloseConnection(code=code))
                break
        if code == 1006:  # it has said nothing
            _, reason = close_reason(BackendError("closed the connection"))
            await self._close(INTERNAL_CLOSE, reason)
        else:
            await self._close(code, "")

    async def _from_backend(self, event: Event) -> None:
        if isinstance(event, TextMessage):
            await self._send_piece("text", event.data, event.message_finished)
        elif isinstance(event, BytesMessage):
            await self._send_piece("bytes", event.data, event.message_finished)
        elif isinstance(event, Ping | CloseConnection):
            await self._to_backend(event.response())

    async def _send_piece(self, kind: str, data: str | bytes | bytearray, is_last: bool) -> None:
        """ASGI knows whole messages only."""
        self._message += data.encode() if isinstance(data, str) else data
        if self._is_too_large or not is_last:
            return
        whole, self._message = bytes(self._message), bytearray()
        message = whole.decode() if kind == "text" else whole
        await self.send({"type": "websocket.send", kind: message})
        self.sent_bytes += len(whole)

    @property
    def _is_too_large(self) -> bool:
        """Whether the backend's message is over the limit."""
        return len(self._message) > MAX_MESSAGE_BYTES

    async def begin_events(self, headers: HeaderList) -> None:
        """A handshake has no body that could ask for them."""

    async def send_events(self, data: bytes) -> None:
        """See `begin_events`."""

    async def end_events(self) -> None:
        """See `begin_events`."""

    async def send_last_event(self, event: bytes) -> None:
        """What is relayed is no stream of events."""

    async def close_socket(self, code: int, reason: str, event: bytes) -> None:
        """Say why a WebSocket ends, which the client has."""
        if self._has_closed or self._backend is None:  # it is none any more, or not yet
            return
        with suppress(ClientLeft):
            if event:
                await self.send({"type": "websocket.send", "text": event.decode()})
            await self._close(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        self._has_closed = True
        await self.send({"type": "websocket.close", "code": code, "reason": reason})

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Refuse the handshake with an answer of its own."""
        self.has_answered = True
        start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
        await self.send(start)
        await self.send({"type": "websocket.http.response.body", "body": body})
        self.sent_bytes += len(body)


def _handshake(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    key = base64.b64encode(os.urandom(16))  # RFC 6455, section 4.1
    kept = [(name, value) for name, value in headers if name.lower() not in HANDSHAKE_HEADERS]
    return [*kept, (b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", key)]


def _event(message: Message) -> Event:
    if message.get("bytes") is not None:
        return BytesMessage(data=message["bytes"])
    return TextMessage(data=message["text"])
