"""One request on the fast lane: its body in, its response out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from http import HTTPStatus

import trio

from llmux.downstream.fast_connection import ClientConnection
from llmux.errors import BackendBroke, RequestTooSlow
from llmux.http import wire
from llmux.http.chunks import LAST_CHUNK, ChunkReader, chunk, tail_of_chunks
from llmux.http.heads import RequestHead, response_head
from llmux.http.targets import origin_form
from llmux.openai.streams import EVENT_ENDS, is_at_boundary
from llmux.proxy.held import Bodies, Body
from llmux.proxy.lane import ClientLeft, EventStream, HeaderList, Tunnel
from llmux.upstream import Answer
from llmux.upstream.answers import BodyUntilClose, ChunkedWire, WireBody

CHUNKED = (b"Transfer-Encoding", b"chunked")

NOTHING = nullcontext()


class Rechunked(BodyUntilClose):
    """A body that ends with the backend's connection, in chunks.

    The client's connection can then carry another request, and a body that breaks off is no
    complete one (RFC 9112, section 8).
    """

    __slots__ = ()

    def take(self, data: bytes) -> bytes:
        """See `WireBody`; the end is a chunk, too."""
        data = super().take(data)
        return LAST_CHUNK if self.is_over else chunk(data)


class FastRequest:
    """See `llmux.proxy.lane.Lane`.

    Args:
        connection: Where it came from.
        head: Its head, parsed.
        head_bytes: Length of the head as received.
        bodies: Where its body is counted.
    """

    # A cancelled scope ends every send here.
    unblock: Callable[[], None] | None = None

    def __init__(
        self, connection: ClientConnection, head: RequestHead, head_bytes: int, bodies: Bodies
    ) -> None:
        self.method = head.method
        self.target = origin_form(head.target)
        self.headers: HeaderList = head.headers
        self.body = Body(bodies, text_bytes=head_bytes, fields=len(head.headers))
        self.peer = connection.peer
        self.scheme = connection.scheme
        self.has_answered = False
        self.upgrade = head.upgrade
        # Replies are written without waiting, so they work in a cancelled scope, too.
        self.cut_scope: trio.CancelScope | None = connection.scope
        self.reading: trio.CancelScope | None = None
        self._head = head
        self._connection = connection
        self._heads_end = connection.sent_bytes
        self._is_read = not (head.is_chunked or head.content_length)
        self._stands_between = self._could_go_on = False
        self._tail = b""  # of the events that llmux itself sends
        connection.can_go_on = head.keeps_alive

    @property
    def events(self) -> EventStream:
        """See `Lane`."""
        return self

    @property
    def tunnel(self) -> Tunnel | None:
        """See `Lane`; `FastWebSocket` has one."""
        return None

    @property
    def is_sending(self) -> bool:
        """See `Lane`."""
        return self._connection.is_sending

    @property
    def sent_bytes(self) -> int:
        """See `Lane`."""
        return max(0, self._connection.sent_bytes - self._heads_end)

    def _response_head(
        self, status: int, headers: HeaderList, reason: bytes | None = None
    ) -> bytes:
        """Return status line and headers of the one final response."""
        head = response_head(status, headers, reason)
        self._heads_end = self._connection.sent_bytes + len(head)
        return head

    # ---- The body ----

    async def read_body(self) -> None:
        """Read the whole body; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        if self._is_read:
            return
        body = self.body
        length = self._head.content_length
        buffer = self._connection.buffer
        if length and len(buffer) >= length:  # it came with the head
            body.grow(length)
            body.data, self._connection.buffer = buffer[:length], buffer[length:]
            self._is_read = True
            return
        body.announce(length)
        # A client whose body has begun to arrive does not wait (RFC 9110, section 10.1.1).
        if self._head.expects_continue and not buffer:
            await self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        with trio.move_on_after(body.longest_s) as self.reading:
            if self._head.is_chunked:
                await self._read_chunks(body)
            else:
                await self._read_length(body, length)
            self._is_read = True
        is_late, self.reading = self.reading.cancelled_caught, None
        if is_late:
            raise RequestTooSlow

    async def _receive(self) -> bytes:
        """Return more of the body; raises ClientLeft, RequestTooSlow."""
        with trio.move_on_after(self._connection.lane.stall_s):
            try:
                data = await self._connection.receive()
            except wire.BREAKS:
                data = b""
            if not data:
                self._connection.can_go_on = False
                raise ClientLeft
            return data
        raise RequestTooSlow

    async def _read_length(self, body: Body, length: int) -> None:
        piece, self._connection.buffer = self._connection.buffer, b""
        received = bytearray()  # a list of thousands of pieces would fragment the heap
        while True:
            missing = length - len(received)
            body.grow(min(len(piece), missing))
            received += piece[:missing]
            if len(piece) >= missing:
                break
            piece = b""  # not twice in memory while it waits
            piece = await self._receive()
        body.data, self._connection.buffer = bytes(received), piece[missing:]

    async def _read_chunks(self, body: Body) -> None:
        reader, received = ChunkReader(), bytearray()
        data = self._connection.buffer
        while True:
            before = len(received)
            rest = reader.feed(data, received) if data else None
            body.grow(len(received) - before)
            if rest is not None:
                break
            data = b""  # not twice in memory while it waits
            data = await self._receive()
        self._connection.buffer = rest
        body.data = bytes(received)

    def present(self) -> AbstractAsyncContextManager[None]:
        """See `Lane`: the connection's scope does it."""
        return NOTHING

    # ---- A backend's answer ----

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, its framing as it came."""
        connection = self._connection
        added = self._connection_headers()
        if answer.is_stream:
            added.append(CHUNKED)
        head = self._response_head(answer.status, [*headers, *added], answer.reason)
        self.has_answered = True
        if (body := answer.take_whole()) is not None:
            await connection.send(head + body)
            return
        # A body that breaks off must not be followed by another answer.
        can_go_on, connection.can_go_on = connection.can_go_on, False
        if not answer.has_data:
            await connection.send(head)
            head = b""
        rest = answer.wire()
        if answer.framing == "close":
            rest = Rechunked(answer.connection)
        is_sent = True
        try:
            async for data in connection.pieces(rest):
                is_sent = False
                # The head goes out with the first of the body, since that is here already.
                await connection.send(head + data if head else data)
                is_sent, head = True, b""
        except BackendBroke:
            self.has_answered = not head  # it waits for the first of the body
            self._note_end(answer, rest)
            raise
        except trio.Cancelled:
            if is_sent and not head:
                self._note_end(answer, rest)
            raise
        connection.can_go_on = can_go_on

    def _note_end(self, answer: Answer, body: WireBody) -> None:
        """Note where a stream stands: all that came of it was sent, and no more of it comes."""
        raw = answer.seen.ending()
        if raw and isinstance(body, ChunkedWire) and body.stands_amid_chunk:
            return
        tail = tail_of_chunks(raw) if raw and answer.framing == "chunked" else raw
        if tail is not None and answer.is_stream:
            self._stands_between = is_at_boundary(answer.headers, tail)

    # ---- Events of llmux's own ----

    async def begin_events(self, headers: HeaderList) -> None:
        """See `EventStream`."""
        connection = self._connection
        self.has_answered = True
        self._could_go_on, connection.can_go_on = connection.can_go_on, False
        await connection.send(self._response_head(HTTPStatus.OK, [*headers, CHUNKED]))

    async def send_events(self, data: bytes) -> None:
        """See `EventStream`."""
        self._stands_between = False
        await self._connection.send(chunk(data))
        self._tail = self._tail[-4:] + data[-4:]
        self._stands_between = self._tail.endswith(EVENT_ENDS)

    async def end_events(self) -> None:
        """See `EventStream`."""
        await self._connection.send(LAST_CHUNK)
        self._connection.can_go_on = self._could_go_on

    async def send_last_event(self, event: bytes) -> None:
        """See `EventStream`."""
        if self._stands_between:
            with suppress(*wire.BREAKS):
                await self._connection.send(chunk(event))

    # ---- An answer of llmux's own ----

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        connection = self._connection
        # The rest of a body, or bytes behind a cut, are not read as the next request.
        if not self._is_read or connection.scope.cancel_called:
            connection.can_go_on = False
        self.has_answered = True
        head = self._response_head(status, [*headers, *self._connection_headers()])
        await connection.send(head if self.method == b"HEAD" else head + body)
        if not self._is_read:
            await connection.linger()

    def _connection_headers(self) -> list[tuple[bytes, bytes]]:
        if self._connection.lane.is_stopping:
            self._connection.can_go_on = False
        return [] if self._connection.can_go_on else [(b"Connection", b"close")]
