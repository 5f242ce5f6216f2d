"""TLS on the fast lane: what plain connections do not have. The lane's own tests run over it, too."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmux.downstream import fastlane
from llmux.http import wire
from llmux.http.tls import MOST_EARLY_BYTES, TlsSocket
from llmux.server import secure
from tests.certificates import authority, client_context, write_pair
from tests.downstream.test_lanes import BODY, HANDSHAKE, SWITCHING, body_of, post, status
from tests.lanes import OK, Site, read_all, running_lane

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane("tls", tmp_path) as site:
        yield site


@pytest.fixture(params=["tls", "asgi-tls"])
async def each(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path) as site:
        yield site


async def plain(site: Site) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", site.port)


async def until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    data = b""
    with trio.fail_after(10):
        while not data.endswith(end):
            more = await stream.receive_some()
            assert more, data
            data += more
    return data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# ---- Requests and answers ----


async def test_requests_share_a_connection_and_know_its_scheme(each: Site) -> None:
    async with each.client() as client:
        for _ in range(3):
            answer = await client.post("/v1/chat/completions", content=BODY)
            assert (answer.status_code, answer.text) == (200, "ok")
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "a"
        assert (await client.post("/v1/chat/completions", content=BODY)).text == "ok"
    assert all(b"\r\nX-Forwarded-Proto: https\r\n" in each for each in each.backend.received)


async def test_each_piece_of_a_stream_arrives_by_itself(each: Site) -> None:
    gate = trio.Event()
    sent, seen = trio.open_memory_channel[bytes](1)

    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(STREAM_HEAD)
        async for data in seen:
            await stream.send_all(chunk(data))
        await stream.send_all(b"0\r\n\r\n")
        gate.set()

    each.backend.play = answer
    async with each.client() as client:
        async with client.stream("POST", "/v1/chat/completions", content=BODY) as response:
            pieces = response.aiter_raw()
            for number in range(5):
                await sent.send(b"data: %d\n\n" % number)
                with trio.fail_after(5):
                    assert await anext(pieces) == b"data: %d\n\n" % number
            sent.close()
            with pytest.raises(StopAsyncIteration):
                await anext(pieces)
    assert gate.is_set()


SIZE = 3 << 20


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_bodies_both_ways(each: Site, framing: str) -> None:
    body = json.dumps({"model": "a", "prompt": "x" * SIZE}).encode()

    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        data = bytes(range(256)) * (SIZE // 256)
        if framing == "length":
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + data)
        else:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, SIZE, 50_000):
                await stream.send_all(chunk(data[start : start + 50_000]))
            await stream.send_all(b"0\r\n\r\n")

    each.backend.play = answer
    async with each.client() as client:
        got = await client.post("/v1/completions", content=body)
    assert got.content == bytes(range(256)) * (SIZE // 256)
    assert body_of(each.backend.received[0]) == body


async def test_a_client_that_reads_late_gets_every_byte_and_holds_the_backend_back(
    site: Site,
) -> None:
    """Its socket fills up in the middle of a record; what is left of it follows by itself."""
    pieces = [bytes([number % 256]) * 40_000 for number in range(300)]
    sent = 0

    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for sent, piece in enumerate(pieces):  # noqa: B007
            await stream.send_all(chunk(piece))
        await stream.send_all(b"0\r\n\r\n")

    site.backend.play = answer
    async with await site.connect() as stream:
        await stream.send_all(post(BODY))
        before = -1
        with trio.fail_after(10):
            while sent != before:
                before = sent
                await trio.sleep(0.3)
        assert 0 < sent < len(pieces) - 1
        received = bytearray()
        with trio.fail_after(20):
            while more := await stream.receive_some():
                received += more
    assert body_of(bytes(received)) == b"".join(map(chunk, pieces)) + b"0\r\n\r\n"


async def test_what_the_socket_did_not_take_follows_while_the_backend_is_silent(
    site: Site,
) -> None:
    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            with trio.move_on_after(0.2):
                await stream.send_all(chunk(bytes(65536)))
        await trio.sleep_forever()

    async def until_stuck() -> None:
        last = -1
        while site.service.proxy.journeys.list(1).requests[0].bytes_out != last:
            last = site.service.proxy.journeys.list(1).requests[0].bytes_out
            await trio.sleep(0.3)

    site.backend.play = answer
    async with await site.connect() as stream:
        await stream.send_all(post(BODY))
        await trio.sleep(0.2)
        await until_stuck()
        (request,) = site.service.proxy.journeys.list(1).requests
        received = b""
        with trio.fail_after(10):
            while len(received) < request.bytes_out:
                received += await stream.receive_some()


async def test_a_websocket_is_tunnelled(site: Site) -> None:
    async def echo(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(SWITCHING)
        while data := await stream.receive_some():
            await stream.send_all(data)

    site.backend.play = echo
    frame = b"\x81\x83\0\0\0\0abc"
    async with await site.connect() as stream:
        await stream.send_all(HANDSHAKE)
        assert status(await until(stream, b"\r\n\r\n")) == 101
        for _ in range(3):
            await stream.send_all(frame)
            await until(stream, frame)
        assert site.in_flight == 1
    await site.until_idle()


# ---- Clients that leave ----


async def silent(stream: trio.SocketStream, _request: bytes) -> None:
    await stream.send_all(STREAM_HEAD + chunk(b"data: 1\n\n"))
    await stream.receive_some()  # until llmux closes the connection


@pytest.mark.parametrize("how", ["close", "goodbye", "reset", "eof"])
async def test_a_client_that_leaves_in_a_stream_is_noticed(site: Site, how: str) -> None:
    site.backend.play = silent
    stream = await site.connect()
    await stream.send_all(post(close=False))
    await until(stream, b"data: 1\n\n\r\n")
    assert site.in_flight == 1
    with trio.fail_after(5):
        match how:
            case "close":
                await stream.aclose()
            case "goodbye":  # as asyncio: close_notify, and the socket stays open for the answer
                tcp, _ = await cast("Any", stream).unwrap()
                await tcp.aclose()
            case "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()
            case "eof":
                await stream.send_eof()
        await site.until_idle()
        while site.backend.open:
            await trio.sleep(0.01)
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("early", [b"\r\n", GET, post(BODY), b"x" * 40_000])
async def test_a_goodbye_behind_early_data_is_noticed(site: Site, early: bytes) -> None:
    site.backend.play = silent
    stream = cast("Any", await site.connect())
    await stream.send_all(post(close=False))
    await until(stream, b"data: 1\n\n\r\n")
    await stream.send_all(early)
    await trio.sleep(1.2)  # a look
    assert site.in_flight == 1
    with trio.fail_after(5):
        tcp, _ = await stream.unwrap()
        await site.until_idle()
        while site.backend.open:
            await trio.sleep(0.01)
    await trio.aclose_forcefully(tcp)


async def test_early_data_is_kept_in_order_and_within_a_bound() -> None:
    """What does not fit stays in the kernel, where it holds the client back."""
    ours, theirs = (trio.socket.from_stdlib_socket(one) for one in socket.socketpair())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    tls = TlsSocket(ours, context)
    client = trio.SSLStream(
        trio.SocketStream(theirs), client_context(), server_hostname="localhost"
    )
    sent = b"".join(b"%06d\n" % number for number in range(40_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        await tls.handshake()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, sent)
        for _ in range(20):
            await wait_all_tasks_blocked(0.005)
            tls.look()
        kept = len(tls._early)
        assert MOST_EARLY_BYTES <= kept < MOST_EARLY_BYTES + 2 * wire.RECEIVE_BYTES
        received = b""
        with trio.fail_after(10):
            while len(received) < len(sent):
                received += await tls.receive()
    assert received == sent
    await trio.aclose_forcefully(client)
    ours.close()


async def test_the_next_request_may_come_early(site: Site) -> None:
    """What came of it while the first was served was looked at for a goodbye, and is kept."""
    gate = trio.Event()

    async def wait(stream: trio.SocketStream, _request: bytes) -> None:
        await gate.wait()
        await stream.send_all(OK)

    site.backend.play = wait
    async with await site.connect() as stream:
        await stream.send_all(post(close=False))
        await wait_all_tasks_blocked(0.01)
        await stream.send_all(post())
        await trio.sleep(1.2)  # two looks
        gate.set()
        assert (await read_all(stream)).count(b"HTTP/1.1 200") == 2


async def test_llmux_says_goodbye(each: Site) -> None:
    """An end without close_notify may be an attacker's: Python's `ssl` raises then."""
    tcp = await plain(each)
    async with trio.SSLStream(tcp, client_context(), server_hostname="localhost") as stream:
        await stream.send_all(post())
        assert status(await read_all(stream)) == 200


# ---- Handshakes ----


@pytest.mark.parametrize(
    "data", [GET, b"OPTIONS * HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"]
)
async def test_who_speaks_no_tls_is_told(each: Site, data: bytes) -> None:
    async with await plain(each) as stream:
        await stream.send_all(data)
        answer = await read_all(stream)
    assert status(answer) == 400
    assert b"text/plain" in answer
    assert b"https://" in body_of(answer)


async def test_tls_on_a_plain_port_is_refused_at_once(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site:
        tcp = await plain(site)
        stream = trio.SSLStream(tcp, client_context(), server_hostname="localhost")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
    assert "wrong version number" in str(caught.value.__cause__).lower()


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x02\0\x01"])
async def test_a_handshake_that_does_not_end_is_cut_and_delays_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(fastlane, "HANDSHAKE_S", 0.3)
    async with AsyncExitStack() as closing, site.client() as client:
        slow = [await closing.enter_async_context(await plain(site)) for _ in range(20)]
        for stream in slow:
            await stream.send_all(begun)
        answer = await client.post("/v1/chat/completions", content=BODY)
        assert answer.status_code == 200
        with trio.fail_after(5):
            for stream in slow:
                assert await read_all(stream) == b""


@pytest.mark.parametrize(
    ("begun", "reason"),
    [
        (b"", "the client took too long"),
        (b"\x16\x03\x01\x02\0\x01", "the client took too long"),
        (GET, "the client does not speak TLS"),
        (b"\x16\x03\x01\0\x05hello", "unexpected message"),
    ],
)
async def test_failed_handshakes_are_logged(
    each: Site, monkeypatch: pytest.MonkeyPatch, begun: bytes, reason: str
) -> None:
    noted: list[tuple[str | None, str]] = []
    for module in (fastlane, secure):
        monkeypatch.setattr(module, "HANDSHAKE_S", 0.3)
        monkeypatch.setattr(module, "note_failed", lambda *what: noted.append(what))
    async with await plain(each) as stream:
        await stream.send_all(begun)
        await read_all(stream)
    assert noted == [("127.0.0.1", reason)]


async def test_a_request_may_come_with_the_end_of_the_handshake(each: Site) -> None:
    """Both are read at once then, if llmux is a little late."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with await plain(each) as stream:
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        await stream.send_all(outgoing.read())
        is_done = False
        with trio.fail_after(5):
            while not is_done:
                incoming.write(await stream.receive_some())
                try:
                    client.do_handshake()
                    is_done = True
                except ssl.SSLWantReadError:
                    pass
            client.write(post())
            await stream.send_all(outgoing.read())
            received = b""
            while not received.endswith(b"ok"):
                try:
                    received += client.read(65536)
                except ssl.SSLWantReadError:
                    incoming.write(await stream.receive_some())


async def test_garbage_in_a_handshake_gets_an_alert(each: Site) -> None:
    async with await plain(each) as stream:
        await stream.send_all(b"\x16\x03\x01\0\x05hello")
        assert (await read_all(stream)).startswith(b"\x15\x03")


async def test_only_current_versions_and_http_1_1(site: Site) -> None:
    context = client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    stream = trio.SSLStream(await plain(site), context, server_hostname="localhost")
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == "http/1.1"
    await trio.aclose_forcefully(stream)
    old = client_context()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    stream = trio.SSLStream(await plain(site), old, server_hostname="localhost")
    with pytest.raises(trio.BrokenResourceError):
        await stream.do_handshake()
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_serve(site: Site, version: ssl.TLSVersion) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    async with httpx.AsyncClient(base_url=site.url, verify=context) as client:
        assert (await client.post("/v1/chat/completions", content=BODY)).text == "ok"


async def test_http_2_is_offered_if_it_is_on(tmp_path: Path) -> None:
    async with running_lane("tls", tmp_path, http2=True) as site:
        async with httpx.AsyncClient(base_url=site.url, http2=True, verify=site.trusted) as client:
            answer = await client.post("/v1/chat/completions", content=BODY)
            assert (answer.http_version, answer.text) == ("HTTP/2", "ok")


async def test_names_of_the_certificate_are_llmuxs_own(tmp_path: Path) -> None:
    """No page of another site can have them, so they need not be under `hosts`, too."""
    pair = write_pair(tmp_path, ["127.0.0.1", "llm.example.org", "*.models.example.org"])
    async with running_lane("tls", tmp_path, tls=pair) as site:
        async with site.client() as client:
            for host, expected in (
                ("llm.example.org", 200), ("a.models.example.org", 200), ("evil.example", 403),
            ):  # fmt: skip
                answer = await client.post(
                    "/v1/chat/completions", content=BODY, headers={"Host": host}
                )
                assert answer.status_code == expected, host


async def test_idle_connections_end_with_the_lane(site: Site) -> None:
    async with await plain(site) as shaking, await site.connect() as idle:
        await idle.send_all(post(close=False))
        await until(idle, b"ok")
        await wait_all_tasks_blocked(0.01)
        site.fast.stop()
        with trio.fail_after(5):
            assert await read_all(shaking) == b""
            assert await read_all(idle) == b""
