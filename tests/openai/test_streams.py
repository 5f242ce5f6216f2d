"""Streams are not buffered on their way, whatever their form; answers of known length may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmux.openai.streams import is_event_stream, media_type, unbuffered
from tests.lanes import LANES, Site, play, running_lane

BODY = b'{"model": "a"}'
HEAD = b"Host: llmux\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY)
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD + BODY

TYPES = [
    b"text/event-stream",
    b"Text/Event-Stream; charset=UTF-8",
    b"application/x-ndjson",
    b"application/stream+json",
    b"application/jsonl",
    b"audio/mpeg",
    b"application/octet-stream",
    b"application/json",
    b"",
]


def answer(content_type: bytes, framing: bytes, body: bytes) -> bytes:
    kind = b"Content-Type: %b\r\n" % content_type if content_type else b""
    return b"HTTP/1.1 200 OK\r\n" + kind + framing + b"\r\n" + body


def buffering(received: bytes) -> list[bytes]:
    lines = received.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    return [line for line in lines if line.startswith(b"x-accel-buffering")]


async def ask(site: Site, request: bytes = POST) -> list[bytes]:
    received = await site.exchange(request)
    assert received.startswith(b"HTTP/1.1 2"), received
    return buffering(received)


@pytest.mark.parametrize("lane", LANES)
async def test_what_has_no_length_is_not_buffered(tmp_path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path) as site:
        for kind in TYPES:
            chunked = answer(kind, b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\n\r\n")
            site.backend.play = play(chunked)
            assert await ask(site) == [b"x-accel-buffering: no"], kind
            site.backend.play = play(answer(kind, b"", b"x"), close=True)
            assert await ask(site) == [b"x-accel-buffering: no"], kind


@pytest.mark.parametrize("lane", LANES)
async def test_what_has_one_may_be_buffered(tmp_path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path) as site:
        for kind in TYPES[2:]:
            site.backend.play = play(answer(kind, b"Content-Length: 1\r\n", b"x"))
            assert await ask(site) == [], kind
        # Events come one by one all the same, and always had it.
        for kind in TYPES[:2]:
            site.backend.play = play(answer(kind, b"Content-Length: 1\r\n", b"x"))
            assert await ask(site) == [b"x-accel-buffering: no"], kind


@pytest.mark.parametrize("lane", LANES)
async def test_what_has_no_body_is_no_stream(tmp_path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert await ask(site) == []
        site.backend.play = play(answer(b"audio/mpeg", b"Transfer-Encoding: chunked\r\n", b""))
        head = b"HEAD /v1/audio/speech?model=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert await ask(site, head) == []


@pytest.mark.parametrize("lane", LANES)
async def test_the_backend_may_say_otherwise(tmp_path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path) as site:
        framing = b"x-accel-buffering: yes\r\nTransfer-Encoding: chunked\r\n"
        site.backend.play = play(answer(b"audio/mpeg", framing, b"1\r\nx\r\n0\r\n\r\n"))
        assert await ask(site) == [b"x-accel-buffering: yes"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"text/event-stream", b"text/event-stream"),
        (b"TEXT/Event-Stream ; charset=utf-8", b"text/event-stream"),
        (b"text/event-streams", b"text/event-streams"),
        (b"", b""),
    ],
)
def test_media_types_have_no_case(value: bytes, kind: bytes) -> None:
    headers = [(b"CONTENT-TYPE", value)]
    assert media_type(headers) == kind
    assert is_event_stream(headers) == (kind == b"text/event-stream")


def test_headers_are_not_changed_in_place() -> None:
    headers = [(b"a", b"b")]
    assert unbuffered(headers) == [(b"a", b"b"), (b"X-Accel-Buffering", b"no")]
    assert headers == [(b"a", b"b")]
