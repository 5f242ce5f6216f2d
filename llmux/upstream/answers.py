"""A backend's answer: its head, and its body as it arrives.

Bodies are iterators, not async generators: they are faster, and can be abandoned half-way without
`aclose`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from llmux.errors import BackendBroke
from llmux.http import wire
from llmux.http.chunks import LAST_CHUNK
from llmux.http.responses import (
    CHUNKED_HEAD,
    MAX_HEAD_BYTES,
    ChunkedEnd,
    ChunkedParts,
    Head,
    Reader,
)
from llmux.upstream.connections import Connection, Stream, broken_off
from llmux.upstream.seen import UNSEEN


class WireBody:
    """A body as it came, with its framing.

    It can be iterated over, or be read piece by piece by a caller that receives by itself: see
    `take`.

    Attributes:
        connection: Where it comes from.
    """

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @property
    def is_over(self) -> bool:
        """True once its end was taken."""
        return self.connection.has_ended

    @property
    def is_short(self) -> bool:
        """True if what is left of it is known to fit into one receive buffer."""
        return False

    def take(self, data: bytes) -> bytes:
        """Check the next bytes received, empty at the end of the connection.

        Returns:
            The bytes that belong to the body; empty only at the end of a body without length.

        Raises:
            BackendBroke: The body broke off, or is framed wrongly.
        """
        raise NotImplementedError

    def __aiter__(self) -> WireBody:
        return self

    async def __anext__(self) -> bytes:
        if self.connection.has_ended:
            raise StopAsyncIteration
        data = self.take(await self.connection.receive())
        if not data:
            raise StopAsyncIteration
        return data


class CountedBody(WireBody):
    """A body with a Content-Length."""

    __slots__ = ("_left_bytes",)

    def __init__(self, connection: Connection, length_bytes: int) -> None:
        super().__init__(connection)
        self._left_bytes = length_bytes

    @property
    def is_short(self) -> bool:
        """See `WireBody`."""
        return self._left_bytes <= wire.RECEIVE_BYTES

    def take(self, data: bytes) -> bytes:
        """See `WireBody`."""
        if not data:
            raise broken_off()
        excess = data[self._left_bytes :]
        if excess:
            data = data[: self._left_bytes]
        self._left_bytes -= len(data)
        if not self._left_bytes:
            self.connection.end(excess)
        return data


class BodyUntilClose(WireBody):
    """A body that ends with the connection."""

    __slots__ = ()

    def take(self, data: bytes) -> bytes:
        """See `WireBody`."""
        if not data:
            self.connection.end(b"")
        return data


class ChunkedWire(WireBody):
    """A chunked body: its framing is checked and passed on."""

    __slots__ = ("_is_broken", "_reader")

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._reader = Reader(ChunkedEnd(), CHUNKED_HEAD)
        self._is_broken = False

    @property
    def stands_amid_chunk(self) -> bool:
        """True if more of a chunk is to come, its CRLF included; the body cannot be read further.

        llhttp does not report where it stands, which would cost something for each chunk. So it is
        given the end of a body: it only takes that for one between two chunks.
        """
        if self._is_broken:  # in what was not passed on
            return False
        try:
            return self._reader.feed(LAST_CHUNK) is None
        except BackendBroke:
            return True

    def take(self, data: bytes) -> bytes:
        """See `WireBody`."""
        if not data:
            raise broken_off()
        try:
            excess = self._reader.feed(data)
        except BackendBroke:
            self._is_broken = True
            self.connection.seen.last.pop()  # not passed on: the body ends before it
            raise
        if excess is None:
            return data
        self.connection.end(excess)
        return data[: len(data) - len(excess)]


class ChunkedData:
    """The data of a chunked body; chunks that arrived together stay together."""

    __slots__ = ("_connection", "_dataless_bytes", "_parts", "_reader")

    def __init__(self, connection: Connection, trailers: list[tuple[bytes, bytes]]) -> None:
        self._connection = connection
        self._parts = ChunkedParts(trailers)
        self._reader = Reader(self._parts, CHUNKED_HEAD)
        self._dataless_bytes = 0
        trailers.clear()  # llhttp has reported CHUNKED_HEAD's own header there

    def __aiter__(self) -> ChunkedData:
        return self

    async def __anext__(self) -> bytes:
        pieces = self._parts.pieces
        while not self._parts.is_done:
            received = await self._connection.receive_more()
            excess = self._reader.feed(received)
            if excess is not None:
                self._connection.end(excess)
            if pieces:
                data = b"".join(pieces)
                pieces.clear()
                self._dataless_bytes = 0
                return data
            self._note_dataless(received)
        raise StopAsyncIteration

    def _note_dataless(self, received: bytes) -> None:
        # Only trailers and chunk extensions can continue without data, and they stay in memory.
        self._dataless_bytes += len(received)
        if self._dataless_bytes > MAX_HEAD_BYTES:
            raise BackendBroke(f"trailers of more than {MAX_HEAD_BYTES} bytes")


class Answer:
    """A backend's answer; its body is still to arrive, and is read once.

    One receive buffer is read at a time, and only on demand, so that a slow consumer slows the
    backend down.

    Attributes:
        status: Status code; never 1xx, except 101 if the caller asked to upgrade.
        reason: Reason phrase; may be empty.
        http_version: "1.0" or "1.1".
        headers: As received: order, case, duplicates.
        trailers: As received; complete once `chunks` has ended.
        framing: How the body ends on the wire; with "close" it ends with the connection.
        stream: After 101, the connection, for the new protocol; else None.
        early: After 101, bytes already received of the new protocol.
        connection: Where it comes from.
        seen: The first and the last bytes of its body.
    """

    __slots__ = (
        "_length_bytes",
        "connection",
        "early",
        "framing",
        "headers",
        "http_version",
        "reason",
        "seen",
        "status",
        "stream",
        "trailers",
    )

    def __init__(self, head: Head, method: bytes, connection: Connection) -> None:
        self.status = head.status
        self.reason = head.reason
        self.http_version = head.http_version
        self.headers = head.headers
        self.trailers: list[tuple[bytes, bytes]] = []
        self.framing, self._length_bytes = head.framing(method)
        self.stream: Stream | None = None
        self.early = b""
        self.seen = connection.seen
        self.connection = connection
        if head.status == 101:
            self.stream, self.early = connection.stream, connection.pending
            connection.seen = UNSEEN
            return
        connection.keeps_alive = self.framing != "close" and head.keeps_alive()
        if self.has_body:
            self.seen.begin(connection.pending)
        else:
            connection.end(connection.pending)

    @property
    def has_ended(self) -> bool:
        """True once all of the body has been handed out, or if it has none."""
        return self.connection.has_ended

    @property
    def has_body(self) -> bool:
        """True if there is a body, which may be empty if the head does not say its length."""
        return self._length_bytes > 0 or self.is_stream

    @property
    def is_stream(self) -> bool:
        """True if there is a body whose length the head does not say."""
        return self.framing in {"chunked", "close"}

    @property
    def has_data(self) -> bool:
        """True if some of the body was received together with the head."""
        return bool(self.connection.pending) and not self.connection.has_ended

    def heard_at(self) -> float:
        """Return when its last byte arrived (Trio's clock, seconds)."""
        return self.connection.heard_at()

    async def wait_begun(self) -> None:
        """Return once some of the body's data has arrived, or its end; it is still to be read.

        Raises:
            BackendBroke: The connection broke, or ended too early.
        """
        connection = self.connection
        receive = connection.receive if self.framing == "close" else connection.receive_more
        while not (connection.has_ended or self._has_begun(connection.pending)):
            before, connection.pending = connection.pending, b""
            data = await receive()
            connection.pending = before + data
            if not data:
                return

    def _has_begun(self, received: bytes) -> bool:
        """Return whether this is more than a chunk's size line, which may come alone."""
        if self.framing != "chunked":
            return bool(received)
        return bool(received.partition(b"\n")[2]) or len(received) > MAX_HEAD_BYTES

    def take_whole(self) -> bytes | None:
        """Return the body and end the answer, if its length is known and it came with the head."""
        connection = self.connection
        if connection.has_ended or self.framing != "length":
            return None
        data = connection.pending
        if len(data) < self._length_bytes:
            return None
        connection.end(data[self._length_bytes :])
        return data[: self._length_bytes]

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body's data as it arrives, without framing, but still encoded.

        Raises:
            BackendBroke: The body broke off, or is framed wrongly.
        """
        if self.framing == "chunked":
            return ChunkedData(self.connection, self.trailers)
        return self.wire()

    def wire(self) -> WireBody:
        """Return the body as it arrives, with its framing."""
        if self.framing == "chunked":
            return ChunkedWire(self.connection)
        if self.framing == "close":
            return BodyUntilClose(self.connection)
        return CountedBody(self.connection, self._length_bytes)

    async def read(self) -> bytes:
        """Return the whole body. Raises BackendBroke."""
        return b"".join([data async for data in self.chunks()])


async def read_head(connection: Connection) -> Head:
    """Read the next status line and headers; the rest stays in `connection.pending`.

    Raises:
        BackendBroke: Not HTTP, too long, or cut short.
    """
    head = Head()
    reader = Reader(head)
    size_bytes = 0
    while not head.is_done:
        data = await connection.receive()
        if not data:
            raise BackendBroke("closed the connection before its answer")
        connection.has_answered = True
        rest = reader.feed_head(data) or b""
        connection.pending = rest
        size_bytes += len(data) - len(rest)
        if size_bytes > MAX_HEAD_BYTES:
            raise BackendBroke(f"headers of more than {MAX_HEAD_BYTES} bytes")
    head.status = reader.llhttp.get_status_code()
    head.http_version = reader.llhttp.get_http_version()
    head.check()
    return head
