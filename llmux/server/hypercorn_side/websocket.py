"""WebSockets on Hypercorn: held until they are accepted, not compressed, and bounded."""

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
"""What a client may send of its WebSocket before the handshake is answered."""


class MessageBuffer(WebsocketBuffer):
    """A message that is coming, as bytes: Hypercorn's takes four for each character of a text."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self._held = HeldMessage(RULES.bodies)
        self._data = bytearray()
        self._is_text = False

    def extend(self, event: Message[Any]) -> None:
        """Add a piece; raises FrameTooLargeError, QueueFull."""
        self._is_text = isinstance(event, TextMessage)
        data = event.data.encode() if isinstance(event.data, str) else event.data
        if len(self._data) + len(data) > self.max_length:
            raise FrameTooLargeError
        self._held.grow(len(data))
        self._data += data

    def clear(self) -> None:
        """Begin another one."""
        self._held.release()
        self._data = bytearray()
        self._is_text = False

    def to_message(self) -> dict[str, Any]:
        """What the app gets."""
        whole = bytes(self._data)
        text = whole.decode() if self._is_text else None
        data = None if self._is_text else whole
        return {"type": "websocket.receive", "bytes": data, "text": text}


class HoldingWSStream(WSStream):
    """A WebSocket whose client may send before its handshake is answered.

    Hypercorn answers that with a 400 of its own and tells the app nothing from then on, not even
    that the client leaves. If the app has answered by then, the second answer ends the server.

    It also negotiates compression, with which a frame of 1 MB becomes 400 MB; and after a message
    over the limit it reads on, and keeps, for as long as the client sends. Small messages cost more
    than they weigh: those that come too fast end the WebSocket.

    Attributes:
        is_torn: True once the app has left while part of a message may be out: nothing can follow.
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
        """Send; what an app leaves that has not sent all of a message is closed at once.

        Hypercorn would send a Close frame first, and wait for the client to take it.
        """
        if message is None and self._unsent and not self.closed:
            self.is_torn = True
            await self.send(StreamClosed(stream_id=self.stream_id))
            return
        self._unsent += 1
        await super().app_send(message)
        self._unsent -= 1  # not if it was cancelled: then part of a frame may be out

    async def handle(self, event: Event) -> None:
        """Hold what comes too early; what follows a refusal is for nobody."""
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
        """Close what Hypercorn refuses; it would leave that open. Refuse what breaks it."""
        stream_id = self.stream_id
        try:
            await super().handle(request)
        except UnicodeDecodeError:  # in a header of the handshake
            self.closed = True
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await self.send(Response(stream_id=stream_id, headers=headers, status_code=400))
            await self.send(EndBody(stream_id=stream_id))
        if self.closed:
            await self.send(StreamClosed(stream_id=stream_id))

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        self.handshake.extensions = None
        await super()._accept(message)
        # Hypercorn's inflates what comes compressed also where that was not negotiated.
        self.connection = Connection(ConnectionType.SERVER)
        # Not here, where the app waits: it could not take them meanwhile.
        self.task_group.spawn(self._take_early)

    async def _take_early(self) -> None:
        await super().handle(Data(stream_id=self.stream_id, data=self._early))
        self._early = b""
        await self._opened.set()

    async def _handle_events(self) -> None:
        """Pass on what has come; frames that hold nothing cost time, too."""
        for number, event in enumerate(self.connection.events(), 1):
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

    async def _refuse(self, why: int, reason: str = "") -> None:
        """Say why, and take nothing more."""
        self._is_refused = True
        self.buffer.clear()
        await self._send_wsproto_event(CloseConnection(code=why, reason=reason))
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
