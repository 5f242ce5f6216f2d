"""Comments for those who wait: who gets them, until when, and what may come behind them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.openai.streams import is_at_boundary
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, running_lane, settled

COMMENT = b": waiting for the model\n\n"
EVENTS = b"data: 1\n\ndata: [DONE]\n\n"
CHAT = b"/v1/chat/completions"


def post(path: bytes = CHAT, *headers: bytes, stream: bool | None = True) -> bytes:
    body = json.dumps({"model": "a", "stream": stream}).encode()
    lines = [b"POST %b HTTP/1.1" % path, b"Host: llmux", b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def answer(
    body: bytes, kind: bytes = b"text/event-stream", *headers: bytes, status: bytes = b"200 OK"
) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Type: " + kind, *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def parts(received: bytes) -> tuple[bytes, bytes]:
    """Head and body, without the framing of chunks."""
    head, _, rest = received.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return head, rest
    data = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        data += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return head, data


def slow_to_wake(lane: str, tmp_path: Path) -> AbstractAsyncContextManager[Site]:
    hooks = FakeHooks(seconds={("a", "wake"): 0.15})
    return running_lane(lane, tmp_path, hooks=hooks, policy={"waiting_keepalive_secs": 0.04})


async def behind_comments(site: Site, request: bytes) -> bytes:
    """What follows the comments; there must be some."""
    head, data = parts(await site.exchange(request))
    assert head.startswith(b"HTTP/1.1 200")
    assert data.startswith(COMMENT), data
    return data.replace(COMMENT, b"")


SILENT = {
    "Ollama's chat": (b"/api/chat", b"application/x-ndjson", b'{"done": true}\n'),
    "audio": (b"/v1/audio/speech", b"audio/mpeg", b"\xff\xf3"),
    "Cohere's lines": (b"/v1/chat", b"application/stream+json", b"{}\n"),
    "nothing known": (b"/odd", b"application/json", b"{}"),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", SILENT)
async def test_who_waits_for_no_events_gets_the_answer(
    lane: str, name: str, tmp_path: Path
) -> None:
    path, kind, body = SILENT[name]
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(body, kind))
        head, data = parts(await site.exchange(post(path)))
        assert data == body
        assert b"content-type: " + kind in head.lower()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/responses", b"/completion", b"/odd"])
async def test_who_waits_for_events_gets_comments(lane: str, path: bytes, tmp_path: Path) -> None:
    accepts = [b"Accept: text/event-stream"] if path == b"/odd" else []
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(EVENTS, b"Text/Event-Stream; Charset=UTF-8"))
        assert await behind_comments(site, post(path, *accepts)) == EVENTS


@pytest.mark.parametrize("lane", LANES)
async def test_a_path_that_streams_events_unasked_gets_comments(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(EVENTS))
        assert await behind_comments(site, post(b"/generate_stream", stream=None)) == EVENTS


@pytest.mark.parametrize("lane", LANES)
async def test_no_coding_is_asked_for(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(EVENTS))
        await site.exchange(post(CHAT, b"Accept-Encoding: gzip, br"))
        assert b"\r\naccept-encoding: identity\r\n" in site.backend.received[0].lower()
        assert site.backend.received[0].lower().count(b"accept-encoding") == 1
        await site.exchange(post(b"/api/chat", b"Accept-Encoding: gzip, br"))
        assert b"\r\naccept-encoding: gzip, br\r\n" in site.backend.received[1].lower()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
async def test_what_is_encoded_all_the_same_is_decoded(
    lane: str, coding: bytes, tmp_path: Path
) -> None:
    encoded = gzip.compress(EVENTS) if coding == b"gzip" else zlib.compress(EVENTS)
    async with slow_to_wake(lane, tmp_path) as site:
        said = answer(encoded, b"text/event-stream", b"Content-Encoding: " + coding)
        site.backend.play = play(said)
        assert await behind_comments(site, post()) == EVENTS
        head, data = parts(await site.exchange(post()))  # it does not wait any more
        assert (data, b"content-encoding: " + coding in head.lower()) == (encoded, True)


@pytest.mark.parametrize("lane", LANES)
async def test_a_coding_in_a_second_header_counts(lane: str, tmp_path: Path) -> None:
    twice = [b"Content-Encoding: identity", b"Content-Encoding: gzip"]
    encoded = gzip.compress(EVENTS)
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(encoded, b"text/event-stream", *twice))
        assert await behind_comments(site, post()) == EVENTS
    assert not is_at_boundary(
        [(b"Content-Encoding", b"identity"), (b"content-encoding", b"br")], b""
    )


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("said", "are_events"),
    [(b"data: 1\n\n", True), (b"\xef\xbb\xbfid:1\n\n", True), (b"ev", False), (b"date: 1", False)],
)
async def test_events_are_known_from_bytes_that_come_one_by_one(
    lane: str, said: bytes, are_events: bool, tmp_path: Path
) -> None:
    async def one_by_one(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in said:
            await settled()
            await stream.send_all(b"1\r\n%c\r\n" % byte)
        await stream.send_all(b"0\r\n\r\n")

    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = one_by_one
        received = await behind_comments(site, post())
        assert received == said if are_events else b"backend_error" in received


@pytest.mark.parametrize("lane", LANES)
async def test_a_coding_that_is_not_known_is_an_error(lane: str, tmp_path: Path) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(b"xyz", b"text/event-stream", b"Content-Encoding: br"))
        last = await behind_comments(site, post())
        assert b'"code":"backend_error"' in last
        assert b"'br'" in last


def pausing(
    *pieces: bytes, seconds: float = 0.25
) -> Callable[[trio.SocketStream, bytes], Awaitable[None]]:
    """Send the first piece, pause, send the others."""

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(pieces[0])
        await trio.sleep(seconds)
        for piece in pieces[1:]:
            await stream.send_all(piece)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream\r\nX-Own: yes\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("first", [CHUNKED, CHUNKED + CHUNK[:4]], ids=["head", "size of a chunk"])
async def test_comments_go_on_until_the_first_byte_of_the_body(
    lane: str, first: bytes, tmp_path: Path
) -> None:
    """The head comes at once, as from servers that compute afterwards."""
    policy = {"waiting_keepalive_secs": 0.04}
    async with running_lane(lane, tmp_path, policy=policy) as site:
        await site.exchange(post(stream=False))  # wakes it
        site.backend.play = pausing(first, (CHUNKED + CHUNK)[len(first) :])
        head, data = parts(await site.exchange(post()))
        assert data.count(COMMENT) >= 2
        assert data.replace(COMMENT, b"") == EVENTS
        assert b"x-own: yes" in head.lower(), "its head was there when the status line went out"
        assert head.lower().count(b"content-type") == 1


@pytest.mark.parametrize("lane", LANES)
async def test_a_body_that_comes_in_time_keeps_its_head(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, policy={"waiting_keepalive_secs": 5}) as site:
        await site.exchange(post(stream=False))
        site.backend.play = pausing(CHUNKED, CHUNK, seconds=0.05)
        head, data = parts(await site.exchange(post()))
        assert data == EVENTS
        assert b"Content-Type: Text/Event-Stream".lower() in head.lower()


@pytest.mark.parametrize("lane", LANES)
async def test_a_backend_that_breaks_before_the_first_byte(lane: str, tmp_path: Path) -> None:
    for keepalive_s, told in ((5, b"HTTP/1.1 502"), (0.04, b"HTTP/1.1 200")):
        policy = {"waiting_keepalive_secs": keepalive_s}
        async with running_lane(lane, tmp_path / str(keepalive_s), policy=policy) as site:
            await site.exchange(post(stream=False))

            async def breaks(stream: trio.SocketStream, request: bytes) -> None:
                await pausing(CHUNKED)(stream, request)
                await stream.aclose()

            site.backend.play = breaks
            received = await site.exchange(post())
            assert received.startswith(told)
            assert received.count(b'"code":"backend_error"') == 1
            if told.endswith(b"200"):
                assert received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("body", [b"", b"late"])
async def test_a_stream_that_ends_with_the_connection(
    lane: str, body: bytes, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, policy={"waiting_keepalive_secs": 5}) as site:
        await site.exchange(post(stream=False))

        async def ends(stream: trio.SocketStream, request: bytes) -> None:
            await pausing(HEAD + b"\r\n", body, seconds=0.05)(stream, request)
            await stream.aclose()

        site.backend.play = ends
        _, data = parts(await site.exchange(post()))
        assert data == body


COMPLETION = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}],
}
MESSAGE = {
    "type": "message",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
}


def dumped(said: dict[str, Any]) -> bytes:
    return json.dumps(said, indent=1).encode()


NO_EVENTS = {
    "a completion": (CHAT, b"200 OK", b"application/json", dumped(COMPLETION), b'"delta":{"role"'),
    "a message": (
        b"/v1/messages", b"200 OK", b"application/json", dumped(MESSAGE), b"event: message_stop\n",
    ),
    "lines": (CHAT, b"200 OK", b"application/x-ndjson", b'{"a": 1}\n{"a": 2}', b'data: {"a": 2}\n\n'),
    "no type": (CHAT, b"200 OK", b"", EVENTS, EVENTS),
    "plain text": (CHAT, b"200 OK", b"text/plain", b"data: 1\n\n", b"data: 1\n\n"),
    "JSON as text": (CHAT, b"200 OK", b"text/plain", dumped(COMPLETION), b'"delta":{"role"'),
    "an error": (
        CHAT, b"400 Bad", b"application/json", b'{"error": {"message": "long", "code": 7}}',
        b'data: {"error":{"message":"long","type":"llmux_error","param":null,"code":7}}\n\n',
    ),
    "an error for Anthropic": (
        b"/v1/messages", b"529 Overloaded", b"application/json",
        b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}',
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"',
    ),
    "an error of an odd type": (
        b"/v1/messages", b"500 Bad", b"application/json",
        b'{"error": {"message": "odd", "type": ["x"]}}',
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"odd"',
    ),
    "a number that is none": (
        CHAT, b"200 OK", b"application/json",
        b'{"object": "chat.completion", "choices": [{"message": {}, "logprob": -Infinity}]}',
        b'"delta":{}',
    ),
    "an error in events": (
        CHAT, b"500 Bad", b"text/event-stream", b'event: error\ndata: {"error": "odd"}\n\n',
        b'data: {"error":{"message":"odd"',
    ),
    "a page": (CHAT, b"500 Oops", b"text/html", b"<html>", b"Backend error: answered 500: <html>"),
    "audio": (CHAT, b"200 OK", b"audio/mpeg", b"\xff\xf3", b"Backend error: answered 200: "),
}  # fmt: skip


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", NO_EVENTS)
async def test_what_comes_as_no_events_becomes_some(lane: str, name: str, tmp_path: Path) -> None:
    path, status, kind, body, wanted = NO_EVENTS[name]
    async with slow_to_wake(lane, tmp_path) as site:
        site.backend.play = play(answer(body, kind, status=status))
        assert wanted in await behind_comments(site, post(path))


@pytest.mark.parametrize("lane", LANES)
async def test_comments_go_on_while_an_answer_comes_that_is_no_events(
    lane: str, tmp_path: Path
) -> None:
    async with slow_to_wake(lane, tmp_path) as site:
        whole = answer(dumped(COMPLETION), b"application/json")
        site.backend.play = pausing(whole[:-20], whole[-20:])
        _, data = parts(await site.exchange(post()))
        assert data.count(COMMENT) >= 6, "3 before it was awake"
        assert data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("lane", LANES)
async def test_an_answer_that_is_too_long_to_become_events(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmux.proxy.late.MOST_WHOLE_BYTES", 100)
    async with slow_to_wake(lane, tmp_path) as site:
        bomb = gzip.compress(b" " * 1_000_000)
        site.backend.play = play(answer(bomb, b"application/json", b"Content-Encoding: gzip"))
        assert b"more than 100 bytes" in await behind_comments(site, post())
        assert site.service.proxy.bodies.held_bytes == 0
