"""What docs/guarantees.md says of requests, on both lanes, byte by byte."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.utilities import generate_accept_token

from llmux.server.hypercorn_side.rules import RULES
from llmux.upstream import Backend
from tests.fakes import FakeHooks
from tests.lanes import LANES, LANES_AND_TLS, Site, play, read_all, running_lane

BODY = b'{"model": "a"}'


def post(body: bytes = BODY, *headers: bytes, close: bool = True) -> bytes:
    lines = [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: llmux",
        b"Content-Length: %d" % len(body),
        *headers,
        *([b"Connection: close"] if close else []),
    ]
    return b"\r\n".join([*lines, b"", body])


def ok(*headers: bytes, body: bytes = b"ok") -> bytes:
    return b"\r\n".join(
        [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body]
    )


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def error_code(answer: bytes) -> Any:
    said = json.loads(body_of(answer))
    return said["code"] if isinstance(said["error"], str) else said["error"]["code"]  # Ollama's


@pytest.fixture(params=LANES_AND_TLS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path) as site:
        yield site


@pytest.fixture
async def fast(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane("fast", tmp_path) as site:
        yield site


async def test_request_bytes(site: Site) -> None:
    body = b'{ "model":"a", "x": "\\u00e9" }'
    extra = (
        b"X-Odd: a  b", b"Model-Override: a", b"Keep-Alive: 5", b"X-Hop: 1", b"TE: trailers",
        b"Connection: x-hop", b"X-Forwarded-For: 10.1.1.1",
    )  # fmt: skip
    await site.exchange(post(body, *extra))
    (received,) = site.backend.received
    head, _, forwarded = received.partition(b"\r\n\r\n")
    assert forwarded == body
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /v1/chat/completions http/1.1"
    assert b"host: 127.0.0.1:%d" % site.backend.port in lines
    assert b"x-odd: a  b" in lines
    assert b"x-forwarded-for: 10.1.1.1, 127.0.0.1" in lines
    assert b"x-forwarded-host: llmux" in lines
    assert b"x-forwarded-proto: " + (b"https" if site.is_tls else b"http") in lines
    for gone in (b"model-override", b"keep-alive", b"x-hop", b"te:", b"connection"):
        assert not any(line.startswith(gone) for line in lines)


async def test_response_bytes(site: Site) -> None:
    zipped = gzip.compress(b"hello")
    site.backend.play = play(
        ok(b"Content-Encoding: gzip", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Keep-Alive: 9",
           b"X-llmux-Model: liar", body=zipped)
    )  # fmt: skip
    answer = await site.exchange(post())
    assert body_of(answer) == zipped
    lines = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"set-cookie")] == [
        b"set-cookie: a=1", b"set-cookie: b=2",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith(b"x-llmux-model")] == [b"x-llmux-model: a"]
    assert not any(line.startswith(b"keep-alive") for line in lines)


@pytest.mark.parametrize("code", [204, 304, 404, 418, 500])
async def test_any_status_passes(site: Site, code: int) -> None:
    length = b"" if code in (204, 304) else b"Content-Length: 0\r\n"
    site.backend.play = play(b"HTTP/1.1 %d Whatever\r\n%b\r\n" % (code, length))
    assert status(await site.exchange(post())) == code


async def test_head_and_options(site: Site) -> None:
    site.backend.play = play(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    answer = await site.exchange(
        b"HEAD /x?model=a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    assert (status(answer), body_of(answer)) == (200, b"")
    site.backend.play = play(ok())
    answer = await site.exchange(
        b"OPTIONS /x?model=a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    assert status(answer) == 200


@pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
async def test_connection_cannot_name_away_the_framing(site: Site, framing: bytes) -> None:
    body = b"ok" if framing.startswith(b"Content") else b"2\r\nok\r\n0\r\n\r\n"
    named = b"Connection: X-Hop, Content-Length, Transfer-Encoding\r\nX-Hop: 1"
    site.backend.play = play(b"\r\n".join([b"HTTP/1.1 200 OK", named, framing, b"", body]))
    async with site.client() as client:
        for _ in range(2):
            answer = await client.post("/v1/chat/completions", content=BODY)
            assert (answer.content, "x-hop" in answer.headers) == (b"ok", False)


async def test_chunked_both_ways(site: Site) -> None:
    site.backend.play = play(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n",
        b"3\r\nabc\r\n",
        b"2;ext=1\r\nde\r\n0\r\n\r\n",
    )
    request = (
        b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    answer = await site.exchange(
        request, b"5\r\n" + BODY[:5] + b"\r\n", b"9\r\n", BODY[5:] + b"\r\n0\r\n\r\n"
    )
    assert status(answer) == 200
    assert site.backend.received[0].endswith(b"\r\n\r\n" + BODY)
    assert answer.endswith(b"0\r\n\r\n")
    assert b"abc" in answer
    assert b"de" in answer
    assert b"x-accel-buffering: no" in answer.lower()


async def test_a_body_until_close(site: Site) -> None:
    site.backend.play = play(b"HTTP/1.1 200 OK\r\n\r\nhello ", b"world", close=True)
    answer = await site.exchange(post())
    assert status(answer) == 200
    assert b"hello " in answer
    assert b"transfer-encoding: chunked" in answer.lower()
    assert answer.endswith(b"0\r\n\r\n")


async def test_keep_alive_and_pipelining(site: Site) -> None:
    answer = await site.exchange(
        post(close=False) + post(b'{"model": "nope"}', close=False) + post()
    )
    codes = [int(piece[:3]) for piece in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes == [200, 404, 200]


async def test_expect_100_continue(site: Site) -> None:
    stream = await site.connect()
    async with stream:
        head, _, body = post(BODY, b"Expect: 100-continue").partition(b"\r\n\r\n")
        with trio.fail_after(20):
            await stream.send_all(head + b"\r\n\r\n")
            interim = await stream.receive_some()
            assert interim.startswith(b"HTTP/1.1 100")
            await stream.send_all(body)
            assert status(await read_all(stream)) == 200


async def test_own_paths_on_the_same_connection(site: Site) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: h\r\n%b\r\n"
    answer = await site.exchange(
        post(close=False)
        + get % b""
        + get % b""
        + post(close=False)
        + get % b"Connection: close\r\n"
    )
    codes = [int(piece[:3]) for piece in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes == [200] * 5
    assert len(site.backend.received) == 2


async def test_absolute_form(site: Site) -> None:
    await site.exchange(b"GET http://h/x?model=a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert site.backend.received[0].startswith(b"GET /x?model=a HTTP/1.1\r\n")


async def test_http_1_0(site: Site) -> None:
    request = post().replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await site.exchange(request)
    assert status(answer) == 200
    assert answer.endswith(b"ok")


async def test_http_2(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RULES, "http2", True)
    async with httpx.AsyncClient(
        base_url=site.url, http1=False, http2=True, verify=site.trusted
    ) as client:
        answer = await client.post("/v1/chat/completions", content=BODY)
        assert (answer.http_version, answer.text) == ("HTTP/2", "ok")
        assert answer.headers["x-llmux-model"] == "a"
        assert (await client.get("/health")).status_code == 200


async def test_a_method_of_its_own(site: Site) -> None:
    answer = await site.exchange(
        b"BREW /x?model=a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    assert status(answer) == 200
    assert site.backend.received[0].startswith(b"BREW /x?model=a HTTP/1.1\r\n")


# ---- Backends that misbehave ----


BROKEN_HEADS = {
    "closes": b"",
    "garbage": b"hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "bad header": b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
async def test_a_backend_that_breaks_before_its_status_line_is_502(site: Site, name: str) -> None:
    site.backend.play = play(BROKEN_HEADS[name], close=True)
    answer = await site.exchange(post())
    assert (status(answer), error_code(answer)) == (502, "backend_error")


BROKEN_BODIES = {
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "bad chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_backend_that_breaks_in_mid_body_is_cut(site: Site, name: str) -> None:
    site.backend.play = play(BROKEN_BODIES[name], close=True)
    answer = await site.exchange(post(close=False))
    if status(answer) == 502:  # nothing was passed on yet
        assert error_code(answer) == "backend_error"
    elif answer:  # a reset may overtake the first bytes
        assert status(answer) == 200
        assert not answer.endswith(b"0\r\n\r\n")
        assert len(body_of(answer)) < 10 or b"chunked" in answer


async def test_a_backend_that_breaks_where_its_body_begins_is_never_silence(site: Site) -> None:
    site.backend.play = play(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    answer = await site.exchange(post(close=False))
    assert answer, "neither a status line nor an error"
    if status(answer) == 502:
        assert error_code(answer) == "backend_error"
    else:
        assert (status(answer), body_of(answer)) == (200, b"")


async def test_a_backend_that_answers_before_it_has_read_the_body(site: Site) -> None:
    async def too_early(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(
            b"HTTP/1.1 413 No\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"
        )
        await stream.send_eof()
        await read_all(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, too_early, listeners)
        port = listeners[0].socket.getsockname()[1]
        proxy = site.service.proxy
        proxy.upstreams["a"].backend = Backend(f"http://127.0.0.1:{port}")
        big = b'{"model": "a", "x": "' + b"y" * 5_000_000 + b'"}'
        answer = await site.exchange(post(big))
        assert (status(answer), body_of(answer)) == (413, b"no!")
        nursery.cancel_scope.cancel()


# ---- Clients that misbehave ----


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_a_slow_reader_is_cut_and_its_backend_closed(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, limits={"client_stall_secs": 0.3}) as site:
        sent = 0

        async def flood(stream: trio.SocketStream, request: bytes) -> None:
            nonlocal sent
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await stream.send_all(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")
                sent += 0xFFFF

        site.backend.play = flood
        stream = await site.connect()
        async with stream:
            await stream.send_all(post())
            with trio.fail_after(20):
                while not site.in_flight:
                    await trio.sleep(0.01)
                while site.in_flight or site.backend.open:
                    await trio.sleep(0.01)
        assert 0 < sent < 30_000_000  # the kernel's buffers, and no more


async def test_an_answer_that_meets_one_of_the_server_itself_ends_nothing_else(site: Site) -> None:
    """Hypercorn sends "100 Continue" while the ASGI lane refuses the body: one of both fails."""
    own_path = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
    )
    for _ in range(100):
        stream = await site.connect()
        async with stream:
            with trio.fail_after(20):
                await stream.send_all(own_path)
                assert status(await stream.receive_some()) == 200
                await stream.send_all(head)
                answer = b""
                while b"too_large" not in answer and (more := await stream.receive_some()):
                    answer += more
    site.backend.play = play(ok())
    assert status(await site.exchange(post())) == 200


async def test_other_streams_do_not_notice_a_slow_reader(site: Site) -> None:
    async def flood(stream: trio.SocketStream, request: bytes) -> None:
        if b"/flood" not in request:
            await stream.send_all(ok())
            return
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")

    site.backend.play = flood
    stream = await site.connect()
    async with stream:
        await stream.send_all(post().replace(b"/v1/chat/completions", b"/flood"))
        with trio.fail_after(20):
            for _ in range(20):
                assert status(await site.exchange(post())) == 200


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_a_drain_that_takes_too_long_cuts_requests(lane: str, tmp_path: Path) -> None:
    policy = {"drain_timeout_secs": 0.05}

    async def begin(stream: trio.SocketStream, request: bytes) -> None:
        if b"/begin" in request:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with (
        running_lane(lane, tmp_path, policy=policy, models=["a", "b"]) as site,
        trio.open_nursery() as nursery,
    ):
        site.backend.play = begin
        answers: dict[bytes, bytes] = {}

        async def ask(path: bytes) -> None:
            request = post().replace(b"/v1/chat/completions", path)
            answers[path] = await site.exchange(request)

        nursery.start_soon(ask, b"/wait")
        nursery.start_soon(ask, b"/begin")
        with trio.fail_after(20):
            while len(site.backend.received) < 2:
                await trio.sleep(0.001)
            await site.service.board.force_switch("b")
            await site.until_idle()
            async with site.client() as client:
                series = (await client.get("/metrics")).text
    assert status(answers[b"/wait"]) == 503
    assert json.loads(body_of(answers[b"/wait"]))["error"]["code"] == "not_ready"
    assert status(answers[b"/begin"]) == 200
    assert body_of(answers[b"/begin"]) == b"half"
    counted = re.findall(r'llmux_requests_total{model="a",status="(\d+)".*} (.*)', series)
    assert sorted(counted) == [("200", "1.0"), ("503", "1.0")]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.1\nHost: h\n\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_what_is_no_request_gets_400(fast: Site, request_bytes: bytes) -> None:
    stream = await fast.connect()
    async with stream:
        await stream.send_all(request_bytes)
        await stream.send_eof()
        with trio.fail_after(20):
            answer = await read_all(stream)
    assert status(answer) in (400, 0)
    if b"\r\n\r\n" in request_bytes or b"\n" in request_bytes:
        assert status(answer) == 400
    assert fast.backend.received == []


async def test_a_head_over_the_limit(fast: Site) -> None:
    answer = await fast.exchange(b"GET /x HTTP/1.1\r\nA: " + b"x" * 70_000)
    assert (status(answer), error_code(answer)) == (431, "bad_request")


async def test_a_body_over_the_limit(tmp_path: Path) -> None:
    for lane in LANES:
        async with running_lane(lane, tmp_path, limits={"body_bytes": 100}) as site:
            answer = await site.exchange(post(b" " * 101))
            assert (status(answer), error_code(answer)) == (413, "body_too_large")
            chunk = b"64\r\n" + b" " * 100 + b"\r\n"
            head = (
                b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                b"Connection: close\r\n\r\n"
            )
            answer = await site.exchange(head + chunk + chunk + b"0\r\n\r\n")
            assert (status(answer), error_code(answer)) == (413, "body_too_large")


async def test_a_head_that_comes_too_slowly(fast: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.downstream.fast_connection.HEAD_S", 0.2)
    stream = await fast.connect()
    async with stream:
        await stream.send_all(b"GET /x HTTP/1.1\r\nHos")
        with trio.fail_after(20):
            assert status(await read_all(stream)) == 408


async def test_an_idle_connection_is_closed(fast: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.downstream.fastlane.KEEP_ALIVE_S", 0.0)
    stream = await fast.connect()
    async with stream:
        with trio.fail_after(20):
            assert await read_all(stream) == b""


async def test_connections_that_are_reset_before_they_are_served(site: Site) -> None:
    for _ in range(300):
        plain = socket.create_connection(("127.0.0.1", site.port))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plain.close()
    assert status(await site.exchange(post())) == 200


async def test_connect_is_refused_and_closed(site: Site) -> None:
    answer = await site.exchange(b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\nModel-Override: a\r\n\r\n")
    assert (status(answer), error_code(answer)) == (400, "bad_request")
    assert site.backend.received == []


async def test_a_head_passes_before_the_first_byte_of_its_body(site: Site) -> None:
    go_on = trio.Event()

    async def pause(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await go_on.wait()
        await stream.send_all(b"ok")

    site.backend.play = pause
    stream = await site.connect()
    async with stream:
        await stream.send_all(post())
        with trio.fail_after(20):
            assert status(bytes(await stream.receive_some())) == 200
            go_on.set()
            assert (await read_all(stream)).endswith(b"ok")


async def test_absolute_form_reaches_own_paths_too(site: Site) -> None:
    get = b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert status(await site.exchange(get % b"http://h/health")) == 200
    answer = await site.exchange(get % b"http://[::1/x")
    assert (status(answer), error_code(answer)) == (400, "bad_request")


async def test_a_request_cut_before_its_status_line_gets_an_error(site: Site) -> None:
    async def never(stream: trio.SocketStream, request: bytes) -> None:
        await trio.sleep_forever()

    site.backend.play = never
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            answer = await site.exchange(post())
            assert (status(answer), error_code(answer)) == (503, "not_ready")

        nursery.start_soon(ask)
        with trio.fail_after(20):
            while not site.backend.received:
                await trio.sleep(0.001)
        site.service.board.models["a"].in_flight.cut()


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
EVENT = b"data: 1\n\n"
STREAMS = {
    "chunked": (SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n" + EVENT + b"\r\n", True),
    "until close": (SSE_HEAD + b"\r\n" + EVENT, True),
    "in mid event": (SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\n", False),
    "no stream": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\n\n\r\n", False),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_the_last_event_of_a_stream_that_is_cut_says_why(site: Site, name: str) -> None:
    sent, is_told = STREAMS[name]
    site.backend.play = play(sent)
    last_sent = sent.removesuffix(b"\r\n").rpartition(b"\r\n")[2]
    answer = await site.cut(post(), passed_on=last_sent)
    assert status(answer) == 200
    assert not answer.endswith(b"0\r\n\r\n"), "no false end"
    assert (b'data: {"error":{"message":"Model not ready: a"' in answer) == is_told
    if is_told:
        last = answer.rpartition(b"data: ")[2]
        assert json.loads(last.strip())["error"]["code"] == "not_ready"


# Ways to make two readers of one request see two things (request smuggling): RFC 9112 section 11.2,
# and the tables of published attacks. None may reach the backend as anything but one whole request.
SMUGGLING = {
    "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
    "same length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "length list": b"Content-Length: 5, 5\r\n\r\nhello",
    "signed length": b"Content-Length: +5\r\n\r\nhello",
    "negative length": b"Content-Length: -5\r\n\r\nhello",
    "hex length": b"Content-Length: 0x5\r\n\r\nhello",
    "huge length": b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "space in length": b"Content-Length: 5 5\r\n\r\nhello",
    "length name with space": b"Content-Length : 5\r\n\r\nhello",
    "chunked name with space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked name with tab": b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "identity": b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity, chunked": b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and cow": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n",
    "vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "NUL": b"Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
    "folded": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folded name": b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare CR": b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "LF LF": b"X: y\n\nGET /evil HTTP/1.1\r\nHost: h\r\n\r\n",
    "no name": b": y\r\n\r\n",
    "no colon": b"Transfer-Encoding\r\n\r\n",
    "two hosts": b"Host: evil\r\n\r\n",
    "bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "0x chunk": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "huge chunk": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "chunk LF": b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "chunk too long": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
    "chunk end without CRLF": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "chunk extension LF": b"Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
async def test_nothing_is_forwarded_that_could_be_read_in_two_ways(fast: Site, name: str) -> None:
    head = b"POST /x?model=a HTTP/1.1\r\nHost: h\r\n"
    stream = await fast.connect()
    async with stream:
        await stream.send_all(head + SMUGGLING[name])
        await stream.send_eof()
        with trio.fail_after(20):
            answer = await read_all(stream)
    assert status(answer) in (0, 400)
    assert fast.backend.received == []


async def test_what_follows_a_bad_request_is_not_served(fast: Site) -> None:
    answer = await fast.exchange(
        b"POST /x?model=a HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n" + post()
    )
    assert answer.count(b"HTTP/1.1 ") == 1
    assert fast.backend.received == []


async def test_who_leaves_with_requests_in_line_behind_an_own_path(fast: Site) -> None:
    """Hypercorn, which has the connection by then, reads no more until the first has ended."""

    async def never(stream: trio.SocketStream, request: bytes) -> None:
        await stream.receive_some()

    fast.backend.play = never
    get = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
    async with await fast.connect() as stream:
        await stream.send_all(get % b"/health")
        assert status(bytes(await stream.receive_some())) == 200
        await stream.send_all(2 * (get % b"/slow?model=a"))
        with trio.fail_after(20):
            while not fast.in_flight:
                await trio.sleep(0.01)
    await fast.until_idle()


async def test_who_has_closed_its_side_gets_its_answer_of_an_own_path(fast: Site) -> None:
    async with await fast.connect() as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        await stream.send_eof()
        with trio.fail_after(20):
            assert status(await read_all(stream)) == 200


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_thousand_clients_that_leave_at_random_moments(site: Site) -> None:
    chance = random.Random(7)

    async def answer_slowly(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(chance.randrange(5)):
            await trio.sleep(chance.random() / 200)
            await stream.send_all(b"1\r\nx\r\n")
        await stream.send_all(b"0\r\n\r\n")

    async def come_and_go() -> None:
        stream = await site.connect()
        async with stream:
            with trio.move_on_after(chance.random() / 50):
                whole = post()
                cut = chance.choice([len(whole), len(whole), 5, 50, len(whole) - 3])
                await stream.send_all(whole[:cut])
                await read_all(stream)

    site.backend.play = answer_slowly
    before = open_descriptors()
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(come_and_go)
    await site.until_idle()
    backend = site.service.proxy.upstreams["a"].backend
    # On a busy machine many of these connections are accepted only now, and served one by one:
    # that takes seconds. One that stays idle after its client has left stays for 75.
    with trio.fail_after(30):
        # What is still open to the backend are idle connections, which may be used again.
        while site.backend.open or open_descriptors() > before:
            site.service.proxy.upstreams.close()
            await trio.sleep(0.01)
    assert " 0 in use>" in repr(backend)


# ---- WebSockets ----


HANDSHAKE = (
    b"GET /ws?model=a HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def echo(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(SWITCHING + b"early ")
    while data := await stream.receive_some():
        await stream.send_all(data)


async def test_a_websocket_is_tunnelled_while_it_is_in_flight(fast: Site) -> None:
    fast.backend.play = echo
    stream = await fast.connect()
    async with stream:
        with trio.fail_after(20):
            await stream.send_all(HANDSHAKE + b"first ")
            answer = b""
            while not answer.endswith(b"early first "):
                answer += await stream.receive_some()
            assert status(answer) == 101
            head = answer.lower().partition(b"\r\n\r\n")[0].split(b"\r\n")
            assert b"upgrade: websocket" in head
            assert b"connection: upgrade" in head
            assert fast.in_flight == 1
            await stream.send_all(b"more")
            assert await stream.receive_some() == b"more"
    await fast.until_idle()
    sent = fast.backend.received[0].lower()
    assert b"\r\nconnection: upgrade\r\n" in sent
    assert b"\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n" in sent


async def test_a_websocket_that_the_backend_closes(fast: Site) -> None:
    fast.backend.play = play(SWITCHING + b"bye", close=True)
    answer = await fast.exchange(HANDSHAKE)
    assert (status(answer), body_of(answer)) == (101, b"bye")


async def test_a_websocket_that_the_backend_refuses(fast: Site) -> None:
    fast.backend.play = play(ok())
    stream = await fast.connect()
    async with stream:
        await stream.send_all(HANDSHAKE)
        with trio.fail_after(20):
            assert status(bytes(await stream.receive_some())) == 200


async def websocket_echo(stream: trio.SocketStream, request: bytes) -> None:
    """A WebSocket server that sends back what it gets, messages in two pieces."""
    (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
    accept = b"Sec-WebSocket-Accept: %b\r\n\r\n" % generate_accept_token(key)
    await stream.send_all(SWITCHING[:-2] + accept)
    frames = Connection(ConnectionType.SERVER)
    while data := await stream.receive_some():
        frames.receive_data(bytes(data))
        for event in frames.events():
            if isinstance(event, TextMessage):
                await stream.send_all(
                    frames.send(TextMessage(data=event.data[:1], message_finished=False))
                    + frames.send(TextMessage(data=event.data[1:]))
                )
            elif isinstance(event, BytesMessage):
                await stream.send_all(frames.send(BytesMessage(data=event.data)))
            elif isinstance(event, CloseConnection):
                await stream.send_all(frames.send(event.response()))
                return


async def test_websocket_messages_on_both_lanes(site: Site) -> None:
    site.backend.play = websocket_echo
    client = WSConnection(ConnectionType.CLIENT)
    stream = await site.connect()
    heard: list[Event] = []

    async def hear() -> Event:
        while not heard:
            client.receive_data(bytes(await stream.receive_some()) or None)
            heard.extend(client.events())
        return heard.pop(0)

    async with stream:
        with trio.fail_after(20):
            await stream.send_all(client.send(Request(host="h", target="/ws?model=a")))
            assert isinstance(await hear(), AcceptConnection)
            assert site.in_flight == 1
            for message in (TextMessage(data="hello"), BytesMessage(data=b"\0\1")):
                await stream.send_all(client.send(message))
                answer = await hear()
                assert isinstance(answer, TextMessage | BytesMessage)
                data = answer.data
                while not answer.message_finished:
                    answer = await hear()
                    assert isinstance(answer, TextMessage | BytesMessage)
                    data += answer.data  # type: ignore[operator]
                assert data == message.data
            await stream.send_all(client.send(CloseConnection(code=1000)))
            assert isinstance(await hear(), CloseConnection)
    await site.until_idle()


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_who_leaves_behind_bytes_that_the_backend_does_not_read(
    lane: str, tmp_path: Path, *, resets: bool
) -> None:
    """A close is seen only behind the bytes; that of a reset is, but not by Hypercorn."""

    async def read_nothing(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(SWITCHING)
        await trio.sleep_forever()

    stall_s = 60 if resets and lane in {"fast", "tls"} else 0.3
    async with running_lane(lane, tmp_path, limits={"client_stall_secs": stall_s}) as site:
        site.backend.play = read_nothing
        async with await site.connect() as stream:
            await stream.send_all(HANDSHAKE)
            await stream.receive_some()
            frames = Connection(ConnectionType.CLIENT)
            message = frames.send(BytesMessage(data=bytes(65536)))
            with trio.move_on_after(0.2):
                while True:
                    await stream.send_all(message)
            assert site.in_flight == 1
            if resets:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await site.until_idle()


async def test_a_ping_while_a_message_is_being_sent(site: Site) -> None:
    """On the ASGI lane, two tasks send to the backend: the client's messages, and replies."""
    heard = bytearray()

    async def ping_amid(stream: trio.SocketStream, request: bytes) -> None:
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
        accept = b"Sec-WebSocket-Accept: %b\r\n\r\n" % generate_accept_token(key)
        await stream.send_all(SWITCHING[:-2] + accept)
        frames = Connection(ConnectionType.SERVER)
        data = bytes(await stream.receive_some(100))
        await stream.send_all(frames.send(Ping(payload=b"?")))
        await wait_all_tasks_blocked(0.05)  # the message is stuck, and the ping is there
        while data:
            frames.receive_data(data)
            for event in frames.events():
                if isinstance(event, BytesMessage):
                    heard.extend(event.data)
                elif isinstance(event, Pong):
                    await stream.send_all(frames.send(CloseConnection(code=4321)))
                elif isinstance(event, CloseConnection):
                    return
            data = bytes(await stream.receive_some())

    site.backend.play = ping_amid
    message = bytes(8 << 20)
    client = WSConnection(ConnectionType.CLIENT)
    stream = await site.connect()
    code = None

    async def hear() -> None:
        nonlocal code
        while code is None:
            client.receive_data(bytes(await stream.receive_some()) or None)
            for event in client.events():
                if isinstance(event, AcceptConnection):
                    accepted.set()
                elif isinstance(event, Ping):  # the fast lane leaves it to the client
                    await sent.wait()
                    await stream.send_all(client.send(event.response()))
                elif isinstance(event, CloseConnection):
                    code = event.code
                    await stream.send_all(client.send(event.response()))

    accepted, sent = trio.Event(), trio.Event()
    async with stream:
        with trio.fail_after(10):
            await stream.send_all(client.send(Request(host="h", target="/ws?model=a")))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear)
                await accepted.wait()
                await stream.send_all(client.send(BytesMessage(data=message)))
                sent.set()
    assert code == 4321
    assert bytes(heard) == message
    await site.until_idle()


async def test_a_websocket_for_an_unknown_model(site: Site) -> None:
    answer = b""
    stream = await site.connect()
    async with stream:
        await stream.send_all(HANDSHAKE.replace(b"model=a", b"model=x"))
        with trio.fail_after(20):
            while b"model_not_found" not in answer:
                answer += await stream.receive_some()
    assert status(answer) == 404


HELLO = b"\x81\x85\0\0\0\0hello"
"""A text frame of a client."""

ECHOED = b"\x01\x01h\x80\x04ello"
"""What `websocket_echo` makes of it; Hypercorn sends it in one piece."""


async def test_frames_before_the_handshake_is_answered(tmp_path: Path) -> None:
    for lane in LANES:
        async with slow_to_wake(lane, tmp_path) as site:
            site.backend.play = websocket_echo
            answer = b""
            async with await site.connect() as stream:
                await stream.send_all(HANDSHAKE + HELLO)
                with trio.fail_after(20):
                    await stream.send_all(HELLO)
                    while body_of(answer) not in (2 * ECHOED, 2 * b"\x81\x05hello"):
                        answer += await stream.receive_some()
            assert status(answer) == 101
            await site.until_idle()


async def test_who_leaves_after_frames_before_the_handshake_is_answered(tmp_path: Path) -> None:
    for lane in LANES:
        async with slow_to_wake(lane, tmp_path) as site:
            site.backend.play = websocket_echo
            async with await site.connect() as stream:
                await stream.send_all(HANDSHAKE + HELLO)
                with trio.fail_after(20):
                    while not site.service.board.queue_depths["a"]:
                        await trio.sleep(0.001)
            await site.until_idle()
            assert site.backend.received == []


async def test_too_much_before_the_handshake_is_answered(tmp_path: Path) -> None:
    async with slow_to_wake("asgi", tmp_path) as site:
        assert await site.exchange(HANDSHAKE, 6000 * HELLO) == b""
        await site.until_idle()
        assert site.backend.received == []


async def test_a_handshake_that_is_none_gets_400(tmp_path: Path) -> None:
    """After an own path, it is Hypercorn that sees it."""
    version = b"Sec-WebSocket-Version: 13\r\n"
    async with running_lane("asgi", tmp_path) as site:
        for bad in (b"", version + b"Sec-WebSocket-Protocol: \xff\r\n"):
            assert status(await site.exchange(HANDSHAKE.replace(version, bad))) == 400


async def test_frames_behind_a_handshake_that_is_refused(tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path) as site:
        for target in (b"/health", b"/?model=x"):
            answer = await site.exchange(HANDSHAKE.replace(b"/ws?model=a", target) + HELLO)
            assert status(answer) == 404
        assert status(await site.exchange(post())) == 200


# ---- Limits on what is held ----


@pytest.mark.parametrize("lane", LANES_AND_TLS)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_bodies_over_the_limit_for_all_are_sent_away(
    lane: str, is_chunked: bool, tmp_path: Path
) -> None:
    async def never(stream: trio.SocketStream, request: bytes) -> None:
        await trio.sleep_forever()

    limits = {"queued_bytes": 100_000}
    async with running_lane(lane, tmp_path, limits=limits) as site, trio.open_nursery() as nursery:
        site.backend.play = never
        bodies = site.service.proxy.bodies
        whole = post(b'{"model": "a", "x": "' + b"x" * 60_000 + b'"}')
        one = chunked(whole) if is_chunked else whole
        clients = [await site.connect() for _ in range(2)]
        nursery.start_soon(clients[0].send_all, one)
        with trio.fail_after(20):
            while not site.backend.received:
                await trio.sleep(0.001)
            assert 60_000 < bodies.held_bytes < 61_000
            answer = await site.exchange(one)
            assert (status(answer), error_code(answer)) == (429, "queue_full")
            assert b"retry-after: 5\r\n" in answer.lower()
            for client in clients:
                await client.aclose()
            await site.until_idle()
            while bodies.held_bytes:
                await trio.sleep(0.001)
            site.backend.play = play(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert status(await site.exchange(one)) == 200
            assert bodies.held_bytes == 0


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_a_body_is_held_until_its_answer_begins(lane: str, tmp_path: Path) -> None:
    async def begin(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with running_lane(lane, tmp_path) as site:
        site.backend.play = begin
        async with await site.connect() as stream:
            await stream.send_all(post(b'{"model": "a"}'))
            await stream.receive_some()
            assert site.service.proxy.bodies.held_bytes == 0
            assert site.service.board.in_flight_count("a") == 1


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_a_body_that_takes_too_long_is_refused(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, limits={"body_secs": 0.2}) as site:
        async with await site.connect() as stream:
            await stream.send_all(post(b"x" * 1000)[:-900])
            with trio.fail_after(20):
                answer = await stream.receive_some()
    assert status(answer) == 408
    assert site.service.proxy.bodies.held_bytes == 0


def chunked(request: bytes) -> bytes:
    """The same request, its body in chunks."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"])
    return head + b"\r\n\r\n" + chunks + b"0\r\n\r\n"


# ---- Comments for those who wait ----

STREAM = b'{"model": "a", "stream": true}'
EVENTS = b"data: 1\n\ndata: [DONE]\n\n"


def stream_of_events(*pieces: bytes, status: bytes = b"200 OK") -> tuple[bytes, ...]:
    head = b"HTTP/1.1 %b\r\nContent-Type: text/event-stream\r\n" % status
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return (head + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")


def dechunked(answer: bytes) -> bytes:
    rest, data = body_of(answer), b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        data += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return data


def slow_to_wake(
    lane: str, tmp_path: Path, *, fails: bool = False
) -> AbstractAsyncContextManager[Site]:
    hooks = FakeHooks(seconds={("a", "wake"): 0.5}, failing={("a", "wake"): int(fails)})
    return running_lane(lane, tmp_path, hooks=hooks, policy={"waiting_keepalive_secs": 0.1})


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_who_waits_for_a_stream_gets_comments(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(*stream_of_events(EVENTS))
        answer = await site.exchange(post(STREAM))
        assert status(answer) == 200
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"content-type: text/event-stream" in head
        assert b"x-llmux-model: a" in head
        assert answer.endswith(b"0\r\n\r\n")
        comments, _, events = dechunked(answer).partition(b"data: ")
        assert comments.count(b": waiting for the model\n\n") >= 3
        assert b"data: " + events == EVENTS
        again = await site.exchange(post(STREAM))
        assert b": waiting" not in again, "it does not wait any more"
        assert dechunked(again) == EVENTS


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_who_wants_no_stream_gets_no_comments(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        answer = await site.exchange(post(b'{"model": "a", "stream": false}'))
        assert (status(answer), body_of(answer)) == (200, b"ok")


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_a_later_failure_is_an_event(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path, fails=True) as site:
        answer = await site.exchange(post(STREAM))
        assert status(answer) == 200
        assert answer.endswith(b"0\r\n\r\n")
        last = dechunked(answer).rpartition(b"data: ")[2]
        assert json.loads(last)["error"]["code"] == "hook_failed"


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_an_answer_that_is_no_stream_is_an_event(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(b"HTTP/1.1 400 Bad\r\nContent-Length: 9\r\n\r\ntoo long!")
        last = dechunked(await site.exchange(post(STREAM))).rpartition(b"data: ")[2]
        error = json.loads(last)["error"]
        assert error["message"] == "Backend error: answered 400: too long!"


@pytest.mark.parametrize("lane", LANES_AND_TLS)
async def test_a_client_that_leaves_while_it_gets_comments(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        async with await site.connect() as stream:
            await stream.send_all(post(STREAM))
            with trio.fail_after(20):
                while b": waiting" not in await stream.receive_some():
                    pass
        await site.until_idle()
        with trio.fail_after(20):
            while site.service.board.queue_depths["a"] or site.service.proxy.bodies.held_bytes:
                await trio.sleep(0.01)


@pytest.mark.parametrize("lane", LANES_AND_TLS)
@pytest.mark.parametrize("waits", [True, False])
async def test_a_stream_with_comments_has_no_false_end(
    lane: str, tmp_path: Path, waits: bool
) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        if not waits:
            await site.exchange(post(b'{"model": "a"}'))
        site.backend.play = play(*stream_of_events(b'data: {"tok')[:2], close=True)
        answer = await site.exchange(post(STREAM))
        assert not answer.endswith(b"0\r\n\r\n")
        assert b"error" not in answer


@pytest.mark.parametrize("lane", LANES_AND_TLS)
@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("keepalive_s", [0.1, 60])
async def test_a_cut_is_told_once_with_comments(
    lane: str, tmp_path: Path, begins: bool, keepalive_s: float
) -> None:
    async def hang(stream: trio.SocketStream, request: bytes) -> None:
        if begins:
            await stream.send_all(b"".join(stream_of_events(b"data: 1\n\n")[:2]))
        await trio.sleep_forever()

    policy = {"waiting_keepalive_secs": keepalive_s}
    passed_on = b"data: 1" if begins else b": waiting" if keepalive_s < 1 else b""
    async with running_lane(lane, tmp_path, policy=policy) as site:
        site.backend.play = hang
        answer = await site.cut(post(STREAM), passed_on)
    assert answer.count(b'"code":"not_ready"') == 1
    told_by_status = not begins and keepalive_s == 60
    assert status(answer) == (503 if told_by_status else 200)
