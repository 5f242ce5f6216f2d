"""A client's connection on the fast lane: bytes in and out, and the heads of its requests."""

from __future__ import annotations

import select
import socket as stdlib_socket
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Protocol

import trio

from llmux.errors import LlmuxError, RequestTooSlow
from llmux.http import wire
from llmux.http.heads import check_empty_bytes, find_end, response_head, skip_empty_lines
from llmux.http.syntax import CRLF
from llmux.http.tls import TlsStream
from llmux.openai.answers import error_answer
from llmux.openai.dialects import OPENAI, dialect_of_head
from llmux.proxy.lane import ClientLeft
from llmux.upstream.answers import WireBody

if TYPE_CHECKING:
    from llmux.downstream.pump import Pieces, Pump

HEAD_S = 30.0
"""Limit for a head from its first byte to its last (nginx: 60, Apache: 20 to 40)."""

SEND_BUFFER_BYTES = 128 * 1024
"""Kernel buffer for a client that does not read; Linux doubles it. Then the backend must wait."""

LINGER_S = 2.0
"""How long a client that was refused in mid-request may go on sending before it is cut off.

Also how long bytes that a client sent before it left are still passed on, where that matters.
"""


class Server(Protocol):
    """The part of a lane that its connections use.

    Attributes:
        stall_s: Seconds without a byte taken, or sent of a body, after which a client is cut.
        is_stopping: True once no further request is to be taken on a connection.
        pump: Relays bodies.
    """

    stall_s: float
    is_stopping: bool
    pump: Pump

    def note_idle(self, connection: ClientConnection) -> None:
        """The connection waits for a request, or for the rest of its head."""
        ...

    def note_busy(self, connection: ClientConnection) -> None:
        """The connection waits no more."""
        ...


class ClientConnection:
    """One client's connection and its state.

    A client that closes its side is gone: that cancels `scope`, and with it all work for the
    client. A request that a drain cuts ends in the same way. So requests need no scopes of their
    own; if the cut comes too late, behind a complete answer, the lane enters a new scope.

    Attributes:
        scheme: http or https.
        scope: Around all work for this client.
        outlasts_s: Seconds for which that may go on once the client has left.
        buffer: Received and not used yet.
        sent_bytes: Total sent.
        is_sending: True while it waits for the client to take data.
        can_go_on: True if another request can follow on this connection.
        rest: Bytes read of a request that is not for this lane; None if there were none.
        unread: A head that could not be read; empty if there is none.
    """

    scheme: ClassVar[str] = "http"

    def __init__(self, lane: Server, stream: trio.SocketStream) -> None:
        self.lane = lane
        self.stream = stream
        self.socket = stream.socket
        self.fileno = stream.socket.fileno()
        self.socket.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        peer = self.socket.getpeername()
        self.peer: str | None = peer[0] if isinstance(peer, tuple) else None
        self.scope = trio.CancelScope()
        self.outlasts_s = 0.0
        self.buffer = b""
        self.sent_bytes = 0
        self.is_sending = False
        self.can_go_on = True
        self.rest: bytes | None = None
        self.unread = b""

    @property
    def whole_stream(self) -> trio.SocketStream | TlsStream:
        """The connection in the form that Hypercorn takes."""
        return self.stream

    def has_left(self) -> bool:
        """Return whether the client has closed its side, or the connection has broken."""
        return self._is_ready(select.POLLRDHUP)

    def has_unread(self) -> bool:
        """Return whether unread data has arrived, the end of the stream included."""
        return self._is_ready(select.POLLIN)

    def _is_ready(self, events: int) -> bool:
        if self.socket.fileno() < 0:  # closed on this side
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), events)
        return bool(poll.poll(0))

    async def receive(self) -> bytes:
        """Return the client's next bytes; nothing once it has closed its side."""
        return await wire.receive(self.socket)

    async def send(self, data: bytes) -> None:
        """Send all of it; a client that takes nothing for too long has left.

        Raises:
            ClientLeft: The connection broke, or the client stalled.
        """
        try:
            written = wire.write(self.socket, data)
            self.sent_bytes += written
            if written < len(data):
                await self._send_rest(memoryview(data)[written:])
        except (*wire.BREAKS, trio.TooSlowError):
            self.can_go_on = False
            raise ClientLeft from None

    async def _send_rest(self, data: memoryview) -> None:
        self.is_sending = True
        try:
            while data:
                written = await wire.send_some(self.socket, data, self.lane.stall_s)
                self.sent_bytes += written
                data = data[written:]
        finally:
            self.is_sending = False

    def pieces(self, body: WireBody) -> Pieces:
        """Relay a body; iterate over the result for the pieces that are left to the caller."""
        return self.lane.pump.pieces(body, self)

    def note_left(self) -> None:
        """Give up all work for the client, since it has left."""
        deadline = trio.current_time() + self.outlasts_s
        self.scope.deadline = min(self.scope.deadline, deadline)  # it may be noted again and again

    async def next_head(self) -> bytes | None:
        """Return the next request's head; None if the client sends no more.

        Raises:
            LlmuxError: It is not a head, is too long, or takes too long.
        """
        if self.buffer:
            # Pipelined requests may all be served without waiting for anything: let others run.
            await trio.lowlevel.checkpoint()
        data = skip_empty_lines(self.buffer)
        empty_bytes = len(self.buffer) - len(data)
        while not data or data in CRLF:
            received = await self._receive_idle()
            if not received:
                return None
            received = data + received
            data = skip_empty_lines(received)
            empty_bytes += len(received) - len(data)
            check_empty_bytes(empty_bytes)
        try:
            end = find_end(data)
            if not end:
                data, end = await self._rest_of_head(data)
        except LlmuxError:
            self.unread = data
            raise
        self.buffer = data[end:]
        return data[:end] or None

    async def _receive_idle(self) -> bytes:
        """Receive while the connection may be closed: until a head is whole, nothing is lost."""
        self.lane.note_idle(self)
        try:
            return await self.receive()
        finally:
            self.lane.note_busy(self)

    async def _rest_of_head(self, data: bytes) -> tuple[bytes, int]:
        with trio.move_on_after(HEAD_S):
            while True:
                more = await self._receive_idle()
                if not more:
                    return b"", 0
                seen = len(data)
                data += more
                if end := find_end(data, seen):
                    return data, end
        raise RequestTooSlow

    async def refuse(self, error: LlmuxError) -> None:
        """Answer bytes that are not a request, as the last answer on this connection."""
        dialect = dialect_of_head(self.unread) if self.unread else OPENAI
        status, headers, body = error_answer(error, dialect)
        await self.send(response_head(status, [*headers, (b"connection", b"close")]) + body)
        await self.linger()

    async def linger(self) -> None:
        """Close this side, and discard what the client still sends.

        Closing a socket with unread data makes the kernel send RST, upon which the client's kernel
        drops the answer that it has not delivered yet (RFC 9112, section 9.6).
        """
        with suppress(*wire.BREAKS):
            await self.end_sending()
            with trio.move_on_after(LINGER_S):
                while await wire.receive(self.socket):
                    pass

    async def end_sending(self) -> None:
        """Close this side; what the client sends can still be received."""
        await self.stream.send_eof()

    def say_goodbye(self) -> None:
        """Tell the client that no more data follows, where closing the socket does not."""
