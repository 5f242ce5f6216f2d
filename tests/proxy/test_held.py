"""What is held in memory for clients is counted: heads, bodies, answers of llmux's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.config import Limits
from llmux.errors import BodyTooLarge, QueueFull
from llmux.proxy.held import FIELD_BYTES, SMALL_OWN_BYTES, Bodies, Body
from tests.downstream.test_lanes import error_code, post, status
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, running_lane

GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_a_head_counts_once_and_a_body_beside_it() -> None:
    bodies = Bodies(Limits(queued_bytes=2000, body_bytes=500))
    body = Body(bodies, text_bytes=100, fields=2)
    head = 100 + 2 * FIELD_BYTES
    body.count_head()
    body.count_head()
    body.grow(400)
    assert (bodies.held_bytes, body.received_bytes) == (head + 400, 400)
    with pytest.raises(BodyTooLarge):
        body.grow(101)
    assert bodies.held_bytes == 0
    body.release()
    assert bodies.held_bytes == 0


def test_a_head_without_room_is_refused() -> None:
    bodies = Bodies(Limits(queued_bytes=1000))
    first, second = (Body(bodies, text_bytes=100, fields=3) for _ in range(2))
    first.count_head()
    with pytest.raises(QueueFull):
        second.count_head()
    assert bodies.held_bytes == 100 + 3 * FIELD_BYTES


def test_a_small_answer_is_counted_and_never_refused() -> None:
    bodies = Bodies(Limits(queued_bytes=10))
    with bodies.answering(SMALL_OWN_BYTES):
        assert bodies.held_bytes == SMALL_OWN_BYTES
        with pytest.raises(QueueFull), bodies.answering(SMALL_OWN_BYTES + 1):
            pass
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("lane", LANES)
async def test_a_head_counts_until_its_answer_begins(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 0.3})
    async with running_lane(lane, tmp_path, hooks=hooks) as site:
        bodies = site.service.proxy.bodies
        fields = [b"X-%d: y" % number for number in range(90)]
        async with await site.connect() as stream:
            await stream.send_all(post(b'{"model": "a"}', *fields, close=False))
            with trio.fail_after(20):
                while not site.service.board.queue_depths["a"]:
                    await trio.sleep(0.001)
                assert 90 * FIELD_BYTES < bodies.held_bytes < 95 * (FIELD_BYTES + 20)
                assert await stream.receive_some()
                assert bodies.held_bytes == 0


@pytest.mark.parametrize("lane", LANES)
async def test_heads_over_the_limit_are_sent_away(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 0.5})
    limits = {"queued_bytes": 30_000}
    async with running_lane(lane, tmp_path, hooks=hooks, limits=limits) as site:
        fields = [b"X-%d: y" % number for number in range(90)]
        async with await site.connect() as stream:
            await stream.send_all(post(b'{"model": "a"}', *fields, close=False))
            with trio.fail_after(20):
                while not site.service.board.queue_depths["a"]:
                    await trio.sleep(0.001)
                answer = await site.exchange(post(b'{"model": "a"}', *fields))
                assert (status(answer), error_code(answer)) == (429, "queue_full")
                assert status(await site.exchange(GET % b"/health")) == 200
                site.service.proxy.bodies.limit_bytes = 1
                order = post(b'{"mode": "manual"}').replace(b"Host: llmux", b"Host: localhost")
                order = order.replace(b"/v1/chat/completions", b"/control/mode")
                assert status(await site.exchange(order)) == 200, "an operator must get through"
                assert b"HTTP/1.1 " in bytes(await stream.receive_some())


@pytest.mark.parametrize("lane", LANES)
async def test_a_refused_request_keeps_no_body(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client may take a while to hear of it."""
    async with running_lane(lane, tmp_path) as site:
        held: list[int] = []
        proxy = site.service.proxy
        answering = proxy.bodies.answering

        def noting(length: int) -> Any:
            held.append(proxy.bodies.held_bytes)
            return answering(length)

        monkeypatch.setattr(proxy.bodies, "answering", noting)
        answer = await site.exchange(post(b'{"model": "none", "x": "' + b"x" * 300_000 + b'"}'))
        assert (status(answer), held) == (404, [0])


def full(site: Site, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Have an own path give an answer of this size."""
    text = "x" * size
    monkeypatch.setattr(type(site.service.feed), "history", lambda feed, secs: text)


@pytest.mark.parametrize("lane", LANES)
async def test_answers_of_own_paths_count_while_nobody_reads_them(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 20 << 20
    limits = {"queued_bytes": 50 << 20}
    async with running_lane(lane, tmp_path, limits=limits) as site:
        full(site, monkeypatch, size)
        bodies = site.service.proxy.bodies
        async with await site.connect() as one, await site.connect() as other:
            for stream in (one, other):
                await stream.send_all(GET % b"/control/history")
            with trio.fail_after(20):
                while bodies.held_bytes < 2 * size:
                    await trio.sleep(0.001)
                answer = await site.exchange(GET % b"/control/history")
                assert (status(answer), error_code(answer)) == (429, "queue_full")
                assert b"retry-after: 5\r\n" in answer.lower()
                assert status(await site.exchange(GET % b"/health")) == 200
                site.backend.play = play(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert status(await site.exchange(post())) == 200
        with trio.fail_after(20):
            while bodies.held_bytes:
                await trio.sleep(0.001)


@pytest.mark.parametrize("lane", LANES)
async def test_answers_without_a_length_count_piece_by_piece(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        bodies = site.service.proxy.bodies
        async with await site.connect() as stream:
            await stream.send_all(GET % b"/control/events")
            with trio.fail_after(20):
                assert b"200" in bytes(await stream.receive_some())
                while bodies.held_bytes:
                    await trio.sleep(0.001)
