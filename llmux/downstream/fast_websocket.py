"""A request on the fast lane that asks for a WebSocket, and the WebSocket itself: bytes both ways.

Frames are passed on as they came. llmux reads no more of them than it takes to know when the last
message passed, and where a frame of its own may follow.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import trio

from llmux.downstream.early_messages import EarlyMessages
from llmux.downstream.fast_connection import LINGER_S, ClientConnection
from llmux.downstream.fast_request import FastRequest
from llmux.errors import BackendBroke, BackendError, NoStream, RequestTooSlow
from llmux.http import wire
from llmux.http.heads import RequestHead
from llmux.http.wsframes import CLOSE, TEXT, FrameReader, frame
from llmux.openai.dialects import INTERNAL_CLOSE, close_reason
from llmux.openai.headers import header
from llmux.proxy.held import Bodies
from llmux.proxy.lane import ClientLeft, HeaderList, Tunnel
from llmux.proxy.opening import check_handshake, close_payload, error_message, handshake_answer
from llmux.upstream import Answer
from llmux.upstream.answers import BodyUntilClose
from llmux.upstream.connections import Stream

CLOSE_S = 0.25
"""Time for a client to read why its WebSocket ends: closing on unread data would lose it that."""


class Messages(BodyUntilClose):
    """The data that a backend sends on a WebSocket, until it closes the connection.

    Args:
        answer: The answer that accepted the WebSocket.
        heard: Called with each piece before it is sent on.
    """

    __slots__ = ("_heard",)

    def __init__(self, answer: Answer, heard: Callable[[bytes], None]) -> None:
        super().__init__(answer.connection)
        self._heard = heard

    def take(self, data: bytes) -> bytes:
        """See `WireBody`."""
        if data:
            self._heard(data)
        return super().take(data)


class FastWebSocket(FastRequest):
    """See `llmux.proxy.lane.Tunnel`.

    A backend may ignore the upgrade and answer as it would to any request (RFC 9110, section 7.8),
    unless llmux has accepted the handshake already. So this is a `FastRequest`, too.

    Attributes:
        message_at: See `Tunnel`.
    """

    def __init__(
        self, connection: ClientConnection, head: RequestHead, head_bytes: int, bodies: Bodies
    ) -> None:
        super().__init__(connection, head, head_bytes, bodies)
        self.message_at = 0.0
        self._early: EarlyMessages | None = None  # once llmux itself has accepted the handshake
        self._frames: FrameReader | None = None  # set while a frame of llmux's own may follow

    @property
    def tunnel(self) -> Tunnel | None:
        """See `Lane`."""
        return self

    def present(self) -> AbstractAsyncContextManager[None]:
        """See `Lane`: a client whose WebSocket is accepted already is listened to meanwhile."""
        return super().present() if self._early is None else self._early.attended()

    async def accept_early(self, headers: HeaderList, greeting: bytes) -> bytes:
        """See `Tunnel`."""
        check_handshake(self.method, self.headers)
        connection = self._connection
        connection.can_go_on = False
        head = self._response_head(101, [*headers, *handshake_answer(self.headers)])
        await connection.send(head)
        self._early = EarlyMessages(connection, self.body)
        with trio.move_on_after(connection.lane.stall_s) as self.reading:
            await self._early.hear_first(greeting)
        is_late, self.reading = self.reading.cancelled_caught, None
        if is_late:
            raise RequestTooSlow
        return bytes(self._early.frames.message)

    def replace_first_message(self, message: bytes) -> None:
        """See `Tunnel`."""
        assert self._early is not None
        self._early.frames.replace_first(message)

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Carry the WebSocket if the backend accepts it, else send its answer."""
        if answer.stream is not None:
            await self._carry(answer, answer.stream, headers)
        elif self._early is not None:
            raise NoStream(answer.status, await answer.read())
        else:
            await super().relay(answer, headers)

    async def _carry(self, answer: Answer, backend: Stream, headers: HeaderList) -> None:
        """After a 101: bytes both ways, until either side closes."""
        await self._answer_handshake(answer, headers)
        self._frames = FrameReader()
        has_left = False

        async def to_backend() -> None:
            nonlocal has_left
            has_left = await self._send_to_backend(backend)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(to_backend)
            with suppress(*wire.BREAKS, BackendBroke, ClientLeft):
                messages = Messages(answer, self._heard)
                async for data in self._connection.pieces(messages):
                    frames, self._frames = self._frames, None  # nothing may follow meanwhile
                    await self._connection.send(data)
                    self._frames = frames
            nursery.cancel_scope.cancel()
        if not has_left:
            _, reason = close_reason(BackendError("closed the connection"))
            await self.close_websocket(INTERNAL_CLOSE, reason, b"")

    async def _answer_handshake(self, answer: Answer, headers: HeaderList) -> None:
        connection = self._connection
        connection.can_go_on = False
        # The client's last bytes count here, so its end is first looked for where they are read.
        connection.outlasts_s = LINGER_S
        if self._early is not None:
            await self._early.stop()  # if this is cut, `reply` still tells the client why
            connection.buffer = self._early.frames.take()
            self.has_answered = True
            return
        self.has_answered = True
        upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", header(answer.headers, b"upgrade"))]
        await connection.send(self._response_head(101, [*headers, *upgrade], answer.reason))

    async def _send_to_backend(self, backend: Stream) -> bool:
        """Pass on the client's bytes; returns whether it was the client that ended."""
        connection, frames = self._connection, FrameReader()
        data, connection.buffer = connection.buffer, b""
        with suppress(*wire.BREAKS, trio.TooSlowError):
            while data := data or await connection.receive():
                if frames.feed(data):
                    self.message_at = trio.current_time()
                # Behind bytes that are not read, nobody can see whether the client has left.
                await wire.send_on(backend, data, connection.lane.stall_s)
                data = b""
        return not data

    def _heard(self, data: bytes) -> None:
        """Follow what the backend sends, which is passed on at once."""
        if self._frames is not None and self._frames.feed(data):
            self.message_at = trio.current_time()

    async def close_websocket(self, code: int, reason: str, event: bytes) -> None:
        """See `Tunnel`; sends nothing if a frame is under way."""
        frames = self._frames
        if frames is None or not frames.may_follow:
            return
        said = frame(TEXT, event) if event and frames.may_say else b""
        said += frame(CLOSE, code.to_bytes(2, "big") + reason.encode())
        self._frames = None
        with suppress(*wire.BREAKS, ClientLeft):
            await self._connection.send(said)
            # A cut may have cancelled the scope around; the request has left its model by now.
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
                await self._connection.end_sending()
                while await self._connection.receive():
                    pass

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Refuse the handshake; if it was accepted already, send the error as a message."""
        if self._early is None:
            await super().reply(status, headers, body)
            return
        self.has_answered = True
        message = frame(TEXT, error_message(body)) + frame(CLOSE, close_payload(status))
        await self._connection.send(message)
        await self._connection.linger()
