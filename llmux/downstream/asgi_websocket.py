"""WebSockets on the ASGI lane: message by message, since ASGI hides the frames."""

from __future__ import annotations

import base64
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from llmux.downstream.asgi_watch import CUT_S, LEFT_S, ModelRequest
from llmux.errors import BackendError, BodyTooLarge, LlmuxError, NoStream, RequestTooSlow
from llmux.http import wire
from llmux.http.asgi_types import Message, Receive, Scope, Send
from llmux.openai.dialects import INTERNAL_CLOSE, close_reason
from llmux.openai.headers import header
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import FIELD_BYTES, Body
from llmux.proxy.lane import ClientLeft, EventStream, HeaderList, Tunnel
from llmux.proxy.opening import (
    MOST_FIRST_BYTES,
    SILENCE_S,
    chosen_protocol,
    close_code,
    error_message,
)
from llmux.upstream import Answer
from llmux.upstream.connections import Stream

# The server has negotiated these with the client; llmux negotiates its own with the backend.
MAX_MESSAGE_BYTES = 16 << 20
"""Limit for a message from a backend, held until it is whole; Hypercorn limits a client's alike."""

HANDSHAKE_HEADERS = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"}
)


class WebSocketLane(ModelRequest):
    """One WebSocket of an ASGI server; see `llmux.proxy.lane.Lane` and `Tunnel`.

    Attributes:
        message_at: See `Tunnel`.
    """

    events: EventStream | None = None  # a handshake has no body, and its answer neither

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
        super().__init__(scope, target, receive, send, body, stall_s=stall_s)
        self.method = b"GET"
        self.headers: HeaderList = _handshake(scope["headers"])
        self.scheme = "https" if scope["scheme"] in ("wss", "https") else "http"
        self.upgrade = b"websocket"
        self.message_at = 0.0
        self._frames = Connection(ConnectionType.CLIENT)
        self._backend: Stream | None = None
        self._sending = trio.Lock()
        self._message = bytearray()  # the message that a backend is sending
        self._has_closed = False
        self._is_open = False  # True if accepted before there was a backend
        self._early: deque[Event] = deque()
        self._carrying: trio.Nursery | None = None

    @property
    def tunnel(self) -> Tunnel:
        """See `Lane`."""
        return self

    async def serve(self, proxy: ModelProxy) -> None:
        """See `Watched`."""
        await proxy.serve(self)

    async def read_body(self) -> None:
        """A handshake has none; raises ClientLeft."""
        if (await self._receive())["type"] != "websocket.connect":
            raise ClientLeft

    async def accept_early(self, headers: HeaderList, greeting: bytes) -> bytes:
        """See `Tunnel`."""
        await self._accept(headers, chosen_protocol(self.headers))
        self._is_open = True
        with trio.move_on_after(self._stall_s) as self.reading:
            message = await self._receive_greeted(greeting)
        is_late, self.reading = self.reading.cancelled_caught, None
        if is_late:
            raise RequestTooSlow
        if message["type"] != "websocket.receive":
            raise ClientLeft
        event = _event(message)
        assert isinstance(event, TextMessage | BytesMessage)
        data = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
        if len(data) > MOST_FIRST_BYTES:
            raise BodyTooLarge(MOST_FIRST_BYTES)
        self._hold(event)
        return data

    async def _receive_greeted(self, greeting: bytes) -> Message:
        if greeting:
            with trio.move_on_after(SILENCE_S):
                return await self._receive()
            await self.send({"type": "websocket.send", "text": greeting.decode()})
        return await self._receive()

    def _hold(self, event: Event) -> None:
        """Keep a message until there is a backend; raises BodyTooLarge, QueueFull."""
        assert isinstance(event, TextMessage | BytesMessage)
        self.body.grow(len(event.data) + FIELD_BYTES)
        self._early.append(event)

    def replace_first_message(self, message: bytes) -> None:
        """See `Tunnel`."""
        first = self._early[0]
        if isinstance(first, TextMessage):
            self._early[0] = TextMessage(data=message.decode("utf-8", "replace"))
        else:
            self._early[0] = BytesMessage(data=message)

    async def _accept(self, headers: HeaderList, protocol: bytes) -> None:
        passed = [(n.lower(), v) for n, v in headers if not n.lower().startswith(b"sec-websocket-")]
        accept = {"type": "websocket.accept", "headers": passed}
        await self.send({**accept, "subprotocol": protocol.decode("latin-1") or None})

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """See `Lane`; carries the client's messages meanwhile."""
        error: Exception | None = None
        has_left = False

        async def carry() -> None:
            nonlocal has_left, error
            while (message := await self._receive())["type"] == "websocket.receive":
                self.message_at = trio.current_time()
                try:
                    await self._to_backend(_event(message))
                except LlmuxError as caught:
                    error = caught
                    nursery.cancel_scope.cancel()
                    return
            self.end_within(LEFT_S)
            await self._to_backend(CloseConnection(code=message.get("code") or 1000))
            has_left = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            self._carrying = nursery
            nursery.start_soon(carry)
            try:
                yield
            except Exception as caught:
                # Raised again outside, or the nursery would wrap it in a group.
                error = error or caught
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error
        if has_left:
            raise ClientLeft

    async def _to_backend(self, event: Event) -> None:
        """Send an event, if the backend may still get it; waits for one that is being sent."""
        if self._is_open and self._backend is None:
            if isinstance(event, TextMessage | BytesMessage):
                self._hold(event)
            return
        async with self._sending:
            await self._send_held()
            await self._send_event(event)

    async def _send_early(self) -> None:
        """Send the messages that came before there was a backend."""
        async with self._sending:
            await self._send_held()

    async def _send_held(self) -> None:
        while self._early:
            await self._send_event(self._early.popleft())

    async def _send_event(self, event: Event) -> None:
        state = self._frames.state
        is_reply = state is ConnectionState.REMOTE_CLOSING and isinstance(event, CloseConnection)
        if self._backend is not None and (state is ConnectionState.OPEN or is_reply):
            try:
                with suppress(*wire.BREAKS):
                    await wire.send_on(self._backend, self._frames.send(event), self._stall_s)
            except trio.TooSlowError:
                # Behind what is not taken, nobody can see whether the client has left.
                await trio.aclose_forcefully(self._backend)

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Accept the WebSocket if the backend does, and carry its messages until it closes."""
        if answer.stream is None:
            if self._is_open:
                raise NoStream(answer.status, await answer.read())
            await self.reply(answer.status, headers, await answer.read())
            return
        self.has_answered = True
        if not self._is_open:
            await self._accept(headers, header(headers, b"sec-websocket-protocol"))
        self._stands_between = True
        self._backend = answer.stream
        if self._early:
            # Not here: a backend may send before it reads.
            assert self._carrying is not None
            self._carrying.start_soon(self._send_early)
        code = await self._carry_answers(answer.stream, answer.early)
        if code == CloseReason.ABNORMAL_CLOSURE:
            _, reason = close_reason(BackendError("closed the connection"))
            await self._close(INTERNAL_CLOSE, reason)
        else:
            await self._close(code, "")

    async def _carry_answers(self, stream: Stream, data: bytes) -> int:
        """Pass on the backend's messages until it closes; returns its close code."""
        code: int = CloseReason.ABNORMAL_CLOSURE
        while self._frames.state is not ConnectionState.CLOSED:
            try:
                data = data or bytes(await stream.receive_some(wire.RECEIVE_BYTES))
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
                    await self._to_backend(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
                    return CloseReason.MESSAGE_TOO_BIG
        return code

    async def _from_backend(self, event: Event) -> None:
        if isinstance(event, TextMessage):
            await self._send_piece("text", event.data, event.message_finished)
        elif isinstance(event, BytesMessage):
            await self._send_piece("bytes", event.data, event.message_finished)
        elif isinstance(event, Ping | CloseConnection):
            await self._to_backend(event.response())

    async def _send_piece(self, kind: str, data: str | bytes | bytearray, is_last: bool) -> None:
        # ASGI has no messages in pieces, so they are held until they are whole.
        self.message_at = trio.current_time()
        self._message += data.encode() if isinstance(data, str) else data
        if self._is_too_large or not is_last:
            return
        whole, self._message = bytes(self._message), bytearray()
        message = whole.decode() if kind == "text" else whole
        self._stands_between = False
        await self.send({"type": "websocket.send", kind: message})
        self._stands_between = True
        self.sent_bytes += len(whole)

    @property
    def _is_too_large(self) -> bool:
        """True if the backend's message is over the limit."""
        return len(self._message) > MAX_MESSAGE_BYTES

    async def close_websocket(self, code: int, reason: str, event: bytes) -> None:
        """See `Tunnel`; sends nothing if the client has still to take a message."""
        if self._has_closed or not self._stands_between:  # closed, not open yet, or in a message
            return
        self.end_within(CUT_S)
        with suppress(ClientLeft):
            if event:
                await self.send({"type": "websocket.send", "text": event.decode()})
            await self._close(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        self._has_closed = True
        await self.send({"type": "websocket.close", "code": code, "reason": reason})

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Refuse the handshake; if it was accepted already, send the error as a message."""
        self.has_answered = True
        if self._is_open:
            await self.send({"type": "websocket.send", "text": error_message(body).decode()})
            await self.send({"type": "websocket.close", "code": close_code(status)})
            self.sent_bytes += len(body)
            return
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
