"""The fast lane: model traffic straight from the socket and back, for `llmux serve`.

It reads each request's head with llhttp, and carries model traffic itself, through the same
`ModelProxy` as the ASGI lane. Everything else (llmux's own paths, other versions of HTTP, what it
does not know) goes to `hand_over`, with the bytes already read; there the connection stays.
"""

from __future__ import annotations

import math
import select
import socket as stdlib_socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from http import HTTPStatus

import trio
from trio_util import periodic

from llmux.downstream.early_messages import EarlyMessages
from llmux.errors import BackendBroke, BackendError, LlmuxError, NoStream, RequestTooSlow
from llmux.http import wire
from llmux.http.chunks import ChunkReader
from llmux.http.heads import (
    CRLF,
    RequestHead,
    check_empty_bytes,
    find_end,
    parse_head,
    response_head,
    skip_empty_lines,
)
from llmux.http.paths import own_path
from llmux.http.strict import PREFACE_LINE
from llmux.http.targets import origin_form
from llmux.http.wsframes import CLOSE, TEXT, FrameReader, frame
from llmux.observe.logs import get_logger
from llmux.openai.dialects import INTERNAL_CLOSE, OPENAI, close_reason, dialect_of_head
from llmux.openai.streams import EVENT_ENDS, stands_between, tail_of_chunks
from llmux.openai.wire import error_answer, header
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import Body
from llmux.proxy.lane import ClientLeft, HeaderList
from llmux.proxy.opening import check_handshake, close_payload, error_message, handshake_answer
from llmux.upstream import Answer
from llmux.upstream.connections import Stream

KEEP_ALIVE_S = 75.0
"""How long a connection may be idle between requests (nginx's default)."""

HEAD_S = 30.0
"""How long a head may take from its first byte to its last (nginx: 60, Apache: 20 to 40)."""

SEND_BUFFER_BYTES = 128 * 1024
"""Kernel buffer of a client that does not read; Linux doubles it. Then the backend must wait."""

LINGER_S = 2.0
"""How long a client that was refused in mid-request may go on sending before it is cut off.

So long, too, is what a client sent before it left still worth something, where it may be.
"""

CLOSE_S = 0.25
"""How long a client may take to read why its WebSocket ends, which closing on unread data would
lose it."""

SWEEP_S = 1.0
"""How often idle connections are looked through."""

UPGRADES = (b"", b"websocket")
"""Changes of protocol that are carried."""

NOTHING = nullcontext()

HandOver = Callable[[trio.SocketStream, bytes], Awaitable[None]]

log = get_logger(__name__)


class FastLane:
    """Serves connections until stopped.

    Args:
        proxy: Carries the model traffic.
        hand_over: Serves a connection from the bytes given on, to its end.
        stall_s: Seconds without a byte taken, or sent of a body, after which a client is cut; also
            those in which a backend takes nothing of what a WebSocket's client sends.
        most_fields: How many header fields a request may have.
    """

    def __init__(
        self, proxy: ModelProxy, hand_over: HandOver, *, stall_s: float, most_fields: int
    ) -> None:
        self.proxy = proxy
        self.stall_s = stall_s
        self.most_fields = most_fields
        self.hand_over = hand_over
        self.is_stopping = False
        self._departures = Departures()
        self._idle_since: dict[ClientConnection, float] = {}  # oldest first

    async def run(self) -> None:
        """What goes on beside the connections: notices who leaves, and who is idle for too long."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._departures.run)
            async for _ in periodic(SWEEP_S):
                self._close_idle(trio.current_time() - KEEP_ALIVE_S)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end."""
        try:
            connection = ClientConnection(self, stream)
        except OSError:  # reset before it was accepted
            await trio.aclose_forcefully(stream)
            return
        try:
            with self._departures.watching(connection):
                await connection.serve()
            if connection.rest is not None:
                # Who has only closed its side gets its answer there, and a server that reads no
                # more, with a request in line behind another, does not see that its client left.
                connection.scope = trio.CancelScope()
                connection.outlasts_s = LINGER_S
                with self._departures.watching(connection), connection.scope:
                    await self.hand_over(stream, connection.rest)
        except LlmuxError as error:
            with suppress(*wire.BREAKS, ClientLeft):
                await connection.refuse(error)
        except (*wire.BREAKS, ClientLeft):
            pass
        except Exception:
            log.exception("connection_failed")
        finally:
            await trio.aclose_forcefully(stream)

    def stop(self) -> None:
        """Close idle connections now, and the others after the request that they carry."""
        self.is_stopping = True
        self._close_idle(math.inf)

    def note_idle(self, connection: ClientConnection) -> None:
        """The connection waits for a request, or for the rest of its head."""
        self._idle_since[connection] = trio.current_time()
        if self.is_stopping and not connection.has_unread():
            connection.scope.cancel()

    def note_busy(self, connection: ClientConnection) -> None:
        """The connection has one."""
        del self._idle_since[connection]

    def _close_idle(self, since: float) -> None:
        for connection, idle_since in self._idle_since.items():
            if idle_since > since:
                break
            if not connection.has_unread():  # a request that is here already gets its answer
                connection.scope.cancel()


class ClientConnection:
    """One client's connection, and where it stands.

    A client that closes its side is gone: that cancels `scope`, and with it whatever was being
    done for it. A request that a drain cuts ends in the same way. So requests need no scopes of
    their own: if the cut comes too late, behind a complete answer, `serve` enters a new scope.

    Attributes:
        scope: Around everything that is done for this client.
        outlasts_s: How long that may go on once the client has left.
        buffer: Received and not used yet.
        sent_bytes: What was sent on it.
        is_sending: Whether it waits until the client has taken something.
        can_go_on: Whether another request can follow on this connection.
        rest: What was read of a request that is not for this lane; None if none was.
        unread: The head that cannot be read; empty if there is none.
    """

    def __init__(self, lane: FastLane, stream: trio.SocketStream) -> None:
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

    async def serve(self) -> None:
        """Serve one request after the other; returns at the end, or with `rest` set."""
        while True:
            with self.scope:
                await self._serve_requests()
            if self.scope.cancelled_caught:
                self.rest = None
            has_left = self.scope.deadline <= trio.current_time()
            if has_left or self.scope.cancelled_caught or self.rest or not self.can_go_on:
                return
            self.scope = trio.CancelScope(deadline=self.scope.deadline)  # it is told once only

    async def _serve_requests(self) -> None:
        """Serve in this scope; returns early once it is cancelled, if only the request was cut."""
        while self.can_go_on and not self.scope.cancel_called:
            data = await self.next_head()
            if data is None:
                self.can_go_on = False
                return
            if data.startswith(PREFACE_LINE):
                self.rest = data + self.buffer
                return
            try:
                head = parse_head(data, self.lane.most_fields)
                path = origin_form(head.target).partition(b"?")[0]
            except LlmuxError:
                self.unread = data
                raise
            is_own = own_path(path, head.method) is not None
            if not head.is_common or is_own or head.upgrade not in UPGRADES:
                self.rest = data + self.buffer
                return
            await self.lane.proxy.serve(FastRequest(self, head, len(data)))

    def has_left(self) -> bool:
        """Whether the client has closed its side, or the connection has broken."""
        return self._is_ready(select.POLLRDHUP)

    def has_unread(self) -> bool:
        """Whether something has come that was not read, the end of the stream included."""
        return self._is_ready(select.POLLIN)

    def _is_ready(self, events: int) -> bool:
        if self.socket.fileno() < 0:  # closed on this side
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), events)
        return bool(poll.poll(0))

    async def receive(self) -> bytes:
        """What the client sends next; nothing once it has closed its side."""
        return await wire.receive(self.socket)

    async def send(self, data: bytes) -> None:
        """Send; a client that takes nothing for too long has left."""
        try:
            written = wire.write(self.socket, data)
            if written < len(data):
                await self._send_rest(memoryview(data)[written:])
            self.sent_bytes += len(data)
        except (*wire.BREAKS, trio.TooSlowError):
            self.can_go_on = False
            raise ClientLeft from None

    async def _send_rest(self, data: memoryview) -> None:
        self.is_sending = True
        try:
            await wire.send(self.socket, data, self.lane.stall_s)
        finally:
            self.is_sending = False

    async def next_head(self) -> bytes | None:
        """The next request's head; None if the client sends no more.

        Raises:
            LlmuxError: It is not one, is too long, or takes too long.
        """
        if self.buffer:
            # Requests that came together may all be served without waiting for anything.
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
        """What comes next; until a head is whole, nothing is lost with the connection."""
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
        """Answer what is no request, as the last on this connection."""
        dialect = dialect_of_head(self.unread) if self.unread else OPENAI
        status, headers, body = error_answer(error, dialect)
        await self.send(response_head(status, [*headers, (b"connection", b"close")]) + body)
        await self.linger()

    async def linger(self) -> None:
        """Take what the client still sends: closing on unread data would lose it the answer."""
        with suppress(*wire.BREAKS):
            await self.stream.send_eof()
            with trio.move_on_after(LINGER_S):
                while await self.receive():
                    pass


class Departures:
    """Notices clients that leave while a request of theirs is being served.

    One epoll for all connections, told once about each: it wakes its one task when a client closes
    its side, even while earlier data of it is unread. Requests pay nothing for it.

    An event names a descriptor by its number only, and may be of an earlier owner of the number: a
    closed socket stays registered for as long as a child between fork and exec has a copy of it. So
    an event is a reason to look at the connection that has the number now, and says nothing of it.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, ClientConnection] = {}

    async def run(self) -> None:
        """Cancel what is done for clients that have left, for ever."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fileno, _ in self._epoll.poll(0):
                    connection = self._connections.get(fileno)
                    if connection is not None and connection.has_left():
                        connection.scope.deadline = trio.current_time() + connection.outlasts_s
        finally:
            self._epoll.close()

    def watching(self, connection: ClientConnection) -> Watch:
        """Watch a connection for as long as the context lasts."""
        return Watch(self, connection)

    def add(self, connection: ClientConnection) -> None:
        """Begin to watch."""
        self._connections[connection.fileno] = connection
        self._epoll.register(connection.fileno, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def forget(self, connection: ClientConnection) -> None:
        """Watch no more; harmless when another has its number by now."""
        if self._connections.get(connection.fileno) is connection:
            del self._connections[connection.fileno]
            with suppress(OSError, ValueError):  # closed already: the kernel has forgotten it, too
                self._epoll.unregister(connection.fileno)


class Watch:
    """See `Departures.watching`."""

    def __init__(self, departures: Departures, connection: ClientConnection) -> None:
        self._departures = departures
        self._connection = connection

    def __enter__(self) -> None:
        self._departures.add(self._connection)

    def __exit__(self, *_: object) -> None:
        self._departures.forget(self._connection)


class FastRequest:
    """One request on the fast lane; see `llmux.proxy.lane.Lane`."""

    def __init__(self, connection: ClientConnection, head: RequestHead, head_bytes: int) -> None:
        self.method = head.method
        self.target = origin_form(head.target)
        self.headers: HeaderList = head.headers
        bodies = connection.lane.proxy.bodies
        self.body = Body(bodies, text_bytes=head_bytes, fields=len(head.headers))
        self.peer = connection.peer
        self.scheme = "http"
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
        self._early: EarlyMessages | None = None
        self._frames: FrameReader | None = None  # of a WebSocket, where one more may follow
        self.message_at = 0.0
        connection.can_go_on = head.keeps_alive

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
        """Status line and headers of the one final response."""
        head = response_head(status, headers, reason)
        self._heads_end = self._connection.sent_bytes + len(head)
        return head

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
        """More of the body."""
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
        received = bytearray()  # thousands of pieces would leave the heap in pieces, too
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
        """The connection's scope does it; who has a WebSocket already is listened to."""
        return NOTHING if self._early is None else self._early.attended()

    async def hear_first(self, headers: HeaderList, greeting: bytes) -> bytes:
        """Accept a WebSocket before there is a backend for it; returns its first message."""
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

    def replace_first(self, message: bytes) -> None:
        """Have the backend get this in place of that first message."""
        assert self._early is not None
        self._early.frames.replace_first(message)

    def unblock(self) -> None:
        """Nothing that is sent here resists being cancelled."""

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, its framing as it came."""
        connection = self._connection
        added = self._connection_headers()
        if answer.stream is not None:
            await self._tunnel(answer, answer.stream, headers)
            return
        if self._early is not None:
            raise NoStream(answer.status, await answer.read())
        if answer.framing == "chunked":
            added.append((b"Transfer-Encoding", b"chunked"))
        elif answer.framing == "close":
            await self._relay_until_close(answer, [*headers, *added])
            return
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
        data = sent = b""
        try:
            async for data in answer.wire():
                # The head goes out with the first of the body, since that is here already.
                await connection.send(head + data if head else data)
                sent, head = data, b""
        except BackendBroke:
            self.has_answered = not head  # it waits for the first of the body
            self._note_end(answer)
            raise
        except trio.Cancelled:
            if data is sent and not head:
                self._note_end(answer)
            raise
        connection.can_go_on = can_go_on

    async def _relay_until_close(self, answer: Answer, headers: HeaderList) -> None:
        """A body of unknown length, for a client that will send another request: in chunks."""
        connection = self._connection
        self.has_answered = True
        can_go_on, connection.can_go_on = connection.can_go_on, False
        chunked = (b"Transfer-Encoding", b"chunked")
        head = self._response_head(answer.status, [*headers, chunked], answer.reason)
        await connection.send(head)
        data = sent = b""
        try:
            async for data in answer.wire():
                await connection.send(_chunk(data))
                sent = data
        except BackendBroke:
            self._note_end(answer)
            raise
        except trio.Cancelled:
            if data is sent:
                self._note_end(answer)
            raise
        await connection.send(b"0\r\n\r\n")
        connection.can_go_on = can_go_on

    def _note_end(self, answer: Answer) -> None:
        """All that came of a stream was sent, and no more of it comes."""
        raw = answer.seen.ending()
        tail = tail_of_chunks(raw) if raw and answer.framing == "chunked" else raw
        if tail is not None and answer.is_stream:
            self._stands_between = stands_between(answer.headers, tail)

    async def _tunnel(self, answer: Answer, backend: Stream, headers: HeaderList) -> None:
        """After a 101: bytes both ways, until either side closes."""
        connection = self._connection
        connection.can_go_on = False
        # The client's last bytes count here, so its end is first looked for where they are read.
        connection.outlasts_s = LINGER_S
        upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", header(answer.headers, b"upgrade"))]
        if self._early is None:
            head = self._response_head(101, [*headers, *upgrade], answer.reason)
        else:
            await self._early.stop()
            head, connection.buffer = b"", self._early.frames.take()
        self.has_answered = True
        if head:
            await connection.send(head)
        self._frames, received_frames = FrameReader(), FrameReader()

        has_left = False

        async def to_backend() -> None:
            nonlocal has_left
            data, connection.buffer = connection.buffer, b""
            with suppress(*wire.BREAKS, trio.TooSlowError):
                while data := data or await connection.receive():
                    if received_frames.feed(data):
                        self.message_at = trio.current_time()
                    # Behind bytes that are not read, nobody can see whether the client has left.
                    await wire.send_on(backend, data, connection.lane.stall_s)
                    data = b""
            has_left = not data
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(to_backend)
            with suppress(*wire.BREAKS, ClientLeft):
                data = answer.early
                while data := data or bytes(await backend.receive_some(wire.RECEIVE_BYTES)):
                    await self._send_frames(data)
                    data = b""
            nursery.cancel_scope.cancel()
        if not has_left:
            _, reason = close_reason(BackendError("closed the connection"))
            await self.close_socket(INTERNAL_CLOSE, reason, b"")

    async def _send_frames(self, data: bytes) -> None:
        """Send what a WebSocket's server says."""
        frames, self._frames = self._frames, None
        if frames is not None and frames.feed(data):
            self.message_at = trio.current_time()
        await self._connection.send(data)
        self._frames = frames

    async def close_socket(self, code: int, reason: str, event: bytes) -> None:
        """Say why a WebSocket ends, unless a frame is under way."""
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
                await self._connection.stream.send_eof()
                while await self._connection.receive():
                    pass

    async def begin_events(self, headers: HeaderList) -> None:
        """Send 200 and headers of a stream of events that llmux itself begins."""
        connection = self._connection
        self.has_answered = True
        self._could_go_on, connection.can_go_on = connection.can_go_on, False
        chunked = (b"Transfer-Encoding", b"chunked")
        await connection.send(self._response_head(HTTPStatus.OK, [*headers, chunked]))

    async def send_events(self, data: bytes) -> None:
        """Send some of that stream."""
        self._stands_between = False
        await self._connection.send(_chunk(data))
        self._tail = self._tail[-4:] + data[-4:]
        self._stands_between = self._tail.endswith(EVENT_ENDS)

    async def end_events(self) -> None:
        """End it as it should."""
        await self._connection.send(b"0\r\n\r\n")
        self._connection.can_go_on = self._could_go_on

    async def send_last_event(self, event: bytes) -> None:
        """Send this after a stream that was cut between two of its events, or of its lines."""
        if self._stands_between:
            with suppress(*wire.BREAKS):
                await self._connection.send(_chunk(event))

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        connection = self._connection
        if not self._is_read or connection.scope.cancel_called:
            connection.can_go_on = False
        self.has_answered = True
        if self._early is not None:
            message = frame(TEXT, error_message(body)) + frame(CLOSE, close_payload(status))
            await connection.send(message)
            await connection.linger()
            return
        head = self._response_head(status, [*headers, *self._connection_headers()])
        await connection.send(head if self.method == b"HEAD" else head + body)
        if not self._is_read:
            await connection.linger()

    def _connection_headers(self) -> list[tuple[bytes, bytes]]:
        if self._connection.lane.is_stopping:
            self._connection.can_go_on = False
        return [] if self._connection.can_go_on else [(b"Connection", b"close")]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
