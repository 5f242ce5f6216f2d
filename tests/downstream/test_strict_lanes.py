"""What is no request, on every lane, over real sockets to real processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import httpx
import pytest
import trio

from llmux.server.hypercorn_side.http1 import NO_HTTP2
from tests.http.test_strict import BAD_HEADS, GET, HOST
from tests.lanes import read_all
from tests.servers import ALL_FORMS, LlmuxProcess, Rack, chat, running_backends, running_llmux

HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
CHUNKED = CHAT + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(chat("a")).encode()

BAD_BODIES = {
    "NUL in an extension": b"5;\0\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\r\n0\r\n\r\n",
    "data that goes on": b"5\r\nhello!\r\n0\r\n\r\n",
    "white space": b"5 \r\nhello\r\n0\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "many trailers": b"0\r\n" + b"A: bcde\r\n" * 10_000,
    "a trailer that goes on": b"0\r\nA: " + b"b" * 10_000,
    "large extensions": (b"1;" + b"x" * 4000 + b"\r\na\r\n") * 20,
}


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


class Raw:
    """Raw bytes to a llmux, and back."""

    def __init__(self, llmux: LlmuxProcess) -> None:
        self.port = cast("int", httpx.URL(llmux.url).port)

    async def exchange(self, *pieces: bytes, seconds: float = 5) -> bytes:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            with trio.fail_after(seconds):
                for piece in pieces:
                    await stream.send_all(piece)
                return await read_all(stream)

    async def codes(self, *pieces: bytes) -> list[int]:
        return statuses(await self.exchange(*pieces))


def statuses(answer: bytes) -> list[int]:
    return [int(piece[:3]) for piece in answer.split(b"HTTP/1.1 ")[1:]]


def says_why(answer: bytes) -> bool:
    body = answer.rpartition(b"\r\n\r\n")[2]
    return bool(json.loads(body)["error"]["code"] == "bad_request")


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_two_readers_of_one_request(rack: Rack, form: str) -> None:
    """Each alone, behind a request, and behind one for an own path."""
    async with running_llmux(rack.write_config(), form) as llmux:
        raw = Raw(llmux)
        for name, template in BAD_HEADS.items():
            head = template % HOST + b"\r\n"
            for before in (b"", HEALTH):
                if head.startswith(b"PRI") and not before:
                    continue  # then it is one: test_http2_is_off
                answer = await raw.exchange(before + head + HEALTH)
                expected = [400] if not before else [200, 400]
                assert (name, statuses(answer)) == (name, expected)
                assert b"connection: close" in answer.lower()
                assert says_why(answer)
        for name, body in BAD_BODIES.items():
            for before in (b"", HEALTH):
                answer = await raw.exchange(before + CHUNKED + body)
                expected = [400] if not before else [200, 400]
                assert (name, statuses(answer)) == (name, expected)
                assert says_why(answer)
        assert rack.backends["a"].received == []
        assert not any("Traceback" in line for line in llmux.lines)
        assert await raw.codes(HEALTH + b"GET http://[::1/x HTTP/1.1\r\nHost: h\r\n\r\n") == [
            200,
            400,
        ]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_limits_of_a_head(rack: Rack, form: str) -> None:
    async with running_llmux(rack.write_config(limits={"header_fields": 20}), form) as llmux:
        raw = Raw(llmux)
        for fields, code in ((19, 200), (20, 431), (9000, 431)):
            head = HEALTH.replace(b"\r\n\r\n", b"\r\n" + b"A: b\r\n" * fields + b"\r\n")
            closing = head.replace(b"A: b", b"Connection: close", 1)
            assert await raw.codes(closing) == [code]
            assert await raw.codes(HEALTH + closing) == [200, code]
        large = HEALTH[:-2] + b"A: " + b"b" * 60_000 + b"\r\nConnection: close\r\n\r\n"
        assert await raw.codes(large) == [200]
        assert await raw.codes(HEALTH + large) == [200, 200]
        endless = HEALTH[:-2] + b"A: " + b"b" * 70_000
        assert await raw.codes(endless) == [431]
        assert await raw.codes(HEALTH + endless) == [200, 431]
        assert await raw.codes(HEALTH + b"\r\n" * 100) == [200, 400]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_what_follows_the_last_request_changes_nothing(rack: Rack, form: str) -> None:
    async with running_llmux(rack.write_config(), form) as llmux:
        raw = Raw(llmux)
        length = b"Content-Length: %d\r\n\r\n" % len(BODY)
        last = CHAT + b"Connection: close\r\n" + length + BODY
        for request in (last, last.replace(b"HTTP/1.1", b"HTTP/1.0")):
            for behind in (b"\r\n", HEALTH, b"\0"):
                for before in (b"", HEALTH):
                    codes = await raw.codes(before + request + behind)
                    assert codes == ([200, 200] if before else [200])
                assert await raw.codes(request, behind) == [200]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_an_answer_comes_before_what_follows_it(rack: Rack, form: str) -> None:
    """A violation, or a request, behind one that still waits for its answer."""
    async with running_llmux(rack.write_config(), form) as llmux:
        raw = Raw(llmux)
        body = json.dumps(chat("a", seconds=0.3)).encode()
        slow = CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body
        bad = b"GET / HTTP/1.1\r\n A: b\r\n\r\n"
        for before in (b"", HEALTH):
            answer = await raw.exchange(before + slow + bad + HEALTH)
            assert statuses(answer) == [200] * bool(before) + [200, 400]
            last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            assert await raw.codes(before + slow + b"\r\n" + last) == [200] * bool(before) + [
                200,
                200,
            ]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_requests_that_are_right_pass(rack: Rack, form: str) -> None:
    async with running_llmux(rack.write_config(), form) as llmux:
        raw = Raw(llmux)
        half = len(BODY) // 2
        chunks = b"%x;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nA: b\r\n\r\n" % (
            half, BODY[:half], len(BODY) - half, BODY[half:],
        )  # fmt: skip
        close = b"Connection: close\r\n"
        chunked = CHUNKED.replace(HOST, HOST + close) + chunks
        for before in (b"", HEALTH):
            for request in (
                chunked,
                b"\r\n" + chunked,
                b"BREW /upstream/a/x HTTP/1.1\r\nHost: h\r\n" + close + b"\r\n",
                b"POST http://h/upstream/a/x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n" + close + b"\r\n",
                b"GET /upstream/a/x HTTP/1.0\r\n\r\n",
                HEALTH.replace(b"\r\n\r\n", b"\r\n" + close + b"Upgrade: h2c\r\n\r\n"),
                HEALTH.replace(b"GET", b"HEAD").replace(b"\r\n\r\n", b"\r\n" + close + b"\r\n"),
            ):  # fmt: skip
                codes = await raw.codes(before + request)
                assert codes == [200] * (1 + bool(before)), request
        assert rack.backends["a"].received[0][1] == BODY
        stream = await trio.open_tcp_stream("127.0.0.1", raw.port)
        async with stream:
            with trio.fail_after(20):
                waits = CHAT.replace(HOST, HOST + close + b"Expect: 100-continue\r\n")
                await stream.send_all(HEALTH)
                await stream.receive_some()
                await stream.send_all(waits + b"Content-Length: %d\r\n\r\n" % len(BODY))
                received = b""
                while b"HTTP/1.1 100 " not in received:
                    received += await stream.receive_some()
                await stream.send_all(BODY)
                assert statuses(await read_all(stream)) == [200]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_request_with_an_upgrade_that_is_ignored_is_left_like_others(
    rack: Rack, form: str
) -> None:
    async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
        body = json.dumps(chat("a", seconds=60)).encode()
        asks = (
            CHAT + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        )
        stream = await trio.open_tcp_stream("127.0.0.1", Raw(llmux).port)
        await stream.send_all(asks + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with trio.fail_after(20):
            while not rack.backends["a"].in_flight:
                await trio.sleep(0.01)
            await stream.aclose()
            while (await client.get("/control/status")).json()["models"]["a"]["in_flight"]:
                await trio.sleep(0.01)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_http2_is_off(rack: Rack, form: str) -> None:
    async with running_llmux(rack.write_config(), form) as llmux:
        raw = Raw(llmux)
        client = h2.connection.H2Connection()
        client.initiate_connection()
        sent = client.data_to_send()
        for pieces in ((sent,), (sent[:10], sent[10:17], sent[17:])):
            answer = await raw.exchange(*pieces)
            assert answer == NO_HTTP2
        events = client.receive_data(answer)
        ended = next(e for e in events if isinstance(e, h2.events.ConnectionTerminated))
        assert ended.error_code == h2.errors.ErrorCodes.HTTP_1_1_REQUIRED
        assert ended.last_stream_id == 0
        close = b"\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n"
        assert await raw.codes(GET.replace(b"/ ", b"/health ").replace(b"\r\n\r\n", close)) == [200]
