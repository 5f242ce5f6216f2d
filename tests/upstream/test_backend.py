"""llmux.upstream against raw TCP servers that play scripted bytes."""

from __future__ import annotations

import errno
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import BackendBroke, BackendError, BackendRefused
from llmux.http import wire
from llmux.http.responses import CHUNKED_HEAD, MAX_HEAD_BYTES, ChunkedEnd, Reader
from llmux.upstream import Answer, Backend
from llmux.upstream.connections import IDLE_S

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BIG_BODY = bytes(5_000_000)  # more than the socket buffers hold


# --- The scripted server -------------------------------------------------------------------------


class Peer:
    """The server's side of one connection."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.send = stream.send_all

    async def read_head(self) -> bytes:
        """The head of a request, and what came with it; nothing if the client closed."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = await self.stream.receive_some()
            if not more:
                return b""
            data += more
        return data

    async def wait_closed(self) -> None:
        """Until the client has closed; it sends nothing more."""
        with suppress(trio.BrokenResourceError):
            assert await self.stream.receive_some() == b""


Play = Callable[[Peer], Awaitable[None]]


class Server:
    """Plays a script on every connection, then closes it.

    Attributes:
        connections: How many there have been.
    """

    def __init__(self, play: Play, listener: trio.SocketListener) -> None:
        self.connections = 0
        self.listener = listener
        self.port: int = listener.socket.getsockname()[1]
        self.backend = Backend(f"http://127.0.0.1:{self.port}")
        self._play = play

    async def serve(self) -> None:
        """Serve until the listener is closed and all connections have ended."""
        async with trio.open_nursery() as nursery:
            with suppress(trio.ClosedResourceError):
                while True:
                    nursery.start_soon(self._serve, await self.listener.accept())

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            await self._play(Peer(stream))


@asynccontextmanager
async def serving(play: Play, limit_s: float = 10) -> AsyncIterator[Server]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(play, listener)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        with trio.fail_after(limit_s):
            yield server
        server.backend.close()
        nursery.cancel_scope.cancel()


def playing(*pieces: bytes) -> Play:
    """Answer each request with these pieces, each received before the next is sent."""

    async def play(peer: Peer) -> None:
        while await peer.read_head():
            for piece in pieces:
                await peer.send(piece)
                await wait_all_tasks_blocked()

    return play


def closing_after(*pieces: bytes) -> Play:
    """Answer one request, then close."""

    async def play(peer: Peer) -> None:
        await peer.read_head()
        for piece in pieces:
            await peer.send(piece)
            await wait_all_tasks_blocked()

    return play


async def get(backend: Backend, method: bytes = b"GET") -> tuple[Answer, bytes]:
    async with backend.exchange(method, b"/", [], b"") as answer:
        return answer, await answer.read()


async def get_wire(backend: Backend, method: bytes = b"GET") -> tuple[Answer, bytes]:
    async with backend.exchange(method, b"/", [], b"") as answer:
        return answer, b"".join([data async for data in answer.wire()])


def state(backend: Backend) -> str:
    return repr(backend).split(", ", 1)[1]


# --- Answers -------------------------------------------------------------------------------------

# name: method, head, body on the wire, body, idle connections afterwards
ANSWERS = {
    "length": (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", b"hello", 1),
    "no length": (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", b"", 1),
    "no reason": (b"GET", b"HTTP/1.1 200\r\ncontent-length:2 \r\n\r\n", b"ok", b"ok", 1),
    "close": (
        b"GET",
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n",
        b"ok",
        b"ok",
        0,
    ),
    "1.0": (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok", b"ok", 0),
    "1.0 kept": (
        b"GET",
        b"HTTP/1.0 200 OK\r\nConnection: x, Keep-Alive\r\nContent-Length: 2\r\n\r\n",
        b"ok",
        b"ok",
        1,
    ),
    "chunks": (
        b"GET",
        CHUNKED,
        b'5\r\nhello\r\n00C;a=b;c="d"\r\n, \r\n\r\nworld!\r\n0;x\r\n\r\n',
        b"hello, \r\n\r\nworld!",
        1,
    ),
    "trailers": (
        b"GET",
        CHUNKED,
        b"3\r\nabc\r\n0\r\nOne: 1\r\nTwo: \r\n\r\n",
        b"abc",
        1,
    ),
    "no chunks": (b"GET", CHUNKED, b"0\r\n\r\n", b"", 1),
    "events with CRLF": (b"GET", CHUNKED, b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", 1),
    "HEAD": (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"", b"", 1),
    "HEAD chunked": (b"HEAD", CHUNKED, b"", b"", 1),
    "HEAD bare": (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b"", b"", 1),
    "204": (b"GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b"", b"", 1),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", b"", 1),
    "1xx": (
        b"GET",
        (
            b"HTTP/1.1 100 Continue\r\n\r\n"
            b"HTTP/1.1 103 Early\r\nLink: x\r\nContent-Length: 4\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        ),
        b"ok",
        b"ok",
        1,
    ),
}


@pytest.mark.parametrize("read", [get, get_wire])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_may_be_cut_anywhere(
    name: str, read: Callable[[Backend, bytes], Awaitable[tuple[Answer, bytes]]]
) -> None:
    method, head, wire, body, idle = ANSWERS[name]
    raw = head + wire
    cut = 0

    async def play(peer: Peer) -> None:
        while await peer.read_head():
            for piece in (raw[:cut], raw[cut:]):
                await peer.send(piece)
                await wait_all_tasks_blocked()

    async with serving(play) as server:
        for cut in range(1, len(raw) + 1):
            answer, received = await read(server.backend, method)
            assert received == (body if read is get else wire), cut
            assert answer.status in {200, 204, 304}
            assert state(server.backend) == f"{idle} idle, 0 in use>", cut
    assert server.connections == (1 if idle else len(raw))


@pytest.mark.parametrize("excess", [b"x", b"\r\n", b"\r\n\r\n", OK, b"0\r\n\r\n"])
@pytest.mark.parametrize("name", [name for name in ANSWERS if ANSWERS[name][4]])
async def test_what_follows_an_answer_is_dropped_with_its_connection(
    name: str, excess: bytes
) -> None:
    method, head, wire, body, _ = ANSWERS[name]
    async with serving(playing(head + wire + excess)) as server:
        assert (await get(server.backend, method))[1] == body
        assert state(server.backend) == "0 idle, 0 in use>"
        assert (await get_wire(server.backend, method))[1] == wire
        assert state(server.backend) == "0 idle, 0 in use>"


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_the_reader_finds_the_end_wherever_data_is_cut(step: int) -> None:
    wire = b"4\r\na\r\n\r\r\n3\r\n\r\n\r\r\n0\r\nA: b\r\n\r\n"
    stream = wire + b"\r\n\r\nHTTP/1.1"
    for first in range(1, len(stream)):
        end = ChunkedEnd()
        reader = Reader(end, CHUNKED_HEAD)
        cuts = [0, *range(first, len(stream), step), len(stream)]
        used = 0
        for start, stop in pairwise(cuts):
            excess = reader.feed(stream[start:stop])
            used = stop - len(excess or b"")
            if excess is not None:
                break
        assert used == len(wire)


async def test_head_arrives_as_it_was_sent() -> None:
    raw = (
        b"HTTP/1.1 418 I'm \xfc\r\nSet-Cookie: a\r\nX-b:\t1 \r\nset-cookie: c\r\nEmpty:\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    async with serving(playing(raw)) as server:
        answer, _ = await get(server.backend)
    assert (answer.status, answer.reason, answer.http_version) == (418, b"I'm \xfc", "1.1")
    assert answer.framing == "length"
    assert answer.headers == [
        (b"Set-Cookie", b"a"),
        (b"X-b", b"1"),
        (b"set-cookie", b"c"),
        (b"Empty", b""),
        (b"Content-Length", b"0"),
    ]


async def test_trailers_come_after_the_body() -> None:
    raw = CHUNKED + b"1\r\na\r\n0\r\nOne: 1\r\nTwo: 2 \r\n\r\n"
    async with serving(playing(raw)) as server:
        answer, body = await get(server.backend)
    assert body == b"a"
    assert answer.trailers == [(b"One", b"1"), (b"Two", b"2")]


async def test_chunks_arrive_when_they_are_sent() -> None:
    pieces = [CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n1\r\nc\r\n", b"0\r\n\r\n"]
    async with serving(playing(*pieces)) as server:
        async with server.backend.exchange(b"GET", b"/", [], b"") as answer:
            assert [data async for data in answer.chunks()] == [b"a", b"bc"]
        async with server.backend.exchange(b"GET", b"/", [], b"") as answer:
            assert [data async for data in answer.wire()] == pieces[1:]


@pytest.mark.parametrize("read", [get, get_wire])
async def test_body_until_close(
    read: Callable[[Backend], Awaitable[tuple[Answer, bytes]]],
) -> None:
    async with serving(closing_after(b"HTTP/1.1 200 OK\r\n\r\nab", b"cd")) as server:
        answer, body = await read(server.backend)
        assert (answer.framing, body) == ("close", b"abcd")
        assert state(server.backend) == "0 idle, 0 in use>"


BAD_HEADS = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "status 99": b"HTTP/1.1 099 OK\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "control in reason": b"HTTP/1.1 200 O\0K\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF at the end": b"HTTP/1.1 200 OK\r\nA: b\r\n\n",
    "CR in a value": b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
    "cut": b"HTTP/1.1 200 OK\r\nContent-",
    "cut after 1xx": b"HTTP/1.1 100 Continue\r\n\r\n",
    "too long": b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "endless": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES,
    "length +5": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "length 5, 5": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "length -1": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "length 5_0": b"HTTP/1.1 200 OK\r\nContent-Length: 5_0\r\n\r\n",
    "length empty": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    "length overflow": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "length of thousands of digits": (
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 5000 + b"5\r\n\r\nhello"
    ),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
    "length and coding": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "coding and length": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    ),
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding twice": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "101 unasked": b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "101 to nothing": b"HTTP/1.1 101 S\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_malformed_head(name: str) -> None:
    async with serving(closing_after(BAD_HEADS[name])) as server:
        with pytest.raises(BackendError) as caught:
            await get(server.backend)
        assert not isinstance(caught.value, BackendRefused)
        assert state(server.backend) == "0 idle, 0 in use>"
    assert server.connections == 1


async def test_garbage_is_seen_before_the_connection_ends() -> None:
    closed = trio.Event()

    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"220 mail ESMTP")
        await peer.wait_closed()
        closed.set()

    async with serving(play) as server:
        with pytest.raises(BackendError, match="not HTTP"):
            await get(server.backend)
        with trio.fail_after(1):
            await closed.wait()


BAD_BODIES = {
    "length cut": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
    "chunk cut": CHUNKED + b"5\r\nhell",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "last chunk cut": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "trailer cut": CHUNKED + b"0\r\nA: b\r\n",
    "size not hex": CHUNKED + b"5\r\nhello\r\nxyz\r\n",
    "size with sign": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "size with prefix": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "size with space": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "size overflow": CHUNKED + b"f" * 17 + b"\r\n",
    "bare LF after size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "bare LF after data": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "bare LF at the end": CHUNKED + b"0\r\n\n",
    "chunk too long": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "length in trailers": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n",
    "NUL in extension": CHUNKED + b"5;\0\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("way", ["chunks", "wire"])
@pytest.mark.parametrize("name", BAD_BODIES)
async def test_broken_body(name: str, way: str) -> None:
    async with serving(closing_after(BAD_BODIES[name])) as server:
        async with server.backend.exchange(b"GET", b"/", [], b"") as answer:
            assert answer.status == 200
            with pytest.raises(BackendBroke):
                async for _ in getattr(answer, way)():
                    pass
        assert state(server.backend) == "0 idle, 0 in use>"


@pytest.mark.parametrize("endless", [b"A: b\r\n", b"x"])
async def test_trailers_and_extensions_are_bounded(endless: bytes) -> None:
    start = CHUNKED + (b"0\r\n" if endless != b"x" else b"5;")
    async with (
        serving(closing_after(start, endless * 2 * MAX_HEAD_BYTES)) as server,
        server.backend.exchange(b"GET", b"/", [], b"") as answer,
    ):
        with pytest.raises(BackendBroke, match="trailers of more than"):
            await answer.read()


async def test_interim_answers_are_few() -> None:
    async with serving(closing_after(b"HTTP/1.1 102 Wait\r\n\r\n" * 1000, OK)) as server:
        with pytest.raises(BackendError, match="interim answers"):
            await get(server.backend)


async def test_extensions_of_a_long_stream_do_not_add_up() -> None:
    extension = b"1;" + b"x" * (MAX_HEAD_BYTES // 2)
    pieces = [extension, b"\r\na\r\n"] * 3
    async with serving(playing(CHUNKED, *pieces, b"0\r\n\r\n")) as server:
        assert (await get(server.backend))[1] == b"aaa"


async def test_reset_in_mid_body() -> None:
    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        await wait_all_tasks_blocked()
        abort(peer)

    async with (
        serving(play) as server,
        server.backend.exchange(b"GET", b"/", [], b"") as answer,
    ):
        chunks = answer.chunks()
        assert await anext(chunks) == b"a"
        with pytest.raises(BackendBroke, match="reset"):
            await anext(chunks)


async def test_reset_before_the_status_line() -> None:
    async def play(peer: Peer) -> None:
        await peer.read_head()
        abort(peer)

    async with serving(play) as server:
        with pytest.raises(BackendError, match="reset"):
            await get(server.backend)


def abort(peer: Peer) -> None:
    """Close with a RST."""
    assert isinstance(peer.stream, trio.SocketStream)
    peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.stream.socket.close()


# --- Requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        (b"GET", b"", b""),
        (b"DELETE", b"", b""),
        (b"POST", b"", b"Content-Length: 0\r\n"),
        (b"PUT", b"", b"Content-Length: 0\r\n"),
        (b"POST", b"abc", b"Content-Length: 3\r\n"),
        (b"GET", b"abc", b"Content-Length: 3\r\n"),
    ],
)
async def test_request_on_the_wire(method: bytes, body: bytes, expected: bytes) -> None:
    requests = []

    async def play(peer: Peer) -> None:
        requests.append(await peer.read_head())
        await peer.send(OK)

    async with serving(play) as server:
        backend = Backend(f"http://user:pw@127.0.0.1:{server.port}/base/")
        headers = [(b"Accept", b"*/*"), (b"x", b"\xff"), (b"Accept", b"a")]
        async with backend.exchange(method, b"/v1/x?y=%20", headers, body) as answer:
            await answer.read()
        backend.close()
    assert requests == [
        b"%b /base/v1/x?y=%%20 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (method, server.port)
        + b"Accept: */*\r\nx: \xff\r\nAccept: a\r\n"
        + expected
        + b"\r\n"
        + body
    ]


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        (b"GET", b"/", (b"a", b"b\r\nc: d")),
        (b"GET", b"/", (b"a", b"b\rc")),
        (b"GET", b"/", (b"a", b"b\nc")),
        (b"GET", b"/", (b"a\n", b"b\rc")),
        (b"GET", b"/", (b"a\r\nb", b"c")),
        (b"GET", b"/", (b"a", b"b\0")),
        (b"GET", b"/ HTTP/1.1\r\na:b", (b"a", b"b")),
        (b"GET", b"/a b", (b"a", b"b")),
        (b"GE T", b"/", (b"a", b"b")),
    ],
)
def test_requests_cannot_be_split(
    method: bytes, target: bytes, header: tuple[bytes, bytes]
) -> None:
    with pytest.raises(ValueError, match="may hold no CR"):
        Backend("http://127.0.0.1:1").exchange(method, target, [header], b"")


@pytest.mark.parametrize("url", ["ftp://a", "127.0.0.1:8001", "http://", "http://ä", "http://a:b"])
def test_bad_base_url(url: str) -> None:
    with pytest.raises(ValueError):
        Backend(url)


@pytest.mark.parametrize("size_bytes", [0, 65535, 65536, 5_000_000])
async def test_bodies_arrive_whole(size_bytes: int) -> None:
    body = bytes(index % 251 for index in range(size_bytes))
    received: list[bytes] = []

    async def play(peer: Peer) -> None:
        for _ in range(2):
            _, data = (await peer.read_head()).split(b"\r\n\r\n")
            while len(data) < size_bytes:
                data += await peer.stream.receive_some()
            received.append(data)
            await peer.send(OK)

    async with serving(play) as server:
        for _ in range(2):
            async with server.backend.exchange(b"POST", b"/", [], body) as answer:
                assert await answer.read() == b"ok"
            assert state(server.backend) == "1 idle, 0 in use>"
    assert received == [body, body]
    assert server.connections == 1


@pytest.mark.parametrize("closes", [True, False])
async def test_answer_before_the_body_was_read(closes: bool) -> None:
    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        if not closes:
            await trio.sleep_forever()

    async with serving(play) as server:
        async with server.backend.exchange(b"POST", b"/", [], BIG_BODY) as answer:
            assert (answer.status, await answer.read()) == (413, b"big")
        assert state(server.backend) == "0 idle, 0 in use>"


async def test_answer_is_streamed_while_the_body_goes_out() -> None:
    async def play(peer: Peer) -> None:
        _, data = (await peer.read_head()).split(b"\r\n\r\n")
        await peer.send(CHUNKED + b"5\r\nfirst\r\n")
        await wait_all_tasks_blocked()
        size_bytes = len(data)
        while size_bytes < len(BIG_BODY):
            size_bytes += len(await peer.stream.receive_some())
        await peer.send(b"4\r\nlast\r\n0\r\n\r\n")
        await peer.wait_closed()

    async with (
        serving(play) as server,
        server.backend.exchange(b"POST", b"/", [], BIG_BODY) as answer,
    ):
        assert [data async for data in answer.chunks()] == [b"first", b"last"]


async def test_no_answer_to_an_upload() -> None:
    async with serving(closing_after()) as server:
        with pytest.raises(BackendError):
            async with server.backend.exchange(b"POST", b"/", [], BIG_BODY):
                pytest.fail("no answer")
        assert state(server.backend) == "0 idle, 0 in use>"


@pytest.mark.parametrize("size_bytes", [0, len(BIG_BODY)])
async def test_errors_inside_come_out_as_they_are(size_bytes: int) -> None:
    async with serving(closing_after(CHUNKED)) as server:
        with pytest.raises(KeyError, match="mine"):
            async with server.backend.exchange(b"POST", b"/", [], BIG_BODY[:size_bytes]):
                raise KeyError("mine")
        assert state(server.backend) == "0 idle, 0 in use>"


# --- Connecting ----------------------------------------------------------------------------------


class Resolver(trio.abc.HostnameResolver):
    """Ends as told."""

    def __init__(self, error: OSError | None) -> None:
        self._error = error

    async def getaddrinfo(self, *args: object) -> list[object]:  # type: ignore[override]
        if self._error is None:
            await trio.sleep_forever()
        assert self._error is not None
        raise self._error

    async def getnameinfo(self, *args: object) -> tuple[str, str]:
        raise NotImplementedError


class NoSockets(trio.abc.SocketFactory):
    """A process out of descriptors."""

    def socket(self, *args: object) -> trio.socket.SocketType:
        raise OSError(errno.EMFILE, "Too many open files")


async def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    backend = Backend(f"http://127.0.0.1:{port}")
    with pytest.raises(BackendRefused, match=f"no connection to 127.0.0.1:{port}: .*refused"):
        await get(backend)
    assert repr(backend) == f"<Backend http://127.0.0.1:{port}, 0 idle, 0 in use>"


async def test_no_such_host() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(socket.gaierror(-2, "not known")))
    with pytest.raises(BackendRefused, match="not known"):
        await get(Backend("http://nowhere.invalid"))


async def test_connect_timeout(autojump_clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(None))
    with pytest.raises(BackendRefused, match=r"to nowhere\.invalid:80 within 7 s"):
        await get(Backend("http://nowhere.invalid", connect_timeout_s=7))
    assert trio.current_time() == 7


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_a_lack_of_descriptors_is_no_refusal(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("llmux.http.wire.stdlib_socket", no_socket)
    trio.socket.set_custom_socket_factory(NoSockets())
    with pytest.raises(BackendError, match="Too many open files") as caught:
        await get(Backend(f"http://{host}:1"))
    assert not isinstance(caught.value, BackendRefused)


# --- The pool ------------------------------------------------------------------------------------


async def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    async with serving(closing_after(OK)) as server:
        await get(server.backend)
        await wait_all_tasks_blocked()
        assert (await get(server.backend))[1] == b"ok"
    assert server.connections == 2


async def test_a_connection_that_spoke_while_idle_is_not_used() -> None:
    is_idle = trio.Event()

    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await is_idle.wait()
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await peer.wait_closed()

    async with serving(play) as server:
        await get(server.backend)
        assert state(server.backend) == "1 idle, 0 in use>"
        is_idle.set()
        await wait_all_tasks_blocked()
        assert (await get(server.backend))[1] == b"ok"
    assert server.connections == 2


def closing_on_second_request(server: list[Server], *, always: bool) -> Play:
    """The first connection closes on its second request; later ones at once, or not at all."""

    async def play(peer: Peer) -> None:
        await peer.read_head()
        is_first = server[0].connections == 1
        if is_first or not always:
            await peer.send(OK)
            await peer.read_head()

    return play


async def test_a_request_to_a_stale_connection_is_sent_again() -> None:
    servers: list[Server] = []
    async with serving(closing_on_second_request(servers, always=False)) as server:
        servers.append(server)
        await get(server.backend)
        assert (await get(server.backend))[1] == b"ok"
        assert state(server.backend) == "1 idle, 0 in use>"
    assert server.connections == 2


async def test_a_large_request_to_a_stale_connection_is_sent_again() -> None:
    servers: list[Server] = []
    async with serving(closing_on_second_request(servers, always=False)) as server:
        servers.append(server)
        await get(server.backend)
        async with server.backend.exchange(b"POST", b"/", [], BIG_BODY) as answer:
            assert await answer.read() == b"ok"
    assert server.connections == 2


async def test_a_request_is_sent_again_once_only() -> None:
    servers: list[Server] = []
    async with serving(closing_on_second_request(servers, always=True)) as server:
        servers.append(server)
        await get(server.backend)
        with pytest.raises(BackendError, match="closed the connection before its answer"):
            await get(server.backend)
        assert state(server.backend) == "0 idle, 0 in use>"
    assert server.connections == 2


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        await peer.send(b"HTTP/1.1 2")

    async with serving(play) as server:
        await get(server.backend)
        with pytest.raises(BackendError):
            await get(server.backend)
    assert server.connections == 1


async def test_a_request_that_brings_the_backend_down_was_not_refused() -> None:
    servers: list[Server] = []

    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        servers[0].listener.socket.close()

    async with serving(play) as server:
        servers.append(server)
        await get(server.backend)
        with pytest.raises(BackendError, match="then refused") as caught:
            await get(server.backend)
        assert not isinstance(caught.value, BackendRefused)
        assert state(server.backend) == "0 idle, 0 in use>"


async def hold(backend: Backend, count: int) -> None:
    """Read `count` answers at the same time."""
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(get, backend)


async def test_idle_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.upstream.connections.MAX_IDLE", 3)
    async with serving(playing(OK)) as server:
        await hold(server.backend, 5)
        assert state(server.backend) == "3 idle, 0 in use>"
        server.backend.close()
        assert state(server.backend) == "0 idle, 0 in use>"


async def test_old_idle_connections_are_not_used(mock_clock: MockClock) -> None:
    async with serving(playing(OK), limit_s=1000) as server:
        await hold(server.backend, 3)
        mock_clock.jump(20)
        await get(server.backend)
        assert state(server.backend) == "3 idle, 0 in use>"
        mock_clock.jump(IDLE_S - 19)
        await get(server.backend)  # on the one used last; the two others are too old now
        assert state(server.backend) == "1 idle, 0 in use>"
        assert server.connections == 3
        mock_clock.jump(IDLE_S + 1)
        await get(server.backend)
        assert state(server.backend) == "1 idle, 0 in use>"
        assert server.connections == 4


async def test_connections_in_use_are_closed_when_they_come_back() -> None:
    async with serving(playing(OK)) as server:
        async with server.backend.exchange(b"GET", b"/", [], b"") as answer:
            assert state(server.backend) == "0 idle, 1 in use>"
            server.backend.close()
            assert await answer.read() == b"ok"
        assert state(server.backend) == "0 idle, 0 in use>"


# --- Leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, len(BIG_BODY)])
async def test_leaving_early_closes_at_once(size_bytes: int) -> None:
    closed = trio.Event()

    async def play(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        with suppress(trio.BrokenResourceError):
            while await peer.stream.receive_some():
                pass
        closed.set()

    async with serving(play) as server:
        exchange = server.backend.exchange(b"POST", b"/", [], BIG_BODY[:size_bytes])
        async with exchange as answer:
            chunks = answer.chunks()
            assert await anext(chunks) == b"a"
        with trio.fail_after(1):
            await closed.wait()
        assert state(server.backend) == "0 idle, 0 in use>"
        with pytest.raises(BackendBroke):
            await anext(chunks)


@pytest.mark.parametrize("size_bytes", [0, len(BIG_BODY)])
@pytest.mark.parametrize("answers", [[], [b"HTTP/1.1 200"], [CHUNKED], [CHUNKED, b"1\r\na\r\n"]])
async def test_cancelled(size_bytes: int, answers: list[bytes]) -> None:
    """In sending, in the head, in the body."""

    async def play(peer: Peer) -> None:
        await peer.read_head()
        for piece in answers:
            await peer.send(piece)
        await trio.sleep_forever()

    async def ask(backend: Backend) -> None:
        async with backend.exchange(b"POST", b"/", [], BIG_BODY[:size_bytes]) as answer:
            await answer.read()

    async with serving(play) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, server.backend)
            await wait_all_tasks_blocked()
            assert state(server.backend) == "0 idle, 1 in use>"
            nursery.cancel_scope.cancel()
        assert state(server.backend) == "0 idle, 0 in use>"


async def test_cancelled_while_connecting() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(None))
    backend = Backend("http://nowhere.invalid")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(get, backend)
        await wait_all_tasks_blocked()
        assert state(backend) == "0 idle, 1 in use>"
        nursery.cancel_scope.cancel()
    assert state(backend) == "0 idle, 0 in use>"


async def test_a_slow_consumer_slows_the_backend_down() -> None:
    sent_bytes = 0

    async def play(peer: Peer) -> None:
        nonlocal sent_bytes
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        while sent_bytes < 50_000_000:
            await peer.send(bytes(50_000))
            sent_bytes += 50_000

    async with (
        serving(play) as server,
        server.backend.exchange(b"GET", b"/", [], b"") as answer,
    ):
        chunks = answer.chunks()
        received_bytes = len(await anext(chunks))
        await wait_all_tasks_blocked()
        assert sent_bytes < 20_000_000  # what the kernel's buffers hold
        async for data in chunks:
            assert len(data) <= wire.RECEIVE_BYTES
            received_bytes += len(data)
    assert received_bytes == 50_000_000


# --- Upgrades and TLS ----------------------------------------------------------------------------


async def test_upgrade() -> None:
    async def play(peer: Peer) -> None:
        assert b"Upgrade: echo\r\n" in await peer.read_head()
        await peer.send(b"HTTP/1.1 101 Go\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nearly")
        await peer.send(await peer.stream.receive_some())
        await peer.wait_closed()

    headers = [(b"Connection", b"Upgrade"), (b"Upgrade", b"echo")]
    async with serving(play) as server:
        async with server.backend.exchange(b"GET", b"/", headers, b"") as answer:
            assert (answer.status, answer.framing, answer.early) == (101, "none", b"early")
            assert answer.stream is not None
            await answer.stream.send_all(b"hello")
            assert await answer.stream.receive_some() == b"hello"
        assert state(server.backend) == "0 idle, 0 in use>"


async def test_upgrade_declined() -> None:
    headers = [(b"Connection", b"Upgrade"), (b"Upgrade", b"echo")]
    async with (
        serving(playing(OK)) as server,
        server.backend.exchange(b"GET", b"/", headers, b"") as answer,
    ):
        assert answer.stream is None
        assert await answer.read() == b"ok"


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context that backends trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = (
        "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([openssl, *options.split(), *names], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


async def test_tls(certificate: ssl.SSLContext) -> None:
    async def play(peer: Peer) -> None:
        assert isinstance(peer.stream, trio.SocketStream)
        tls = trio.SSLStream(peer.stream, certificate, server_side=True, https_compatible=True)
        secure = Peer(tls)
        for _ in range(2):
            _, data = (await secure.read_head()).split(b"\r\n\r\n")
            while len(data) < len(BIG_BODY):
                data += await tls.receive_some()
            await secure.send(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
        await peer.wait_closed()

    async with serving(play) as server:
        backend = Backend(f"https://127.0.0.1:{server.port}")
        for _ in range(2):
            async with backend.exchange(b"POST", b"/", [], BIG_BODY) as answer:
                assert await answer.read() == b"ok"
            assert state(backend) == "1 idle, 0 in use>"
        backend.close()
    assert server.connections == 1


async def test_tls_until_close(certificate: ssl.SSLContext) -> None:
    async def play(peer: Peer) -> None:
        assert isinstance(peer.stream, trio.SocketStream)
        tls = trio.SSLStream(peer.stream, certificate, server_side=True)
        await Peer(tls).read_head()
        await tls.send_all(b"HTTP/1.1 200 OK\r\n\r\nabc")
        # Closed without a TLS farewell, as many servers do.

    async with serving(play) as server:
        backend = Backend(f"https://127.0.0.1:{server.port}")
        assert (await get(backend))[1] == b"abc"
        assert state(backend) == "0 idle, 0 in use>"


async def test_no_tls_where_it_is_wanted() -> None:
    closed = trio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while await peer.stream.receive_some():
                pass
        closed.set()

    async with serving(play) as server:
        backend = Backend(f"https://127.0.0.1:{server.port}")
        with pytest.raises(BackendRefused):
            await get(backend)
        with trio.fail_after(1):
            await closed.wait()
        assert state(backend) == "0 idle, 0 in use>"
