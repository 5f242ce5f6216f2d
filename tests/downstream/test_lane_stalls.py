"""What a client does not take, or does not send, holds nothing for longer than the stall limit."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage
from wsproto.utilities import generate_accept_token

from llmux.downstream.fast_connection import ClientConnection
from llmux.http.asgi_types import Message
from tests.downstream.test_lane_cuts import (
    ALL_LANES,
    GET,
    connect,
    count,
    flood,
    on_lane,
    until,
    until_stuck,
)
from tests.downstream.test_lanes import HANDSHAKE, SWITCHING, error_code, post, status
from tests.lanes import read_all
from tests.servers import ALL_FORMS, running_backends, running_llmux

STALL = {"client_stall_secs": 0.3}


async def flood_messages(stream: trio.SocketStream, request: bytes) -> None:
    (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
    accept = b"Sec-WebSocket-Accept: %b\r\n\r\n" % generate_accept_token(key)
    await stream.send_all(SWITCHING[:-2] + accept)
    frames = Connection(ConnectionType.SERVER)
    while True:
        await stream.send_all(frames.send(BytesMessage(data=bytes(65536))))


@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("how", ["stall", "cut", "left"])
async def test_a_websocket_client_that_reads_nothing(
    lane: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it given time to finish sending, as one that may still read a last word is."""
    monkeypatch.setattr("llmux.server.hypercorn_side.http1.LINGER_S", 1000.0)
    limits = STALL if how == "stall" else {}
    async with on_lane(lane, tmp_path, limits=limits) as site:
        site.backend.play = flood_messages
        journeys = site.service.proxy.journeys
        async with await connect(site, lane) as stream:
            await stream.send_all(HANDSHAKE)
            await until(lambda: site.backend.received)
            if how != "stall":
                await until_stuck(site)
            if how == "cut":
                site.service.board.models["a"].in_flight.cut()
            elif how == "left":
                await stream.send_eof()
            await until(lambda: not journeys.list(1).total, 4)
            await until(lambda: not site.backend.open)
            with trio.fail_after(20):  # its connection was closed, too
                await read_all(stream)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("path", [b"/v1/completions", b"/control/switch"])
async def test_a_body_that_stops_coming(
    lane: str, path: bytes, is_chunked: bool, tmp_path: Path
) -> None:
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 100"
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % (path, framing)
    async with on_lane(lane, tmp_path, limits=STALL) as site:
        async with await connect(site, lane) as stream:
            with trio.fail_after(20):
                await stream.send_all(head + b"5\r\nhello\r\n")
                answer = await read_all(stream)
        assert (status(answer), error_code(answer)) == (408, "bad_request")
        await until(lambda: not site.service.proxy.bodies.held_bytes)


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_body_that_comes_slowly_is_waited_for(lane: str, tmp_path: Path) -> None:
    request = post()
    async with on_lane(lane, tmp_path, limits=STALL) as site:
        async with await connect(site, lane) as stream:
            with trio.fail_after(10):
                for at in range(len(request) - 8, len(request), 2):
                    await stream.send_all(request[:at] if at == len(request) - 8 else b"")
                    await trio.sleep(0.15)
                    await stream.send_all(request[at : at + 2])
                assert status(await read_all(stream)) == 200


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("lane", ALL_LANES)
async def test_an_order_that_is_too_long(lane: str, is_chunked: bool, tmp_path: Path) -> None:
    head = b"POST /control/switch HTTP/1.1\r\nHost: localhost\r\n"
    size = (1 << 20) + 1
    body = b"Content-Length: %d\r\n\r\n" % size
    if is_chunked:
        body = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size)
    async with on_lane(lane, tmp_path) as site:
        async with await connect(site, lane) as stream:
            with trio.fail_after(20):
                await stream.send_all(head + body)
                answer = await read_all(stream)
        assert (status(answer), error_code(answer)) == (413, "body_too_large")
        await until(lambda: not site.service.proxy.bodies.held_bytes)


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_body_in_single_bytes_takes_no_more_than_its_bytes(
    lane: str, tmp_path: Path
) -> None:
    pieces = b"1\r\n \r\n" * 20_000
    head = b"POST /x?model=a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with on_lane(lane, tmp_path) as site:
        async with await connect(site, lane) as stream:
            with trio.fail_after(20):
                await stream.send_all(head + pieces + b"0\r\n\r\n")
                assert status(await stream.receive_some()) == 200
        assert site.backend.received[0].endswith(b" " * 20_000)


# ---- Descriptors that are used again ----


async def test_a_descriptor_number_that_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child between fork and exec holds a copy of a closed socket, which so stays registered."""
    accepted: list[ClientConnection] = []
    init = ClientConnection.__init__

    def keep(connection: ClientConnection, *args: object) -> None:
        init(connection, *args)  # type: ignore[arg-type]
        accepted.append(connection)

    async def hold(stream: trio.SocketStream, request: bytes) -> None:
        await go_on.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    monkeypatch.setattr(ClientConnection, "__init__", keep)
    go_on = trio.Event()
    async with on_lane("fast", tmp_path) as site:
        site.backend.play = hold
        first = await site.connect()
        await first.send_all(GET % b"/health")
        assert status(bytes(await first.receive_some())) == 200
        copy = os.dup(accepted[0].fileno)
        second = trio.socket.socket()  # before its number is free
        await first.send_all(GET[:-2] % b"/health" + b"Connection: close\r\n\r\n")
        with trio.fail_after(20):
            await read_all(first)
        await until(lambda: accepted[0].socket.fileno() < 0)
        await second.connect(("127.0.0.1", site.port))
        await until(lambda: len(accepted) == 2)
        assert accepted[1].fileno == accepted[0].fileno
        await second.send(post())
        await until(lambda: site.backend.received)
        with socket.socket(fileno=copy) as held:
            held.shutdown(socket.SHUT_RDWR)
            await first.aclose()
            await trio.sleep(0.1)
        go_on.set()
        async with trio.SocketStream(second) as stream:
            with trio.fail_after(20):
                assert status(await read_all(stream)) == 200


# ---- HTTP/2 ----


class H2Client:
    """An HTTP/2 client whose windows do not open."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.parser = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))

    async def ask(self) -> None:
        self.parser.initiate_connection()
        fields = {":method": "GET", ":path": "/x?model=a", ":scheme": "http", ":authority": "h"}
        self.parser.send_headers(1, list(fields.items()), end_stream=True)
        await self.flush()

    async def flush(self) -> None:
        await self.stream.send_all(self.parser.data_to_send())

    async def until(self, kind: type[h2.events.Event]) -> h2.events.Event:
        while True:
            data = await self.stream.receive_some()
            assert data, "closed"
            for event in self.parser.receive_data(bytes(data)):
                if isinstance(event, kind):
                    return event


async def short(stream: trio.SocketStream, request: bytes) -> None:
    """An answer that is sent whole, but is more than a window."""
    size = 90_000
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))


@pytest.mark.parametrize("play", [flood, short])
@pytest.mark.parametrize("how", ["goaway", "cut", "stall"])
@pytest.mark.parametrize("lane", ["asgi", "fast"])
async def test_an_http_2_client_that_opens_no_window(
    lane: str, how: str, play: object, tmp_path: Path
) -> None:
    limits = STALL if how == "stall" else {}
    async with on_lane(lane, tmp_path, http2=True, limits=limits) as site:
        site.backend.play = play  # type: ignore[assignment]
        async with await site.connect() as stream:
            client = H2Client(stream)
            await client.ask()
            await until(lambda: site.backend.received)
            if how != "stall":
                await until_stuck(site)
            if how == "goaway":
                client.parser.close_connection()
                await client.flush()
            elif how == "cut":
                site.service.board.models["a"].in_flight.cut()
            await until(lambda: not site.service.proxy.journeys.list(1).total, 3)
            if how == "cut":
                with trio.fail_after(20):
                    reset = await client.until(h2.events.StreamReset)
                assert isinstance(reset, h2.events.StreamReset)
        assert count(site) == {"200": 1}


# ---- Real servers ----


async def serve_flood(stream: trio.SocketStream) -> None:
    """Answer with more than any buffer takes."""
    async with stream:
        with suppress(trio.BrokenResourceError):
            request = bytes(await stream.receive_some())
            await (flood_messages if b"pgrade" in request else flood)(stream, request)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["answer", "websocket"])
@pytest.mark.parametrize("form", ALL_FORMS)
async def test_real_servers_end_a_drain_for_who_reads_nothing(
    form: str, asked: str, tmp_path: Path
) -> None:
    """And close the connection of who goes on taking nothing."""
    settings = {"policy": {"drain_timeout_secs": 0.3}, "limits": {"client_stall_secs": 2}}
    async with running_backends(tmp_path, "a", "b") as rack, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve_flood, listeners)
        port = listeners[0].socket.getsockname()[1]
        config = rack.write_config(models={"a": {"port": port}}, **settings)
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            port = int(llmux.url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(post() if asked == "answer" else HANDSHAKE)
                with trio.fail_after(10):
                    await stream.receive_some(1)
                await trio.sleep(0.5)  # until nothing goes any further
                assert is_held(stream)
                begun_at = trio.current_time()
                done = await client.post("/control/switch", json={"model": "b"}, timeout=10)
                assert done.status_code == 200
                assert trio.current_time() - begun_at < 5
                requests = (await client.get("/control/requests")).json()
                assert requests["total"] == 0
                await until(lambda: not is_held(stream), 10)
            assert "Traceback" not in "\n".join(llmux.lines)
        nursery.cancel_scope.cancel()


def is_held(stream: trio.SocketStream) -> bool:
    """Whether a process has the other end of a connection still open, by /proc/net/tcp."""
    own, other = stream.socket.getsockname()[1], stream.socket.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        if local.endswith(f":{other:04X}") and remote.endswith(f":{own:04X}"):
            return inode != "0"  # what the kernel alone still sends has none
    return False


# ---- A server that closes the connection while it is being answered ----


@pytest.mark.parametrize(
    "asked",
    [
        {"path": "/health"},
        {"path": "/control/switch", "method": "POST", "headers": [(b"content-length", b"x")]},
        {"path": "/x"},
        {"path": "/x", "method": "CONNECT"},
        {"path": "/x", "type": "websocket"},
    ],
)
async def test_a_server_that_closes_the_connection_makes_no_noise(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trio says that the socket is busy then, not that it is closed."""
    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": asked["path"].encode(),
        "query_string": b"model=x",
        "headers": [],
        "scheme": "http",
        "http_version": "1.1",
        "client": ("127.0.0.1", 1),
        **asked,
    }

    async def send(message: Message) -> None:
        raise trio.BusyResourceError("another task is currently sending data")

    messages = [{"type": f"{scope['type']}.{'connect' if 'type' in asked else 'request'}"}]

    async def receive() -> Message:
        if not messages:
            await trio.sleep_forever()
        return messages.pop()

    async with on_lane("asgi", tmp_path) as site:
        with trio.fail_after(20):
            await site.service.traffic(scope, receive, send)
        assert not site.service.proxy.journeys.list(1).total
    noise = "".join(capsys.readouterr())
    assert "Traceback" not in noise
    assert "internal_error" not in noise
