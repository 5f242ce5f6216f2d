"""The client side of the proxy: one request to a model server, its answer streamed back.

llhttp (through httptools) checks every byte of an answer's framing; what it lets pass and HTTP
does not is refused here. Nothing is rebuilt that can be relayed as it came.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Literal, Protocol
from urllib.parse import urlsplit

import httptools
import trio

from llmux.errors import BackendBroke, BackendError, BackendRefused

Framing = Literal["none", "length", "chunked", "close"]
Headers = Sequence[tuple[bytes, bytes]]
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

RECEIVE_BYTES = 65536
"""One receive buffer, and all that is read ahead of the consumer."""

MAX_HEAD_BYTES = 65536
"""Status line and headers of an answer; also bounds trailers and chunk extensions."""

JOINED_BODY_BYTES = 65536
"""Smaller bodies are sent with the head; larger ones in a task of their own."""

MAX_IDLE = 100
"""Idle connections kept to one backend: a server's batch of requests, and no pile of sockets."""

IDLE_S = 30.0
"""Seconds after which an idle connection is not used again; routers forget silent ones."""

BODY_METHODS = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods that announce an empty body, too (RFC 9110, section 8.6)."""

# Failures to connect that are this host's own, and say nothing about the backend.
LOCAL_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
BREAKS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

BLANK_LINE = b"\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CONTROLS = bytes({*range(32), 127} - {9})


# --- Parsing -------------------------------------------------------------------------------------


class Parts(Protocol):
    """What a part of a message collects from llhttp's callbacks, until it is done."""

    is_done: bool


class Reader:
    """llhttp, fed up to the end of one part of a message (its head, its body) and no further.

    llhttp tells what it found but not where, and goes on into a next message by itself. In both
    parts the end is a blank line, since llhttp takes no bare LF. So data is fed in pieces that stop
    behind every blank line, and the end is where a piece was the last one wanted. Data that has
    no blank line, which is nearly all of a stream, is fed whole.
    """

    __slots__ = ("_feed", "_parts", "llhttp")

    def __init__(self, parts: Parts, start: bytes = b"") -> None:
        self.llhttp = httptools.HttpResponseParser(parts)
        self._parts = parts
        self._feed = self.llhttp.feed_data
        self._feed(start)

    def feed(self, data: bytes) -> bytes | None:
        """Parse what was received.

        Returns:
            What follows the end of the part; None if the end has not come yet.

        Raises:
            BackendBroke: It is not HTTP.
        """
        try:
            # A blank line that began in earlier data goes on with CR or LF.
            if BLANK_LINE in data or data[0] in BLANK_LINE:
                return self._feed_pieces(data)
            self._feed(data)
        except httptools.HttpParserError as error:
            raise BackendBroke(f"not HTTP: {error}") from error
        return None

    def _feed_pieces(self, data: bytes) -> bytes | None:
        view = memoryview(data)
        for start, stop in pairwise(possible_ends(data)):
            try:
                self._feed(view[start:stop])
            except httptools.HttpParserUpgrade:
                assert self._parts.is_done  # llhttp's way to end the head of a 101
            if self._parts.is_done:
                return data[stop:]
        return None


def possible_ends(data: bytes) -> list[int]:
    """Offsets at which a part can end, and both ends of the data.

    Blank lines cannot overlap here: before the one that ends a part there is some text.
    """
    begun_before = range(4) if data[0] in BLANK_LINE else ()
    found = (match.end() for match in re.finditer(BLANK_LINE, data))
    return sorted({0, *begun_before[: len(data)], *found, len(data)})


class Head:
    """An answer's status line and headers.

    Attributes:
        status: Status code.
        reason: What follows it; may be empty.
        http_version: "1.0" or "1.1".
        headers: In the order received, duplicates too; white space around values is removed.
    """

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.http_version = ""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_done = False

    def on_status(self, reason: bytes) -> None:
        """One piece of the reason."""
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The blank line."""
        self.is_done = True

    def values(self, name: bytes) -> list[bytes]:
        """All values of the header with this lower-case name, in lower case."""
        return [value.lower() for key, value in self.headers if key.lower() == name]

    def check(self) -> None:
        """Check what llhttp lets pass.

        Raises:
            BackendBroke: Not an answer to relay.
        """
        if self.http_version not in {"1.0", "1.1"}:
            raise BackendBroke(f"speaks HTTP/{self.http_version}")
        if self.status < 100:
            raise BackendBroke(f"status {self.status}")
        if self.reason.translate(None, CONTROLS) != self.reason:
            raise BackendBroke("control characters in the status line")

    def framing(self, method: bytes) -> tuple[Framing, int]:
        """How the body ends, and its length in bytes where known (RFC 9112, section 6.3).

        Raises:
            BackendBroke: No one way to read it.
        """
        if method == b"HEAD" or self.status in {101, 204, 304}:
            return "none", 0
        codings = self.values(b"transfer-encoding")
        if codings:
            if codings != [b"chunked"] or self.http_version == "1.0":
                raise BackendBroke(f"Transfer-Encoding {b', '.join(codings)!r}")
            return "chunked", 0
        lengths = self.values(b"content-length")
        if not lengths:
            return "close", 0
        return "length", int(lengths[0])  # llhttp has seen that it is one number, given once

    def keeps_alive(self) -> bool:
        """Whether the backend will take another request on this connection."""
        tokens = {
            token.strip() for value in self.values(b"connection") for token in value.split(b",")
        }
        return b"close" not in tokens and (self.http_version == "1.1" or b"keep-alive" in tokens)


class ChunkedEnd:
    """Of a chunked body only its end; the fewer callbacks, the faster llhttp."""

    __slots__ = ("is_done",)

    def __init__(self) -> None:
        self.is_done = False

    def on_message_complete(self) -> None:
        """The blank line after the last chunk and the trailers."""
        self.is_done = True


class ChunkedParts(ChunkedEnd):
    """The data and the trailers of a chunked body."""

    __slots__ = ("on_body", "pieces", "trailers")

    def __init__(self, trailers: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.trailers = trailers

    def on_header(self, name: bytes, value: bytes) -> None:
        """One trailer line."""
        self.trailers.append((name, value.rstrip(b" \t")))


# --- Connections ---------------------------------------------------------------------------------


class Connection:
    """One connection to a backend, and where it stands with the request that it carries.

    `pending` is what was received and not used yet. Once the answer has ended, whatever is there
    belongs to nobody: such a connection, like one with an unfinished request or answer, is closed
    where others go back to the pool.
    """

    __slots__ = (
        "_receive",
        "_socket",
        "has_answered",
        "has_ended",
        "has_sent",
        "idle_since",
        "keeps_alive",
        "pending",
        "stream",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.idle_since = 0.0
        if isinstance(stream, trio.SSLStream):
            self._socket = stream.transport_stream.socket
            self._receive = self._receive_tls
        else:
            self._socket = stream.socket
            self._receive = self._receive_tcp
        self.begin()

    def begin(self) -> None:
        """Forget the last request."""
        self.pending = b""
        self.has_sent = self.has_answered = self.has_ended = self.keeps_alive = False

    def end(self, excess: bytes) -> None:
        """The answer has ended, and this came after it."""
        self.has_ended = True
        self.pending = excess

    def can_carry_another(self) -> bool:
        """Whether both sides are done with the last request and nothing strange happened."""
        return self.has_sent and self.has_ended and self.keeps_alive and not self.pending

    async def send(self, *parts: bytes) -> None:
        """Send a request.

        A backend that takes no more may have answered all the same (413, then close): what is
        received decides, so a break is no error here.
        """
        try:
            for part in parts:
                await self.stream.send_all(part)
        except BREAKS:
            return
        self.has_sent = True

    async def receive(self) -> bytes:
        """What is there or comes next; nothing at the end of the stream.

        Raises:
            BackendBroke: The connection broke.
        """
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        try:
            return await self._receive()
        except BREAKS as error:
            raise BackendBroke(str(error)) from error

    async def receive_more(self) -> bytes:
        """Like `receive`, but the end of the stream is a break, too."""
        data = await self.receive()
        if not data:
            raise BackendBroke("closed the connection before the end of its answer")
        return data

    async def _receive_tcp(self) -> bytes:
        # Trio's own recv tries first and waits then; in a stream of tokens that try nearly always
        # fails, and its exception costs more than all the rest of a chunk's way.
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("read after the exchange was left")
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return os.read(self._socket.fileno(), RECEIVE_BYTES)
            except BlockingIOError:
                continue

    async def _receive_tls(self) -> bytes:
        return bytes(await self.stream.receive_some(RECEIVE_BYTES))

    def is_silent(self) -> bool:
        """Whether an idle connection is still open: any byte, and its end, says that it is not."""
        try:
            os.read(self._socket.fileno(), 1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Close at once: no TLS farewell, nothing to await."""
        self._socket.close()


class Origin:
    """Where a backend is, and how to get there.

    Attributes:
        host_header: Value of the Host header.
        prefix: Path that is put before every target.
    """

    def __init__(self, base_url: str, connect_timeout_s: float) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ValueError(f"not an http or https URL: {base_url!r}")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self.host_header = url.netloc.rpartition("@")[2].encode("ascii")
        self.prefix = url.path.rstrip("/").encode("ascii")

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            BackendRefused: None can be had.
            BackendError: None can be had, for a reason that lies on this side.
        """
        try:
            with trio.fail_after(self._connect_timeout_s):
                return Connection(await self._open())
        except trio.TooSlowError:
            raise BackendRefused(f"no connection within {self._connect_timeout_s:g} s") from None
        except BREAKS as error:
            cause = first_cause(error)
            is_local = isinstance(cause, OSError) and cause.errno in LOCAL_ERRNOS
            raise (BackendError if is_local else BackendRefused)(str(cause)) from error

    async def _open(self) -> Stream:
        tcp = await trio.open_tcp_stream(self._host, self._port)  # sets TCP_NODELAY
        if self._tls is None:
            return tcp
        tls = trio.SSLStream(tcp, self._tls, server_hostname=self._host, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException:
            tcp.socket.close()
            raise
        return tls


def first_cause(error: BaseException) -> BaseException:
    """The error that says most: Trio wraps those of all addresses tried into a group."""
    while (cause := error.__cause__) is not None:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    return error


class Pool:
    """The idle connections to one backend, and how many are in use.

    The one used last is used next, so that after a burst the others grow old and go. No task
    looks after them: the old ones are closed when another comes back.
    """

    def __init__(self) -> None:
        self.in_use = 0
        self._idle: list[Connection] = []  # oldest first
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """An idle connection that looks alive."""
        oldest = trio.current_time() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and connection.is_silent():
                return connection
            connection.close()
        return None

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for another request if it can carry one, else close it at once."""
        if self._is_closed or not connection.can_carry_another():
            connection.close()
            return
        now = connection.idle_since = trio.current_time()
        self._idle.append(connection)
        while len(self._idle) > MAX_IDLE or self._idle[0].idle_since < now - IDLE_S:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Close the idle ones now, and those in use when they come back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()


# --- Answers -------------------------------------------------------------------------------------
# Each body is an iterator of its own and no async generator: it is faster, and may be left
# half-way without ado.


class CountedBody:
    """A body with a Content-Length."""

    __slots__ = ("_connection", "_left_bytes")

    def __init__(self, connection: Connection, length_bytes: int) -> None:
        self._connection = connection
        self._left_bytes = length_bytes

    def __aiter__(self) -> CountedBody:
        return self

    async def __anext__(self) -> bytes:
        if not self._left_bytes:
            raise StopAsyncIteration
        data = await self._connection.receive_more()
        excess = data[self._left_bytes :]
        if excess:
            data = data[: self._left_bytes]
        self._left_bytes -= len(data)
        if not self._left_bytes:
            self._connection.end(excess)
        return data


class BodyUntilClose:
    """A body that ends with the connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __aiter__(self) -> BodyUntilClose:
        return self

    async def __anext__(self) -> bytes:
        data = b"" if self._connection.has_ended else await self._connection.receive()
        if not data:
            self._connection.end(b"")
            raise StopAsyncIteration
        return data


class ChunkedWire:
    """A chunked body with its framing: checked, and passed on as it came."""

    __slots__ = ("_connection", "_end", "_reader")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._end = ChunkedEnd()
        self._reader = Reader(self._end, CHUNKED_HEAD)

    def __aiter__(self) -> ChunkedWire:
        return self

    async def __anext__(self) -> bytes:
        if self._end.is_done:
            raise StopAsyncIteration
        data = await self._connection.receive_more()
        excess = self._reader.feed(data)
        if excess is None:
            return data
        self._connection.end(excess)
        return data[: len(data) - len(excess)]


class ChunkedData:
    """The data of a chunked body; chunks that arrived together stay together."""

    __slots__ = ("_connection", "_dataless_bytes", "_parts", "_reader")

    def __init__(self, connection: Connection, trailers: list[tuple[bytes, bytes]]) -> None:
        self._connection = connection
        self._parts = ChunkedParts(trailers)
        self._reader = Reader(self._parts, CHUNKED_HEAD)
        self._dataless_bytes = 0
        trailers.clear()  # llhttp told of CHUNKED_HEAD's own header

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
        # Only trailers and chunk extensions can go on without data, and are kept in memory.
        self._dataless_bytes += len(received)
        if self._dataless_bytes > MAX_HEAD_BYTES:
            raise BackendBroke(f"trailers of more than {MAX_HEAD_BYTES} bytes")


class Answer:
    """A backend's answer; its body is still on the way, and is read once.

    One receive buffer is read at a time, and only when asked for, so that a slow consumer slows
    the backend down.

    Attributes:
        status: Status code; never 1xx, but 101 if the caller asked to upgrade.
        reason: What follows it; may be empty.
        http_version: "1.0" or "1.1".
        headers: As received: order, case, duplicates.
        trailers: As received; there once `chunks` has ended.
        framing: How the body ends on the wire; with "close" it ends with the connection.
        stream: After 101, the connection, to use as the new protocol wants; else None.
        early: After 101, what was already received of the new protocol.
    """

    __slots__ = (
        "_connection",
        "_length_bytes",
        "early",
        "framing",
        "headers",
        "http_version",
        "reason",
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
        self._connection = connection
        if head.status == 101:
            self.stream, self.early = connection.stream, connection.pending
            return
        connection.keeps_alive = self.framing != "close" and head.keeps_alive()
        if self.framing in {"none", "length"} and not self._length_bytes:
            connection.end(connection.pending)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's data as it arrives, without framing; its Content-Encoding is untouched.

        Raises:
            BackendBroke: The body broke off, or is framed wrongly.
        """
        if self.framing == "chunked":
            return ChunkedData(self._connection, self.trailers)
        return self.wire()

    def wire(self) -> AsyncIterator[bytes]:
        """The body as it arrives, framing included, never past its end. Raises BackendBroke."""
        if self.framing == "chunked":
            return ChunkedWire(self._connection)
        if self.framing == "close":
            return BodyUntilClose(self._connection)
        return CountedBody(self._connection, self._length_bytes)

    async def read(self) -> bytes:
        """The whole body. Raises BackendBroke."""
        return b"".join([data async for data in self.chunks()])


async def read_head(connection: Connection) -> Head:
    """The next status line and headers; what follows them stays in `connection.pending`.

    Raises:
        BackendBroke: It is not HTTP, too long, or broke off.
    """
    head = Head()
    reader = Reader(head)
    size_bytes = 0
    while not head.is_done:
        data = await connection.receive()
        if not data:
            raise BackendBroke("closed the connection before its answer")
        connection.has_answered = True
        rest = reader.feed(data) or b""
        connection.pending = rest
        size_bytes += len(data) - len(rest)
        if size_bytes > MAX_HEAD_BYTES:
            raise BackendBroke(f"headers of more than {MAX_HEAD_BYTES} bytes")
    head.status = reader.llhttp.get_status_code()
    head.http_version = reader.llhttp.get_http_version()
    head.check()
    return head


# --- Requests ------------------------------------------------------------------------------------


class Request:
    """A request as it goes over the wire.

    Attributes:
        method: Its method; what a body means depends on it.
        head: Request line and headers, with the blank line.
        body: Its body.
        is_upgrade: Whether the caller asks to change the protocol.
    """

    __slots__ = ("body", "head", "is_upgrade", "method")

    def __init__(
        self, origin: Origin, method: bytes, target: bytes, headers: Headers, body: bytes
    ) -> None:
        self.method = method
        self.body = body
        self.is_upgrade = any(name.lower() == b"upgrade" for name, _ in headers)
        line = b"%b %b%b HTTP/1.1" % (method, origin.prefix, target)
        lines = [line, b"Host: " + origin.host_header]
        lines += [b"%b: %b" % header for header in headers]
        if body or method in BODY_METHODS:
            lines.append(b"Content-Length: %d" % len(body))
        self.head = b"\r\n".join([*lines, b"", b""])
        breaks = len(lines) + 1
        if (
            (self.head.count(b"\r"), self.head.count(b"\n")) != (breaks, breaks)
            or b"\0" in self.head
            or line.count(b" ") != 2
        ):
            raise ValueError("a request's parts may hold no CR, LF or NUL, nor its line a space")


class Exchange:
    """`async with`: send a request, and hold the connection while its answer is read.

    Leaving gives the connection back if the answer was read to its end, and closes it at once if
    not, so that the backend stops working for nobody. Both are synchronous underneath, and work
    when cancelled.
    """

    __slots__ = ("_connection", "_origin", "_pool", "_request", "sender")

    def __init__(self, origin: Origin, pool: Pool, request: Request) -> None:
        self._origin = origin
        self._pool = pool
        self._request = request
        self._connection: Connection | None = None
        self.sender: trio.Nursery | None = None
        """Where to send the request while its answer is read; None to send it first."""

    async def __aenter__(self) -> Answer:
        """Send; returns with the final status line and headers.

        Raises:
            BackendRefused: No connection, and nothing was sent.
            BackendError: No answer.
        """
        self._pool.in_use += 1
        try:
            return await self._answer()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._pool.in_use -= 1
        if self._connection is not None:
            self._pool.put_back(self._connection)

    async def _answer(self) -> Answer:
        self._connection = self._pool.take()
        if self._connection is None:
            self._connection = await self._origin.connect()
            return await self._ask(self._connection)
        try:
            return await self._ask(self._connection)
        except BackendError:
            if self._connection.has_answered:
                raise
        return await self._ask_again()

    async def _ask_again(self) -> Answer:
        """The idle connection was closed unanswered, most likely before the request got there."""
        assert self._connection is not None
        self._connection.close()
        try:
            self._connection = await self._origin.connect()
        except BackendRefused as error:
            # Not refused: if the first try has got there, it may be what brought the backend down.
            raise BackendError(f"closed the connection, then refused: {error}") from error
        return await self._ask(self._connection)

    async def _ask(self, connection: Connection) -> Answer:
        connection.begin()
        try:
            await self._send(connection)
            head = await read_head(connection)
            while head.status < 200 and head.status != 101:
                head = await read_head(connection)
            if head.status == 101 and not self._request.is_upgrade:
                raise BackendBroke("changed the protocol unasked")
            return Answer(head, self._request.method, connection)
        except BackendBroke as error:
            raise BackendError(str(error)) from error

    async def _send(self, connection: Connection) -> None:
        request = self._request
        if self.sender is None:
            await connection.send(request.head + request.body)
        else:
            self.sender.start_soon(connection.send, request.head, request.body)


@asynccontextmanager
async def uploading(exchange: Exchange) -> AsyncIterator[Answer]:
    """The exchange, its request sent by a task of its own.

    A backend may answer before it has read a large body, and read no more of it until someone
    takes the answer.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        exchange.sender = nursery
        try:
            async with exchange as answer:
                yield answer
        except Exception as caught:
            error = caught  # raised again outside, or the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error


class Backend:
    """One model server and its idle connections.

    An exchange takes the connection that was idle last, or opens one; sends; reads up to the end
    of the headers; and hands out an `Answer`, whose body the caller iterates over. From then on
    there is one receive, one call into llhttp, and nothing else for each buffer that comes in.

    A connection carries another request only if the last one was sent whole, its answer read to
    the end, and nothing came after it. A server may close an idle connection at any time: what has
    arrived of that is seen before use, and if it arrives later, as an answer that never begins, the
    request is sent once more, on a new connection.

    No deadline but the one for connecting: a model may think for as long as its client waits.
    """

    def __init__(self, base_url: str, *, connect_timeout_s: float = 10.0) -> None:
        """Connect to nothing yet.

        Args:
            base_url: http or https; its path is put before every target.
            connect_timeout_s: Seconds for a connection, TLS handshake included.

        Raises:
            ValueError: Not such a URL.
        """
        self._base_url = base_url
        self._origin = Origin(base_url, connect_timeout_s)
        self._pool = Pool()

    def __repr__(self) -> str:
        return f"<Backend {self._base_url}, {len(self._pool)} idle, {self._pool.in_use} in use>"

    def exchange(
        self, method: bytes, target: bytes, headers: Headers, body: bytes
    ) -> AbstractAsyncContextManager[Answer]:
        """Send one request; entering yields its answer, once the headers are in.

        Args:
            method: As it goes over the wire.
            target: Path and query.
            headers: All but Host and Content-Length, which are added, and hop-by-hop ones; who
                wants to upgrade gives Connection and Upgrade.
            body: The whole body.

        Raises:
            ValueError: CR, LF or NUL where they would change the request.
            BackendRefused: On entering: no connection, and nothing was sent.
            BackendError: On entering: no answer.
        """
        request = Request(self._origin, method, target, headers, body)
        exchange = Exchange(self._origin, self._pool, request)
        return exchange if len(body) < JOINED_BODY_BYTES else uploading(exchange)

    async def aclose(self) -> None:
        """Close the idle connections, and those in use once they are done; awaits nothing."""
        self._pool.close()
