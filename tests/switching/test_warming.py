"""What a backend refuses while it loads, right after its wake, does not reach clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from llmux.upstream import Backend
from tests.fakes import FakeHooks
from tests.lanes import LANES, OK, Site, play, running_lane

LOADING = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b'Content-Length: 29\r\n\r\n{"error": "Loading model..."}'
)


def post(body: bytes = b'{"model": "a"}', method: bytes = b"POST") -> bytes:
    head = b"%b /v1/completions?model=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % method
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def loads(times: int, then: bytes = OK) -> Callable[[trio.SocketStream, bytes], Awaitable[None]]:
    """Answer 503 so many times."""
    left = times

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        nonlocal left
        left -= 1
        await stream.send_all(LOADING if left >= 0 else then)

    return answer


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    lane: str = request.param
    return lane


@pytest.mark.parametrize("size", [2, 100_000])
async def test_a_503_right_after_the_wake_is_waited_out(
    lane: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = loads(4)
        body = b'{"model": "a", "x": "' + b"y" * size + b'"}'
        assert status(await site.exchange(post(body))) == 200
        assert len(site.backend.received) == 5
        assert all(request.endswith(body) for request in site.backend.received)
    assert capsys.readouterr().out.count("backend_loads") == 1


async def test_a_503_later_is_the_clients(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(OK)
        assert status(await site.exchange(post())) == 200
        site.backend.play = loads(1)
        assert status(await site.exchange(post())) == 503
        assert len(site.backend.received) == 2


async def test_a_list_that_is_answered_while_the_model_loads_shows_nothing(
    lane: str, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(OK)
        assert status(await site.exchange(post(b"", b"GET"))) == 200
        site.backend.play = loads(2)
        assert status(await site.exchange(post())) == 200


async def test_the_name_is_replaced_once_however_often_it_is_sent(
    lane: str, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.service.proxy.upstreams["a"].upstream_model = "aaaa"
        site.backend.play = loads(3)
        assert status(await site.exchange(post())) == 200
        assert {each.partition(b"\r\n\r\n")[2] for each in site.backend.received} == {
            b'{"model": "aaaa"}'
        }


async def test_it_is_waited_out_for_the_time_of_the_wake_only(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(timeouts={("a", "wake"): 0.5})
    async with running_lane(lane, tmp_path, hooks=hooks) as site:
        site.backend.play = loads(1000)
        assert status(await site.exchange(post())) == 503
        assert 3 < len(site.backend.received) < 8
        assert hooks.calls == [("a", "wake")]


async def test_it_is_waited_out_no_longer_than_the_request_may_wait(
    lane: str, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, policy={"request_timeout_secs": 0.5}) as site:
        site.backend.play = loads(1000)
        answer = await site.exchange(post())
        assert status(answer) == 504
        assert b"switch_timeout" in answer


async def test_no_switch_comes_between(lane: str, tmp_path: Path) -> None:
    """Two models that load for a while do not send each other to sleep for ever."""
    async with running_lane(lane, tmp_path, models=("a", "b")) as site:
        site.backend.play = loads(5)
        answers: dict[str, int] = {}

        async def ask(model: str) -> None:
            body = b'{"model": "%b"}' % model.encode()
            head = b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            answers[model] = status(await site.exchange(request))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a")
            nursery.start_soon(ask, "b")
        assert answers == {"a": 200, "b": 200}


def refusing(site: Site) -> str:
    """Put a backend in the place of the model's that refuses; returns its URL."""
    url = f"http://127.0.0.1:{site.backend.port}"
    site.service.proxy.upstreams["a"].backend = Backend("http://127.0.0.1:1")
    return url


async def test_a_refusal_right_after_the_wake_is_waited_out(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks()
    async with running_lane(lane, tmp_path, hooks=hooks) as site:
        url = refusing(site)

        async def listen() -> None:
            while ("a", "alive") not in hooks.calls:
                await trio.sleep(0.01)
            site.service.proxy.upstreams["a"].backend._origin = Backend(url)._origin

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            assert status(await site.exchange(post())) == 200
        assert hooks.calls == [("a", "wake"), ("a", "alive")]


async def test_while_it_refuses_it_is_not_silent(lane: str, tmp_path: Path) -> None:
    silent_s = 0.2
    settings = {"stream_idle_secs": silent_s}
    async with running_lane(lane, tmp_path, model_settings=settings) as site:
        url = refusing(site)

        async def listen() -> None:
            await trio.sleep(5 * silent_s)
            site.service.proxy.upstreams["a"].backend._origin = Backend(url)._origin

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            answer = await site.exchange(post(b'{"model": "a", "stream": true}'))
        assert status(answer) == 200


async def test_a_refusal_that_stays_is_502_in_the_end(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(timeouts={("a", "wake"): 0.5})
    async with running_lane(lane, tmp_path, hooks=hooks) as site:
        refusing(site)
        answer = await site.exchange(post())
        assert status(answer) == 502
        assert b"backend_error" in answer
        assert hooks.calls == [("a", "wake"), ("a", "alive")]


async def test_a_client_that_leaves_meanwhile_is_forgotten(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = loads(100_000)
        stream = await site.connect()
        async with stream:
            await stream.send_all(post())
            with trio.fail_after(20):
                while len(site.backend.received) < 3:
                    await trio.sleep(0.01)
        await site.until_idle()


async def test_who_waits_for_a_stream_is_sent_comments_meanwhile(lane: str, tmp_path: Path) -> None:
    events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"
    async with running_lane(lane, tmp_path, policy={"waiting_keepalive_secs": 0.1}) as site:
        site.backend.play = loads(4, then=events)
        answer = await site.exchange(post(b'{"model": "a", "stream": true}'))
        assert status(answer) == 200
        assert b"data: 1" in answer
        assert b"Loading" not in answer


@pytest.mark.parametrize("path", [b"/tokenize", b"/api/show", b"/v1/messages/count_tokens"])
async def test_a_look_that_is_answered_while_the_model_loads_shows_nothing(
    lane: str, path: bytes, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(OK)
        assert status(await site.exchange(post(b"", b"GET"))) == 200
        look = post().replace(b"/v1/completions", path)
        assert status(await site.exchange(look)) == 200
        site.backend.play = loads(2)
        assert status(await site.exchange(post())) == 200
