"""Messages of WebSockets that Hypercorn puts together are counted, like bodies."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypercorn.trio.worker_context import EventWrapper as TrioEvent
from hypercorn.typing import WebsocketReceiveEvent

from llmux.base.wildcards import Names
from llmux.config import Limits
from llmux.errors import QueueFull
from llmux.proxy.held import SMALL_OWN_BYTES, Bodies, Message
from llmux.proxy.opening import FirstMessage
from llmux.server.hypercorn_side import RULES
from llmux.server.hypercorn_side.inbox import MOST_BYTES, Inbox
from tests.lanes import LANES, Site, read_all, running_lane

ROOM = 1 << 20
PIECE = b"\x02\xff" + (100_000).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 100_000
"""A frame that begins a message, masked with zeros; those that follow are of the kind 0."""

HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def pieces(count: int) -> bytes:
    """So many frames of one message that goes on."""
    return PIECE + (b"\0" + PIECE[1:]) * (count - 1)


@asynccontextmanager
async def open_socket(site: Site, path: bytes) -> AsyncIterator[trio.SocketStream]:
    """A WebSocket that Hypercorn serves, in both lanes: behind a request for an own path."""
    async with await site.connect() as stream:
        with trio.fail_after(10):
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += await stream.receive_some()
            await stream.send_all(HANDSHAKE % path)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += await stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 101 ")
            yield stream


async def until_held(site: Site, low: int, high: int) -> None:
    bodies = site.service.proxy.bodies
    with trio.fail_after(20):
        while not low <= bodies.held_bytes <= high:
            await trio.sleep(0.001)


@pytest.mark.parametrize("lane", LANES)
async def test_a_message_that_is_coming_counts(lane: str, tmp_path: Path) -> None:
    """Before there is a backend for it, too."""
    async with running_lane(lane, tmp_path) as site:
        async with open_socket(site, b"/v1/realtime") as stream:
            await stream.send_all(pieces(3))
            await until_held(site, 300_000, 310_000)
        await until_held(site, 0, 0)  # its client has left


@pytest.mark.parametrize("lane", LANES)
async def test_messages_over_the_limit_are_refused(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, limits={"queued_bytes": ROOM}) as site:
        async with open_socket(site, b"/v1/realtime") as one:
            await one.send_all(pieces(6))
            await until_held(site, 600_000, 610_000)
            async with open_socket(site, b"/v1/realtime") as other:
                await other.send_all(pieces(5))
                answer = await read_all(other)
                assert b"\x03\xf5queue_full: " in answer  # 1013
            await until_held(site, 600_000, 610_000)
        await until_held(site, 0, 0)


def test_a_small_message_is_never_refused() -> None:
    bodies = Bodies(Limits(queued_bytes=10))
    message = Message(bodies)
    message.grow(SMALL_OWN_BYTES)
    with pytest.raises(QueueFull):
        message.grow(1)
    assert bodies.held_bytes == SMALL_OWN_BYTES
    message.release()
    assert bodies.held_bytes == 0


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> Bodies:
    """What messages on Hypercorn's side are counted in."""
    counted = Bodies(Limits())
    monkeypatch.setattr(RULES, "bodies", counted)
    return counted


async def test_what_the_app_has_not_taken_is_bounded_in_bytes(bodies: Bodies) -> None:
    """Ten messages of 16 MiB would wait behind a backend that reads nothing."""
    inbox = Inbox(10, TrioEvent)
    data = b"x" * MOST_BYTES
    put = 0

    async def fill() -> None:
        nonlocal put
        for _ in range(3):
            await inbox.put({"type": "websocket.receive", "bytes": data, "text": None})
            put += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        for taken in range(3):
            await trio.testing.wait_all_tasks_blocked()
            assert put == min(taken + 1, 3)
            assert bodies.held_bytes <= 3 * MOST_BYTES
            await inbox.get()
    assert bodies.held_bytes == MOST_BYTES  # the app has the last one
    await inbox.close()
    assert bodies.held_bytes == 0


async def test_what_waits_for_room_counts_until_it_is_given_up(bodies: Bodies) -> None:
    inbox = Inbox(10, TrioEvent)
    message: WebsocketReceiveEvent = {
        "type": "websocket.receive",
        "bytes": b"x" * MOST_BYTES,
        "text": None,
    }
    await inbox.put(message)
    with trio.move_on_after(0):
        await inbox.put(message)
    assert bodies.held_bytes == MOST_BYTES
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, message)
        await trio.testing.wait_all_tasks_blocked()
        assert bodies.held_bytes == 2 * MOST_BYTES
        await inbox.close()
    assert bodies.held_bytes == 0


def test_a_first_message_takes_no_more_than_its_bytes_while_it_waits() -> None:
    """What JSON says takes 25 times as much as what it is written in."""
    data = b'{"model":"a","x":[' + b"{}," * 20_000 + b"1]}"
    tracemalloc.start()
    try:
        message = FirstMessage(data, Names({"a": "a"}))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * len(data)
    assert json.loads(message.renamed('b"')) == {"model": 'b"', "x": [{}] * 20_000 + [1]}
