"""What is quiet ends: a stream whose backend sends nothing, a WebSocket that nobody uses."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Ping, TextMessage

from llmux.config import parse_config
from llmux.observe.schemas import AliveTrouble
from llmux.openai.streams import streams_unasked
from llmux.switching.model import Phase
from tests.downstream.test_lane_cuts import ALL_LANES, connect, on_lane, until
from tests.downstream.test_lanes import HANDSHAKE, SWITCHING, body_of, error_code, post, status
from tests.fakes import FakeHooks
from tests.lanes import OK, Site, play, read_all
from tests.server.test_hypercorn_side import close_code, echo_frames, frame

LIMIT_S = 0.5
SHORT = {"stream_idle_secs": LIMIT_S}
STREAM = post(b'{"model": "a", "stream": true}')
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def event(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


def last_code(answer: bytes) -> str:
    """The code in the last event of a stream."""
    last = answer.rpartition(b"data: ")[2].partition(b"\n")[0]
    return str(json.loads(last)["error"]["code"])


async def read_until_closed(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


# ---- Streams ----


@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("sent", [b"", EVENTS, EVENTS + event(b"data: 1\n\n")])
async def test_a_stream_of_which_nothing_comes_has_failed(
    lane: str, sent: bytes, tmp_path: Path
) -> None:
    async def fall_silent(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(sent)
        await read_until_closed(stream)

    async with on_lane(lane, tmp_path, model_settings=SHORT) as site:
        site.backend.play = fall_silent
        async with await connect(site, lane) as stream:
            await stream.send_all(STREAM)
            with trio.fail_after(6):
                answer = await read_all(stream)
        if sent:
            assert (status(answer), last_code(answer)) == (200, "backend_error")
        else:
            assert (status(answer), error_code(answer)) == (502, "backend_error")
        assert b"stream_idle_secs" in answer
        assert not answer.endswith(END), "no false end"
        await until(lambda: not site.backend.open)
        health = site.service.board.groups["default"].health
        model = site.service.board.models["a"]
        trouble = AliveTrouble(failures=1, limit=3, error="a stream has been silent")
        await until(lambda: health.trouble_of(model) == trouble)


@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("path", [b"/api/chat", b"/upstream/a/api/generate", b"/generate_stream"])
async def test_a_path_that_streams_unasked_has_failed_too(
    lane: str, path: bytes, tmp_path: Path
) -> None:
    async def never_begin(stream: trio.SocketStream, request: bytes) -> None:
        await read_until_closed(stream)

    async with on_lane(lane, tmp_path, model_settings=SHORT) as site:
        site.backend.play = never_begin
        async with await connect(site, lane) as stream:
            await stream.send_all(post().replace(b"/v1/chat/completions", path))
            with trio.fail_after(6):
                answer = await read_all(stream)
        assert status(answer) == 502
        assert b"stream_idle_secs" in answer


@pytest.mark.parametrize(
    ("target", "body", "streams"),
    [
        (b"/api/chat", b"{}", True),
        (b"/ollama/api//generate/?x", b'{"stream": true}', True),
        (b"/api/chat", b'{"stream" :\nfalse}', False),
        (b"/api/chat", b" " * 300_000, False),
        (b"/generate_stream", b'{"inputs": "x"}', True),
        (b"/api/embed", b"{}", False),
        (b"/generate", b"{}", False),
        (b"/api/v1/chat/completions", b"{}", False),
        (b"/v1/x?y=/api/chat", b"{}", False),
    ],
)
def test_paths_that_stream_unasked(target: bytes, body: bytes, streams: bool) -> None:
    assert streams_unasked(target, body) == streams


@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("how", [b"Content-Length: 9", b"Content-Encoding: gzip"])
async def test_no_event_is_sent_where_it_could_not_be_read(
    lane: str, how: bytes, tmp_path: Path
) -> None:
    """It would fill an answer whose length is known, or break one that is compressed."""
    framing = b"" if b"Length" in how else b"Transfer-Encoding: chunked\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b%b\r\n\r\n"

    async def fall_silent(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(head % (framing, how))
        await read_until_closed(stream)

    async with on_lane(lane, tmp_path, model_settings=SHORT) as site:
        site.backend.play = fall_silent
        async with await connect(site, lane) as stream:
            await stream.send_all(STREAM)
            with trio.fail_after(6):
                answer = await read_all(stream)
        assert not answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_an_answer_that_is_no_stream_may_take_its_time(lane: str, tmp_path: Path) -> None:
    async def think(stream: trio.SocketStream, request: bytes) -> None:
        await trio.sleep(3 * LIMIT_S)
        await stream.send_all(OK)

    async with on_lane(lane, tmp_path, model_settings=SHORT) as site:
        site.backend.play = think
        async with await connect(site, lane) as stream:
            await stream.send_all(post())
            with trio.fail_after(6):
                assert status(await read_all(stream)) == 200


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_client_that_takes_nothing_does_not_make_its_backend_silent(
    lane: str, tmp_path: Path
) -> None:
    size = 4 << 20

    async def send_all(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(EVENTS + b"%x\r\n" % size + bytes(size) + b"\r\n" + END)

    async with on_lane(lane, tmp_path, model_settings=SHORT) as site:
        site.backend.play = send_all
        async with await connect(site, lane) as stream:
            await stream.send_all(STREAM)
            await trio.sleep(3 * LIMIT_S)
            with trio.fail_after(10):
                answer = await read_all(stream)
        assert answer.endswith(END)
        assert len(answer) > size


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_whatever_a_backend_sends_is_a_sign_of_life(lane: str, tmp_path: Path) -> None:
    """Comments for one stream; and for another, that waits inside of it, what others get."""
    ends = trio.Event()

    async def take_turns(stream: trio.SocketStream, request: bytes) -> None:
        if len(site.backend.received) == 1:
            await stream.send_all(EVENTS)
            for _ in range(12):
                await trio.sleep(LIMIT_S / 4)
                await stream.send_all(event(b": still here\n\n"))
            ends.set()
        await ends.wait()
        await stream.send_all(event(b"data: x\n\n") + END if stream is first else EVENTS + END)

    first: Any = None
    async with on_lane(lane, tmp_path, model_settings=SHORT) as site:

        async def note_first(stream: trio.SocketStream, request: bytes) -> None:
            nonlocal first
            first = first or stream
            await take_turns(stream, request)

        site.backend.play = note_first
        async with await connect(site, lane) as one, await connect(site, lane) as other:
            await one.send_all(STREAM)
            await until(lambda: site.backend.received)
            await other.send_all(STREAM)
            with trio.fail_after(10):
                assert (await read_all(one)).endswith(END)
                assert (await read_all(other)).endswith(END)


async def test_a_switch_gets_past_a_silent_stream_and_three_bring_a_model_down(
    tmp_path: Path,
) -> None:
    hooks = FakeHooks()
    async with on_lane(
        "fast", tmp_path, model_settings=SHORT, models=["a", "b"], hooks=hooks
    ) as site:
        site.backend.play = lambda stream, _: read_until_closed(stream)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(site.exchange, STREAM)
            with trio.fail_after(8):
                while ("a", "sleep") not in hooks.calls:
                    await trio.sleep(0.01)
        await site.until_idle()
        nothing_yet = len(site.backend.received)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.exchange, STREAM)
            await until(lambda: len(site.backend.received) > nothing_yet)
            with trio.fail_after(20):
                await site.service.board.force_switch("b")


# ---- WebSockets ----


async def echo_and_ping(stream: trio.SocketStream, request: bytes) -> None:
    """As uvicorn does: a ping now and then, whether somebody uses the WebSocket or not."""
    frames = Connection(ConnectionType.SERVER)

    async def ping() -> None:
        await trio.sleep(0.05)
        with suppress(trio.BrokenResourceError):
            while True:
                with suppress(trio.BusyResourceError):  # an echo is being sent
                    await stream.send_all(frames.send(Ping(payload=b"x")))
                await trio.sleep(LIMIT_S / 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        with suppress(trio.BrokenResourceError):
            await echo_frames(stream, request)
        nursery.cancel_scope.cancel()


async def open_socket(site: Site, lane: str) -> trio.SocketStream:
    stream = await connect(site, lane)
    await stream.send_all(HANDSHAKE)
    received = b""
    with trio.fail_after(20):
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
    return stream


async def say(stream: trio.SocketStream, text: bytes) -> None:
    """Say something, and hear what comes back, pings apart."""
    await stream.send_all(frame(text, opcode=1))
    received = b""
    with trio.fail_after(20):
        while b"\x81" not in received:
            received += await stream.receive_some()


def policy(**settings: Any) -> dict[str, Any]:
    return {"websocket_idle_secs": LIMIT_S, **settings}


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_quiet_websocket_gives_way_to_a_switch(lane: str, tmp_path: Path) -> None:
    async with on_lane(lane, tmp_path, policy=policy(), models=["a", "b"]) as site:
        site.backend.play = echo_and_ping
        async with await open_socket(site, lane) as stream:
            await say(stream, b"hello")
            with trio.fail_after(20):
                await site.service.board.force_switch("b")
                assert close_code(await read_all(stream)) == 1013
        await until(lambda: not site.backend.open)


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_websocket_that_is_used_holds_a_switch(lane: str, tmp_path: Path) -> None:
    async with on_lane(lane, tmp_path, policy=policy(), models=["a", "b"]) as site:
        site.backend.play = echo_and_ping
        async with await open_socket(site, lane) as stream, trio.open_nursery() as nursery:
            await say(stream, b"hello")
            nursery.start_soon(site.service.board.force_switch, "b")
            for _ in range(15):
                await trio.sleep(LIMIT_S / 5)
                await say(stream, b"on")
            assert site.service.board.models["a"].phase is Phase.DRAINING
            with trio.fail_after(20):
                assert close_code(await read_all(stream)) == 1013


@pytest.mark.parametrize("lane", ALL_LANES)
@pytest.mark.parametrize("by_model", [True, False])
async def test_cut_ends_a_websocket_that_is_used(lane: str, by_model: bool, tmp_path: Path) -> None:
    """And a model may say other than the policy."""
    how, other = ({"websocket": "cut"}, {"websocket": "hold"})
    settings = {"policy": policy(**(other if by_model else how), websocket_idle_secs=None)}
    async with on_lane(
        lane, tmp_path, models=["a", "b"], model_settings=how if by_model else {}, **settings
    ) as site:
        site.backend.play = echo_and_ping
        async with await open_socket(site, lane) as stream:
            await say(stream, b"hello")
            with trio.fail_after(1):
                await site.service.board.force_switch("b")
                assert close_code(await read_all(stream)) == 1013


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_ignore_lets_a_websocket_go_on(lane: str, tmp_path: Path) -> None:
    settings = {"models": ["a", "b"], "model_settings": {"websocket": "ignore"}}
    async with on_lane(lane, tmp_path, **settings) as site:
        site.backend.play = echo_frames
        async with await open_socket(site, lane) as stream:
            await say(stream, b"hello")
            assert site.in_flight == 0
            with trio.fail_after(1):
                await site.service.board.force_switch("b")
            await say(stream, b"still here")
            journeys = site.service.proxy.journeys
            journeys.cancel(journeys.list(1).requests[0].id)
            with trio.fail_after(20):
                await read_all(stream)
        await until(lambda: not site.service.proxy.journeys.list(1).total)


async def test_hold_without_a_limit_holds(tmp_path: Path) -> None:
    settings = {"models": ["a", "b"], "policy": policy(websocket_idle_secs=None)}
    async with on_lane("fast", tmp_path, **settings) as site:
        site.backend.play = echo_frames
        async with await open_socket(site, "fast") as stream:
            await say(stream, b"hello")
            with trio.move_on_after(2 * LIMIT_S) as waiting:
                await site.service.board.force_switch("b")
            assert waiting.cancelled_caught
            await say(stream, b"still here")


async def test_a_quiet_websocket_gives_its_slot_to_who_waits_for_one(tmp_path: Path) -> None:
    settings = {"policy": policy(), "model_settings": {"max_in_flight": 1}}
    async with on_lane("fast", tmp_path, **settings) as site:
        site.backend.play = echo_frames
        async with await open_socket(site, "fast") as stream:
            await say(stream, b"hello")
            site.backend.play = play(OK)
            assert body_of(await site.exchange(post())) == b"ok"
            assert close_code(await read_all(stream)) == 1013


async def test_nobody_waits_for_a_quiet_websocket(tmp_path: Path) -> None:
    """It stays open for as long as nothing is in its way."""
    async with on_lane("fast", tmp_path, policy=policy()) as site:
        site.backend.play = echo_frames
        async with await open_socket(site, "fast") as stream:
            await say(stream, b"hello")
            await trio.sleep(3 * LIMIT_S)
            await say(stream, b"still here")


async def test_a_quiet_websocket_does_not_keep_a_model_awake(tmp_path: Path) -> None:
    settings = {"policy": policy(), "model_settings": {"idle_sleep_secs": 0.1}}
    async with on_lane("fast", tmp_path, **settings) as site:
        site.backend.play = echo_and_ping
        async with await open_socket(site, "fast") as stream:
            await say(stream, b"hello")
            assert site.service.board.models["a"].phase is Phase.AWAKE
            await until(lambda: site.service.board.models["a"].phase is Phase.ASLEEP)
            assert close_code(await read_all(stream)) == 1013


async def test_a_quiet_websocket_does_not_keep_a_model_from_being_removed(tmp_path: Path) -> None:
    async with on_lane("fast", tmp_path, policy=policy(), models=["a", "b"]) as site:
        site.backend.play = echo_frames
        async with await open_socket(site, "fast") as stream:
            await say(stream, b"hello")
            gone = trio.Event()
            site.service.board.groups["default"].remove("a", gone.set)
            with trio.fail_after(20):
                await gone.wait()
                await read_all(stream)
            site.service.board.groups["default"].add("a")


def test_the_keys_and_their_defaults(tmp_path: Path) -> None:
    model = {"port": 1, "wake": "x", "sleep": "x", "alive": "x"}
    config = parse_config(
        {"models": {"a": model, "b": {**model, "websocket": "cut", "stream_idle_secs": None}}},
        directory=tmp_path,
    )
    assert (config.policy.websocket, config.policy.websocket_idle_secs) == ("hold", 300)
    assert (config.models["a"].websocket, config.models["a"].stream_idle_secs) == (None, 1800)
    assert (config.models["b"].websocket, config.models["b"].stream_idle_secs) == ("cut", None)


async def test_a_message_that_follows_the_head_at_once_is_passed_on(tmp_path: Path) -> None:
    frames = Connection(ConnectionType.SERVER)
    early = frames.send(TextMessage(data="early"))
    async with on_lane("fast", tmp_path) as site:
        site.backend.play = play(SWITCHING + early, close=True)
        assert early in await site.exchange(HANDSHAKE)
