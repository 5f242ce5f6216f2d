"""Which refusals tell a balancer that another host may serve the request, on both lanes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux import errors
from llmux.errors import BackendError, LlmuxError, ShuttingDown, TooManyConnections
from llmux.observe.schemas import Pin
from llmux.openai.answers import error_answer
from tests.downstream.test_lanes import error_code, ok, post, status
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, read_all, running_lane, settled

HANDSHAKE = (
    b"GET /ws?model=%b HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
LOADS = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\n\r\nloading"

NOT_ELSEWHERE = {
    "bad_request", "body_too_large", "cancelled", "forbidden", "group_not_found", "internal",
    "invalid_api_key", "loop_detected", "no_host", "no_model", "no_room", "not_found", "pin_lost",
    "read_key", "request_not_found", "unsupported_encoding", "wrong_path",
}  # fmt: skip
"""Codes of which at least one error would be the same on every host, or is an operator's."""


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, models=("a", "b")) as site:
        yield site


def says_elsewhere(answer: bytes) -> bool:
    head = answer.partition(b"\r\n\r\n")[0].lower()
    return re.findall(rb"\r\nx-llmux-retry: ([^\r]*)", head) == [b"elsewhere"]


def seen(answer: bytes) -> tuple[int, Any, bool]:
    return status(answer), error_code(answer), says_elsewhere(answer)


def test_each_error_is_decided() -> None:
    kinds = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, LlmuxError) and each is not LlmuxError
    ]
    assert {each.code for each in kinds if not each.may_be_served_elsewhere} == NOT_ELSEWHERE
    both = {each.code for each in kinds if each.may_be_served_elsewhere} & NOT_ELSEWHERE
    assert both == {"internal"}  # a switcher that died, but no error that was not foreseen


def test_answers_to_operators_and_of_what_was_sent_say_nothing() -> None:
    header = (b"x-llmux-retry", b"elsewhere")
    for error in (TooManyConnections(1), BackendError("x")):
        assert header in error_answer(error)[1]
        assert header not in error_answer(error, to_operator=True)[1]
        assert header not in error_answer(error, was_sent=True)[1]


async def test_a_cordoned_host(site: Site) -> None:
    site.service.board.set_cordoned(True)
    answer = await site.exchange(post())
    assert seen(answer) == (503, "cordoned", True)
    assert b"\r\nretry-after: 5\r\n" in answer.lower()
    answer = await site.exchange(post(b"", b"model-override: a"))
    assert seen(answer) == (503, "cordoned", True)
    for path in (b"/upstream/a/x", b"/completion?model=b"):
        get = b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % path
        assert seen(await site.exchange(get)) == (503, "cordoned", True)
    assert site.backend.received == []
    site.service.board.set_cordoned(False)
    assert status(await site.exchange(post())) == 200


async def test_a_cordoned_host_refuses_websockets(site: Site) -> None:
    site.service.board.set_cordoned(True)
    async with await site.connect() as stream:
        with trio.fail_after(20):
            await stream.send_all(HANDSHAKE % b"a")
            answer = b""
            while b"cordoned" not in answer:
                more = await stream.receive_some()
                assert more, answer
                answer += more
    assert (status(answer), says_elsewhere(answer)) == (503, True)


async def test_what_a_cordoned_host_has_is_served(site: Site) -> None:
    go_on = trio.Event()

    async def slow(stream: trio.SocketStream, _request: bytes) -> None:
        await go_on.wait()
        await stream.send_all(ok())

    site.backend.play = slow
    answers: list[bytes] = []

    async def ask(body: bytes) -> None:
        answers.append(await site.exchange(post(body)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, b'{"model": "a"}')
        await settled()
        nursery.start_soon(ask, b'{"model": "b"}')
        await settled()
        site.service.board.set_cordoned(True)
        assert site.service.board.queue_depths == {"a": 0, "b": 1}
        go_on.set()
    assert [status(each) for each in answers] == [200, 200]
    assert site.service.board.active_model == "b"


@pytest.mark.parametrize("lane", LANES)
async def test_a_cordoned_host_sends_nothing_to_the_fallback(lane: str, tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path / "far") as far:
        url = f"http://127.0.0.1:{far.backend.port}"
        fallback: dict[str, Any] = {"fallback": url, "fallback_models": ["other"]}
        async with running_lane(lane, tmp_path, **fallback) as site:
            site.service.board.set_cordoned(True)
            for name in (b"a", b"other"):
                answer = await site.exchange(post(b'{"model": "%b"}' % name))
                assert seen(answer) == (503, "cordoned", True)
            site.service.board.set_cordoned(False)
            assert status(await site.exchange(post(b'{"model": "other"}'))) == 200
        assert len(far.backend.received) == 1


@pytest.mark.parametrize("lane", LANES)
async def test_a_backend_that_refuses_the_connection(lane: str, tmp_path: Path) -> None:
    with trio.socket.socket() as socket:
        await socket.bind(("127.0.0.1", 0))  # nobody listens
        gone = {"port": socket.getsockname()[1]}
        hooks = FakeHooks(timeouts={("a", "wake"): 0.1})  # so long it may take to load
        async with running_lane(lane, tmp_path, model_settings=gone, hooks=hooks) as site:
            assert seen(await site.exchange(post())) == (502, "backend_error", True)


async def test_what_a_backend_has_got_is_not_repeated(site: Site) -> None:
    site.backend.play = play(b"", close=True)
    assert seen(await site.exchange(post())) == (502, "backend_error", False)
    site.backend.play = play(LOADS)
    site.service.board.models["a"].note_warm()
    assert not says_elsewhere(await site.exchange(post()))


@pytest.mark.parametrize("why", ["drained", "stopped"])
async def test_what_is_cut_in_flight_is_not_repeated(site: Site, why: str) -> None:
    async def silent(_stream: trio.SocketStream, _request: bytes) -> None:
        await trio.sleep_forever()

    site.backend.play = silent
    async with await site.connect() as stream:
        with trio.fail_after(20):
            await stream.send_all(post())
            while not site.backend.received:
                await trio.sleep(0.001)
            await settled()
            if why == "drained":
                site.service.board.models["a"].in_flight.cut()
            else:
                site.service.proxy.cut(ShuttingDown())
            answer = await read_all(stream)
    code = {"drained": "not_ready", "stopped": "shutting_down"}[why]
    assert seen(answer) == (503, code, False)


@pytest.mark.parametrize("lane", LANES)
async def test_a_time_out_is_repeated_unless_a_backend_has_answered(
    lane: str, tmp_path: Path
) -> None:
    policy = {"request_timeout_secs": 0.1}
    async with running_lane(lane, tmp_path / "loads", policy=policy) as site:
        site.backend.play = play(LOADS)
        assert seen(await site.exchange(post())) == (504, "switch_timeout", False)
    slow = FakeHooks(seconds={("a", "wake"): 0.5})
    async with running_lane(lane, tmp_path / "wakes", policy=policy, hooks=slow) as site:
        assert seen(await site.exchange(post())) == (504, "switch_timeout", True)


async def test_what_an_operator_ends_is_not_repeated(site: Site) -> None:
    async with await site.connect() as stream, site.client() as client:
        with trio.fail_after(20):
            await site.service.board.pin(Pin(model="a", wait=True))
            await stream.send_all(post(b'{"model": "b"}'))
            listed: list[Any] = []
            while not listed:
                listed = (await client.get("/control/requests")).json()["requests"]
            await client.delete(f"/control/requests/{listed[0]['id']}")
            answer = await read_all(stream)
    assert seen(answer) == (503, "cancelled", False)


@pytest.mark.parametrize("lane", LANES)
async def test_an_order_is_for_this_host(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(failing={("a", "wake"): -1})
    async with running_lane(lane, tmp_path, hooks=hooks) as site, site.client() as client:
        answer = await client.post("/control/switch", json={"model": "a"})
        assert answer.json()["error"]["code"] == "hook_failed"
        assert "x-llmux-retry" not in answer.headers
        assert seen(await site.exchange(post())) == (500, "hook_failed", True)


@pytest.mark.parametrize("lane", LANES)
async def test_behind_comments_only_an_event_can_tell(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 0.3}, failing={("a", "wake"): -1})
    policy = {"waiting_keepalive_secs": 0.05}
    async with running_lane(lane, tmp_path, hooks=hooks, policy=policy) as site:
        answer = await site.exchange(post(b'{"model": "a", "stream": true}'))
    assert status(answer) == 200
    assert b"hook_failed" in answer
    assert not says_elsewhere(answer)
