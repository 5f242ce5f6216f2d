"""What is cut ends at once and alone: on every lane, in every phase of a request."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from llmux.downstream.fast_connection import ClientConnection
from llmux.downstream.fast_request import FastRequest
from llmux.downstream.fastlane import FastLane
from tests.downstream.test_lanes import body_of, error_code, post, status
from tests.lanes import LANES_AND_TLS, OK, Site, play, read_all, running_lane

ALL_LANES = [*LANES_AND_TLS, "handed over"]
"""The last: the fast lane's, with a connection that has gone to Hypercorn."""

GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def connect(site: Site, lane: str) -> trio.SocketStream:
    """A connection on a lane."""
    stream = await site.connect()
    if lane == "handed over":
        await stream.send_all(GET % b"/health")
        answer = b""
        while not answer.endswith(b"}"):
            answer += await stream.receive_some()
    return stream


@asynccontextmanager
async def on_lane(lane: str, folder: Path, **settings: object) -> AsyncIterator[Site]:
    name = "fast" if lane == "handed over" else lane
    async with running_lane(name, folder, **settings) as site:  # type: ignore[arg-type]
        yield site


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.001)


async def flood(stream: trio.SocketStream, request: bytes) -> None:
    """More than a client's buffers take, unless it reads."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")


async def until_stuck(site: Site) -> None:
    """Wait until an answer goes no further, because its client reads nothing."""
    await until(lambda: site.service.proxy.journeys.list(1).total == 1)
    before, same = -1, 0
    with trio.fail_after(20):
        while same < 20:
            (one,) = site.service.proxy.journeys.list(1).requests
            same = same + 1 if one.bytes_out == before and before > 0 else 0
            before = one.bytes_out
            await trio.sleep(0.01)


@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("how", ["cancel", "cut", "drain"])
async def test_a_client_that_reads_nothing_does_not_delay_a_cut(
    lane: str, how: str, tmp_path: Path
) -> None:
    """Hypercorn shields what it sends."""
    policy = {"drain_timeout_secs": 0.1}
    async with on_lane(lane, tmp_path, policy=policy, models=["a", "b"]) as site:
        site.backend.play = flood
        async with await connect(site, lane) as stream:
            await stream.send_all(post())
            await until_stuck(site)
            begun_at = trio.current_time()
            if how == "drain":
                await site.service.board.force_switch("b")
            elif how == "cut":
                site.service.board.models["a"].in_flight.cut()
            else:
                (one,) = site.service.proxy.journeys.list(1).requests
                site.service.proxy.journeys.cancel(one.id)
            await until(lambda: not site.service.proxy.journeys.list(1).total, 3)
            assert trio.current_time() - begun_at < 3  # and not `client_stall_secs`
            await until(lambda: not site.backend.open)
            with trio.fail_after(20):
                answer = await read_all(stream)
        assert not answer.endswith(b"0\r\n\r\n"), "no false end"
        assert count(site) == {"200": 1}


def count(site: Site) -> dict[str, int]:
    """How often requests for the model were counted, by status."""
    (family,) = [
        family
        for family in site.service.metrics.registry.collect()
        if family.name == "llmux_requests"
    ]
    counted: Counter[str] = Counter()
    for sample in family.samples:
        if sample.name.endswith("_total"):
            counted[sample.labels["status"]] += int(sample.value)
    return dict(counted)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_request_is_cancelled_while_its_body_is_read(
    lane: str, is_chunked: bool, tmp_path: Path
) -> None:
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 100"
    head = b"POST /x HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % framing
    async with on_lane(lane, tmp_path) as site:
        journeys = site.service.proxy.journeys
        async with await connect(site, lane) as stream:
            await stream.send_all(head + b'f\r\n{"model": "a"' + b"\r\n")
            await until(lambda: journeys.list(1).total == 1)
            (one,) = journeys.list(1).requests
            assert one.phase == "reading"
            journeys.cancel(one.id)
            with trio.fail_after(20):
                answer = await read_all(stream)
        assert (status(answer), error_code(answer)) == (503, "cancelled")
        await until(lambda: not journeys.list(1).total)
        assert site.service.proxy.bodies.held_bytes == 0
        assert count(site) == {"503": 1}


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_request_is_cancelled_while_its_client_takes_no_refusal(
    lane: str, tmp_path: Path
) -> None:
    """It has been refused, and waits only for its client to take the answer."""
    async with on_lane(lane, tmp_path) as site:
        journeys = site.service.proxy.journeys
        refused = post(b'{"model": "x"}', close=False)
        async with await connect(site, lane) as stream:
            full = False
            while not full:
                with trio.move_on_after(0.3) as sending:
                    await stream.send_all(500 * refused)
                full = sending.cancelled_caught
            await until(lambda: journeys.list(1).total == 1)
            (one,) = journeys.list(1).requests
            journeys.cancel(one.id)
            await until(lambda: not journeys.list(1).total, 2)


async def test_a_cut_behind_the_last_byte_leaves_the_next_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is cut as the answer's last piece has come, and is sent without a checkpoint."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    async with running_lane("fast", tmp_path) as site:
        send = ClientConnection.send
        cuts = 0

        async def send_and_cut(connection: ClientConnection, data: bytes) -> None:
            nonlocal cuts
            await send(connection, data)
            if data.endswith(b"0\r\n\r\n") and not cuts:
                cuts += 1
                site.service.board.models["a"].in_flight.cut()

        monkeypatch.setattr(ClientConnection, "send", send_and_cut)
        site.backend.play = play(answer)
        whole = await site.exchange(post(close=False) + post(close=False) + post())
        assert cuts == 1
        assert whole.count(b"HTTP/1.1 200 ") == 3
        assert count(site) == {"200": 3}


async def test_a_cut_behind_the_last_byte_leaves_an_own_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_lane("fast", tmp_path) as site:
        relay = FastRequest.relay

        async def relay_and_cut(request: FastRequest, *args: object) -> None:
            await relay(request, *args)  # type: ignore[arg-type]
            site.service.board.models["a"].in_flight.cut()

        monkeypatch.setattr(FastRequest, "relay", relay_and_cut)
        site.backend.play = play(OK)
        last = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        whole = await site.exchange(post(close=False) + last)
        assert whole.count(b"HTTP/1.1 200 ") == 2


async def test_who_left_is_known_behind_a_cut_that_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A departure is told once only."""
    async with running_lane("fast", tmp_path) as site:
        relay = FastRequest.relay
        left = trio.Event()

        async def relay_and_cut(request: FastRequest, *args: object) -> None:
            await relay(request, *args)  # type: ignore[arg-type]
            site.service.board.models["a"].in_flight.cut()
            with trio.CancelScope(shield=True):
                await left.wait()

        monkeypatch.setattr(FastRequest, "relay", relay_and_cut)
        site.backend.play = play(OK)
        async with await site.connect() as stream:
            await stream.send_all(post(close=False) + post(close=False))
            await stream.receive_some()
            await stream.send_eof()
            await trio.sleep(0.05)
            left.set()
            with trio.fail_after(20):
                await read_all(stream)
        await until(lambda: not site.service.proxy.journeys.list(1).total)
        assert len(site.backend.received) == 1


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_the_last_event_still_comes_when_a_stream_is_cut_between_two(
    lane: str, tmp_path: Path
) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with on_lane(lane, tmp_path) as site:
        site.backend.play = play(head + b"9\r\ndata: 1\n\n\r\n")
        async with await connect(site, lane) as stream:
            await stream.send_all(post())
            answer = b""
            with trio.fail_after(20):
                while b"data: 1" not in answer:
                    answer += await stream.receive_some()
                site.service.board.models["a"].in_flight.cut()
                answer += await read_all(stream)
    last = answer.rpartition(b"data: ")[2].partition(b"\n")[0]
    assert json.loads(last)["error"]["code"] == "not_ready"


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_who_closes_its_side_and_reads_nothing_has_left(lane: str, tmp_path: Path) -> None:
    async with on_lane(lane, tmp_path) as site:
        site.backend.play = flood
        async with await connect(site, lane) as stream:
            await stream.send_all(post())
            await until_stuck(site)
            await stream.send_eof()
            await until(lambda: not site.service.proxy.journeys.list(1).total, 4)
            assert not site.in_flight


async def test_a_request_that_has_come_is_not_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle for too long, but for a request that nobody has read yet; and the same at a stop."""
    lanes: list[FastLane] = []
    init = FastLane.__init__

    def keep(lane: FastLane, *args: object, **named: object) -> None:
        init(lane, *args, **named)  # type: ignore[arg-type]
        lanes.append(lane)

    monkeypatch.setattr(FastLane, "__init__", keep)
    for stops in (False, True):
        async with running_lane("fast", tmp_path) as site:
            site.backend.play = play(OK)
            async with await site.connect() as stream:
                await stream.send_all(post(close=False))
                await stream.receive_some()
                await until(lambda: bool(lanes[-1]._idle_since))
                stream.socket._sock.send(post())  # type: ignore[attr-defined]
                lanes[-1].stop() if stops else lanes[-1]._close_idle(float("inf"))
                with trio.fail_after(20):
                    answer = await read_all(stream)
            assert (status(answer), body_of(answer)) == (200, b"ok")


async def test_requests_that_came_together_yield_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals are sent without waiting: a connection full of them held everybody else up."""
    served: list[int] = []
    async with running_lane("fast", tmp_path) as site:
        refused = post(b'{"model": "x"}', close=False)
        async with await site.connect() as stream, trio.open_nursery() as nursery:

            async def count_turns() -> None:
                while True:
                    served.append(site.service.proxy.journeys._begun)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(count_turns)
            await stream.send_all(200 * refused + post(b'{"model": "x"}'))
            with trio.fail_after(20):
                answer = await read_all(stream)
            nursery.cancel_scope.cancel()
    assert answer.count(b"HTTP/1.1 404 ") == 201
    assert max(after - before for before, after in itertools.pairwise(served)) <= 2
