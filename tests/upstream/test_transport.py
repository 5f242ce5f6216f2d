"""httpx as it is used everywhere, over llmux.upstream."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.upstream.transport import BackendTransport

Play = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def serving(play: Play) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that gives `play` each request that comes in one piece."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            while request := await stream.receive_some():
                await play(stream, request)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        with trio.fail_after(10):
            async with httpx.AsyncClient(transport=BackendTransport(), base_url=url) as client:
                yield client
        nursery.cancel_scope.cancel()


async def test_an_ordinary_call() -> None:
    requests = []

    async def play(stream: trio.SocketStream, request: bytes) -> None:
        requests.append(request)
        body = gzip.compress(b'{"a": 1}')
        head = b"HTTP/1.1 201 Fine\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        await stream.send_all(head % len(body) + body)

    async with serving(play) as client:
        for _ in range(2):
            response = await client.post("/v1/x?y=1", json={"model": "a"}, headers={"X-A": "b"})
    assert (response.status_code, response.reason_phrase) == (201, "Fine")
    assert response.http_version == "HTTP/1.1"
    assert response.json() == {"a": 1}
    head, body = requests[1].split(b"\r\n\r\n")
    line, *headers = head.lower().split(b"\r\n")
    names = [header.split(b":")[0] for header in headers]
    assert line == b"post /v1/x?y=1 http/1.1"
    assert body == b'{"model":"a"}'
    assert names.count(b"host") == names.count(b"content-length") == 1
    assert b"x-a: b" in headers
    assert b"connection" not in names


async def test_uploads_of_unknown_length() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def play(stream: trio.SocketStream, request: bytes) -> None:
        head, body = request.split(b"\r\n\r\n")
        assert b"Content-Length: 6" in head
        assert b"transfer-encoding" not in head.lower()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + body)

    async with serving(play) as client:
        assert (await client.put("/", content=pieces())).text == "onetwo"


async def test_streams_arrive_as_they_are_sent() -> None:
    async def play(stream: trio.SocketStream, request: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for piece in (head, b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"):
            await stream.send_all(piece)
            await wait_all_tasks_blocked()

    async with serving(play) as client, client.stream("GET", "/") as response:
        assert [data async for data in response.aiter_bytes()] == [b"a", b"b"]


async def test_leaving_a_stream_closes_its_connection() -> None:
    closed = trio.Event()

    async def play(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nforever")
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        closed.set()

    async with serving(play) as client:
        async with client.stream("GET", "/") as response:
            assert response.status_code == 200
        with trio.fail_after(1):
            await closed.wait()


async def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with httpx.AsyncClient(transport=BackendTransport()) as client:
        with pytest.raises(httpx.ConnectError, match="refused"):
            await client.get(f"http://127.0.0.1:{port}/")


async def test_no_answer() -> None:
    async def play(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"nonsense")

    async with serving(play) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="not HTTP"):
            await client.get("/")


async def test_half_an_answer() -> None:
    async def play(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await stream.send_eof()

    async with serving(play) as client:
        with pytest.raises(httpx.ReadError, match="before the end"):
            await client.get("/")
