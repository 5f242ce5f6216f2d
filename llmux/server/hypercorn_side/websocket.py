"""WebSockets on Hypercorn: early data is held, compression is off, and rates are bounded."""

from __future__ import annotations

from typing import Any

from hypercorn.config import Config
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import (
    ASGIWebsocketState,
    FrameTooLargeError,
    WebsocketBuffer,
    WSStream,
)
from hypercorn.typing import ASGISendEvent, WebsocketAcceptEvent
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from llmux.errors import QueueFull
from llmux.openai.dialects import close_reason
from llmux.proxy.held import Message as HeldMessage
from llmux.server.hypercorn_side.frames import (
    SMALL_BYTES,
    SOCKET_BURST,
    SOCKET_REFILL_PER_S,
    Budget,
)
from llmux.server.hypercorn_side.rules import RULES, YIELD_EVENTS

MAX_EARLY_BYTES = 65536
"""Limit of the data that a client may send before its handshake is answered."""


class MessageBuffer(WebsocketBuffer):
    """An incoming message, kept as bytes: Hypercorn's buffer takes up to four per character."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self._held = HeldMessage(RULES.bodies)
        self._data = bytearray()
        self._is_text = False

    def extend(self, event: Message[Any]) -> None:
        """Add a fragment of the message.

        Raises:
            FrameTooLargeError: The message is longer than allowed.
            QueueFull: llmux holds as much memory for clients as it may.
        """
        self._is_text = isinstance(event, TextMessage)
        data = event.data.encode() if isinstance(event.data, str) else event.data
        if len(self._data) + len(data) > self.max_length:
            raise FrameTooLargeError
        self._held.grow(len(data))
        self._data += data

    def clear(self) -> None:
        self._held.release()
        self._data = bytearray()
        self._is_text = False

    def to_message(self) -> dict[str, Any]:
        """Return the ASGI message for the app."""
        whole = bytes(self._data)
        text = whole.decode() if self._is_text else None
        data = None if self._is_text else whole
        return {"type": "websocket.receive", "bytes": data, "text": text}


class HoldingWSStream(WSStream):
    """One WebSocket, with these faults of Hypercorn's corrected.

    - If the client sends before its handshake is answered, Hypercorn answers 400 itself and tells
      the app nothing more, not even that the client leaves. If the app has answered by then, the
      second answer ends the server. Here, early data is held.
    - It negotiates compression, with which a frame of 1 MB may inflate to 400 MB. Here, never.
    - After a message over the limit it goes on reading and buffering. Here, the WebSocket ends.
    - It accepts small messages at any rate, although each costs far more time than its size
      suggests. Here, a flood of them ends the WebSocket.

    Attributes:
        is_torn: True once the app has ended while part of a message may be out: nothing can follow.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        config: Config = self.config
        self.buffer = MessageBuffer(config.websocket_max_message_size)
        self._early = b""
        self._opened = self.context.event_class()
        self._is_refused = False
        self._unsent = 0
        self.is_torn = False
        self._budget = Budget(self.context.time(), SOCKET_BURST, SOCKET_REFILL_PER_S)

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a message of the app; None when the app has ended."""
        # The app was cancelled while it sent, so part of a frame may be out. Close at once:
        # Hypercorn would send a Close frame, and wait for the client to read it.
        if message is None and self._unsent and not self.closed:
            self.is_torn = True
            await self.send(StreamClosed(stream_id=self.stream_id))
            return
        self._unsent += 1
        await super().app_send(message)
        self._unsent -= 1  # not in `finally`: it must stay if the send was cancelled

    async def handle(self, event: Event) -> None:
        """Handle an event; hold data that arrives early, and discard data after a refusal."""
        if isinstance(event, StreamClosed):
            self.buffer.clear()
        if isinstance(event, Request):
            await self._begin(event)
        elif not isinstance(event, Body | Data):
            await super().handle(event)
        elif self._is_refused:
            pass
        elif self.closed or self._opened.is_set():
            await super().handle(event)
        elif self.state is ASGIWebsocketState.CONNECTED:
            await self._opened.wait()
            await super().handle(event)
        elif self.state is ASGIWebsocketState.HANDSHAKE:
            self._early += event.data
            if len(self._early) > MAX_EARLY_BYTES:
                await self.send(StreamClosed(stream_id=self.stream_id))

    async def _begin(self, request: Request) -> None:
        """Begin, or refuse the request and close: Hypercorn leaves refused connections open."""
        stream_id = self.stream_id
        try:
            await super().handle(request)
        except UnicodeDecodeError:  # a header of the handshake, which would end the server
            self.closed = True
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await self.send(Response(stream_id=stream_id, headers=headers, status_code=400))
            await self.send(EndBody(stream_id=stream_id))
        if self.closed:
            await self.send(StreamClosed(stream_id=stream_id))

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        self.handshake.extensions = None
        await super()._accept(message)
        # Hypercorn's connection inflates compressed frames even if compression was not negotiated.
        self.connection = Connection(ConnectionType.SERVER)
        # In a task of its own: the app waits for this call, so it could not receive meanwhile.
        self.task_group.spawn(self._take_early)

    async def _take_early(self) -> None:
        await super().handle(Data(stream_id=self.stream_id, data=self._early))
        self._early = b""
        await self._opened.set()

    async def _handle_events(self) -> None:
        """Handle the events that wsproto has parsed."""
        for number, event in enumerate(self.connection.events(), 1):
            # Empty frames and pings take time, too, so they are limited like small messages.
            is_large = isinstance(event, Message) and len(event.data) >= SMALL_BYTES
            if not (is_large or self._budget.spend(1, self.context.time())):
                await self._refuse(CloseReason.POLICY_VIOLATION)
            elif isinstance(event, Message):
                await self._take(event)
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                if self.connection.state is not ConnectionState.CLOSED:
                    await self._send_wsproto_event(event.response())
                await self.send(StreamClosed(stream_id=self.stream_id))
            if self._is_refused:
                return
            if number % YIELD_EVENTS == 0:
                await self.context.sleep(0)

    async def _refuse(self, code: int, reason: str = "") -> None:
        """Send a Close frame, and discard all further data."""
        self._is_refused = True
        self.buffer.clear()
        await self._send_wsproto_event(CloseConnection(code=code, reason=reason))
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _take(self, event: Message[Any]) -> None:
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            await self._refuse(CloseReason.MESSAGE_TOO_BIG)
            return
        except QueueFull as error:
            await self._refuse(*close_reason(error))
            return
        if event.message_finished:
            message = self.buffer.to_message()
            self.buffer.clear()
            assert self.app_put is not None
            await self.app_put(message)
