"""The first byte is the first one of the body: a head that comes early says nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from tests.lanes import LANES, Site, play, running_lane

BODY = b'{"model": "a", "stream": true}'
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n" % len(BODY) + BODY
)
THOUGHT_S = 0.3

EVENTS = b"Content-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
EVENT = b"data: {}\n\n"
IN_CHUNKS = b"a\r\n" + EVENT + b"\r\n0\r\n\r\n"

Play = Callable[[trio.SocketStream, bytes], Awaitable[None]]


def thinking(head: bytes, body: bytes, *, status: bytes = b"200 OK", close: bool = False) -> Play:
    """The head at once, the body after a while."""

    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n")
        await trio.sleep(THOUGHT_S)
        await stream.send_all(body)
        if close:
            await stream.aclose()

    return answer


async def told(site: Site, entries: list[Any]) -> dict[str, Any]:
    def lines() -> list[Any]:
        return [each for each in entries if each["event"] == "request"]

    before = len(lines())
    await site.exchange(POST)
    with trio.fail_after(20):
        while len(lines()) == before:
            await trio.sleep(0.001)
    found: dict[str, Any] = lines()[-1]
    return found


FORMS = [
    thinking(EVENTS + CHUNKED, IN_CHUNKS),
    thinking(EVENTS, EVENT, close=True),
    thinking(b"Content-Type: application/json\r\nContent-Length: 2\r\n", b"{}"),
]


@pytest.mark.parametrize("lane", LANES)
async def test_an_early_head_is_not_the_first_byte(tmp_path: Path, lane: str) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            for form in FORMS:
                site.backend.play = form
                line = await told(site, entries)
                assert 1000 * THOUGHT_S * 0.9 <= line["first_byte_ms"] <= line["duration_ms"]


@pytest.mark.parametrize("lane", LANES)
async def test_what_comes_with_the_head_is_seen(tmp_path: Path, lane: str) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + EVENTS + CHUNKED + b"\r\n"

    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(head + b"a\r\n" + EVENT + b"\r\n")
        await trio.sleep(THOUGHT_S)
        await stream.send_all(b"0\r\n\r\n")

    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            await told(site, entries)  # wakes the model
            site.backend.play = answer
            line = await told(site, entries)
    assert line["duration_ms"] - line["first_byte_ms"] >= 1000 * THOUGHT_S * 0.9


@pytest.mark.parametrize("lane", LANES)
async def test_where_there_is_no_body_it_is_the_head(tmp_path: Path, lane: str) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            for head in (b"204 No Content\r\n\r\n", b"200 OK\r\nContent-Length: 0\r\n\r\n"):
                site.backend.play = play(b"HTTP/1.1 " + head)
                assert (await told(site, entries))["first_byte_ms"] > 0
            site.backend.play = play(close=True)
            line = await told(site, entries)
            assert (line["status"], line["first_byte_ms"] > 0) == (502, True)


@pytest.mark.parametrize("lane", LANES)
async def test_a_body_that_never_begins_has_none(tmp_path: Path, lane: str) -> None:
    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + EVENTS + CHUNKED + b"\r\n")
        await trio.sleep(0.05)
        await stream.aclose()

    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            site.backend.play = answer
            line = await told(site, entries)
    assert (line["outcome"], line["first_byte_ms"]) == ("cut", None)


@pytest.mark.parametrize("lane", LANES)
async def test_a_request_answers_once_the_body_comes(tmp_path: Path, lane: str) -> None:
    """Servers send the head at once, and compute for minutes."""
    going = trio.Event()

    async def answer(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + EVENTS + CHUNKED + b"\r\n")
        await going.wait()
        await stream.send_all(b"a\r\n" + EVENT + b"\r\n")
        await trio.sleep_forever()

    async def phase() -> tuple[str, Any]:
        async with site.client() as client:
            (request,) = (await client.get("/control/requests")).json()["requests"]
        return request["phase"], request["first_byte_secs"]

    async with running_lane(lane, tmp_path) as site:
        site.backend.play = answer
        stream = await site.connect()
        async with stream:
            await stream.send_all(POST)
            assert b"HTTP/1.1 200" in await stream.receive_some()
            assert await phase() == ("forwarding", None)
            going.set()
            assert await stream.receive_some()
            name, first_byte_secs = await phase()
            assert name == "answering"
            assert first_byte_secs > 0


@pytest.mark.parametrize("lane", LANES)
async def test_comments_of_llmux_are_not_the_first_byte(tmp_path: Path, lane: str) -> None:
    policy = {"waiting_keepalive_secs": 0.05}
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True, policy=policy) as site:
            site.backend.play = play(b"HTTP/1.1 200 OK\r\n" + EVENTS + CHUNKED + b"\r\n", IN_CHUNKS)
            await told(site, entries)

            async def slow(stream: trio.SocketStream, _request: bytes) -> None:
                await trio.sleep(THOUGHT_S)
                head = b"HTTP/1.1 200 OK\r\n" + EVENTS + CHUNKED + b"\r\n"
                await stream.send_all(head + IN_CHUNKS)

            site.backend.play = slow
            line = await told(site, entries)
    assert line["first_byte_ms"] >= 1000 * THOUGHT_S * 0.9


@pytest.mark.parametrize("lane", LANES)
async def test_only_streams_have_a_first_token(tmp_path: Path, lane: str) -> None:
    lines = b"Content-Type: Application/X-NDJSON\r\n"
    name = "llmux_time_to_first_token_seconds"
    async with running_lane(lane, tmp_path) as site:
        for form in (
            thinking(b"Content-Type: application/json\r\nContent-Length: 2\r\n", b"{}"),
            thinking(b"Content-Type: application/json\r\n" + CHUNKED, b"2\r\n{}\r\n0\r\n\r\n"),
            thinking(b"Content-Type: audio/mpeg\r\n" + CHUNKED, b"1\r\nx\r\n0\r\n\r\n"),
            thinking(EVENTS + CHUNKED, IN_CHUNKS, status=b"500 No"),
        ):
            site.backend.play = form
            await site.exchange(POST)
        async with site.client() as client:
            assert name + "_count{" not in (await client.get("/metrics")).text
        for form in (FORMS[0], thinking(lines + CHUNKED, IN_CHUNKS)):
            site.backend.play = form
            await site.exchange(POST)
        await trio.sleep(1.0)  # as long as one scrape is given to all
        async with site.client() as client:
            text = (await client.get("/metrics")).text
    assert f'{name}_count{{model="a"}} 2.0' in text
    (total,) = [line for line in text.splitlines() if line.startswith(name + "_sum")]
    assert float(total.rpartition(" ")[2]) >= 2 * THOUGHT_S * 0.9
    durations = [line for line in text.splitlines() if "request_duration_seconds_count" in line]
    assert sum(float(line.rpartition(" ")[2]) for line in durations) == 6
