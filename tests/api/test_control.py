"""The control API: what it shows, what it does, and that its document says so."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from llmux.api.logfile import LOOK_S, LogReader
from llmux.api.masked import masked_config
from llmux.api.openapi import OPERATIONS, openapi
from llmux.errors import LlmuxError
from llmux.observe import schemas as shapes
from llmux.proxy.journeys import MOST_PATH_BYTES
from llmux.switching.waiters import Waiter
from tests.fakes import FakeHooks
from tests.lanes import Site, running_lane, settled

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hooks() -> FakeHooks:
    return FakeHooks()


@pytest.fixture
async def site(tmp_path: Path, hooks: FakeHooks) -> AsyncIterator[Site]:
    async with running_lane("fast", tmp_path, models=("a", "b"), hooks=hooks) as site:
        yield site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as client:
        yield client


async def get(client: httpx.AsyncClient, path: str, shape: Any = Any) -> Any:
    answer = await client.get(f"/control/{path}")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=shape)


async def post(client: httpx.AsyncClient, path: str, body: Any = None) -> str:
    answer = await client.post(f"/control/{path}", json=body)
    assert answer.status_code == 200, answer.text
    message: str = answer.json()["message"]
    return message


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def asking(
    client: httpx.AsyncClient, model: str
) -> AsyncIterator[Callable[[], Awaitable[httpx.Response]]]:
    """A request that is under way; call what is yielded for its answer."""
    answers: list[httpx.Response] = []
    ended = trio.Event()

    async def ask() -> None:
        answers.append(await client.post(CHAT, json={"model": model}))
        ended.set()

    async def answer() -> httpx.Response:
        with trio.fail_after(5):
            await ended.wait()
        return answers[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        yield answer
        nursery.cancel_scope.cancel()


def held(site: Site) -> trio.Event:
    """Have the backend wait in mid-answer until the event."""
    go_on = trio.Event()

    async def pause(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await go_on.wait()
        await stream.send_all(b"k")

    site.backend.play = pause
    return go_on


# ---- What it shows ----


async def test_status_says_all_there_is(client: httpx.AsyncClient, hooks: FakeHooks) -> None:
    status = await get(client, "status", shapes.Status)
    assert (status.state, status.active_model, status.mode) == ("idle", None, "auto")
    assert status.queue_depth == {"a": 0, "b": 0}
    assert status.models["a"].eta_secs is None
    await client.post(CHAT, json={"model": "a"})
    status = await get(client, "status", shapes.Status)
    assert (status.state, status.active_model) == ("active", "a")
    assert status.groups["default"].since == status.models["a"].since <= status.at
    assert status.models["a"].eta_secs == 0
    hooks.gates["b", "wake"] = trio.Event()
    async with asking(client, "b") as answer:
        await until(lambda: ("b", "wake") in hooks.calls)
        status = await get(client, "status", shapes.Status)
        switch = status.groups["default"].switch
        assert status.state == "switching"
        assert switch is not None
        assert (switch.source, switch.target, switch.result) == ("a", "b", None)
        (waiting,) = (await get(client, "requests", shapes.RequestList)).requests
        assert (switch.request, switch.rule, switch.waiting) == (waiting.id, "close", 1)
        assert status.models["b"].queued == 1
        assert status.models["b"].oldest_wait_secs is not None
        hooks.gates["b", "wake"].set()
        assert (await answer()).headers["x-llmux-request-id"] == waiting.id
    assert (await get(client, "status", shapes.Status)).groups["default"].switch is None


async def test_requests_are_listed_in_each_phase(site: Site, client: httpx.AsyncClient) -> None:
    async def phases() -> list[shapes.RequestInfo]:
        found: shapes.RequestList = await get(client, "requests", shapes.RequestList)
        assert found.total == len(found.requests)
        return found.requests

    assert await phases() == []
    slow = await site.connect()
    async with slow:
        await slow.send_all(
            b"POST /v1/x?secret=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"
        )
        await until(lambda: site.service.proxy.journeys.list(1).total == 1)
        await settled()
        (reading,) = await phases()
        assert (reading.phase, reading.bytes_in, reading.path) == ("reading", 2, "/v1/x")
        assert (reading.client, reading.method) == ("127.0.0.1", "POST")
    await until(lambda: site.service.proxy.journeys.list(1).total == 0)
    go_on = held(site)
    async with asking(client, "a") as answer:
        with trio.fail_after(5):
            while [each.bytes_out for each in await phases()] != [1]:
                await trio.sleep(0.01)
        async with asking(client, "b"):
            with trio.fail_after(5):
                while len(found := await phases()) < 2:
                    await trio.sleep(0.01)
            assert [(each.model, each.phase) for each in found] == [
                ("a", "answering"), ("b", "waiting"),
            ]  # fmt: skip
            assert len((await get(client, "requests?limit=1", shapes.RequestList)).requests) == 1
            go_on.set()
            assert (await answer()).text == "ok"


async def test_history_and_events_tell_one_story(
    site: Site, client: httpx.AsyncClient, hooks: FakeHooks
) -> None:
    await client.post(CHAT, json={"model": "a"})
    history: shapes.History = await get(client, "history", shapes.History)
    assert [(each.model, each.state) for each in history.phases] == [
        ("a", "waking"),
        ("a", "awake"),
    ]
    assert [(each.target, each.result) for each in history.switches] == [("a", "success")]
    events: list[tuple[str, Any]] = []
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            last = {"Last-Event-ID": history.last_event_id}
            async with client.stream("GET", "/control/events", headers=last) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                name = ""
                async for line in answer.aiter_lines():
                    kind, _, value = line.partition(": ")
                    name = value if kind == "event" else name
                    if kind == "data":
                        events.append((name, json.loads(value)))

        nursery.start_soon(listen)
        await until(lambda: bool(site.service.feed._readers))
        await client.post(CHAT, json={"model": "b"})
        await until(lambda: any(name == "requests" and data["ended"] for name, data in events))
        nursery.cancel_scope.cancel()
    told = [(data["model"], data["state"]) for name, data in events if name == "phase"]
    assert told == [
        ("a", "draining"), ("a", "sleeping"), ("a", "asleep"), ("b", "waking"), ("b", "awake"),
    ]  # fmt: skip
    begun, ended = (data for name, data in events if name == "switch")
    assert (begun["id"], begun["result"], ended["result"]) == (ended["id"], None, "success")
    (ended_request,) = (
        each for name, data in events if name == "requests" for each in data["ended"]
    )
    assert (ended_request["model"], ended_request["status"]) == ("b", 200)
    await until(lambda: not site.service.feed._readers)


@pytest.mark.parametrize("path", ["history?secs=x", "requests?limit=-1", "journal?since=nan"])
async def test_bad_queries_are_said(client: httpx.AsyncClient, path: str) -> None:
    assert code(await client.get(f"/control/{path}")) == (400, "bad_request")


async def test_the_journal_is_shown(site: Site, client: httpx.AsyncClient) -> None:
    await client.post(CHAT, json={"model": "a"})
    with trio.fail_after(5):
        while len(entries := (await get(client, "journal"))["entries"]) < 3:
            await trio.sleep(0.05)
    assert {each["event"] for each in entries} == {"started", "switch", "request"}
    assert len((await get(client, "journal?limit=1"))["entries"]) == 1
    later = entries[-1]["ended"] + 1000
    assert (await get(client, f"journal?since={later}"))["entries"] == []


@pytest.mark.parametrize("journal", [True, False])
async def test_a_journal_is_kept_unless_the_config_says_no(tmp_path: Path, journal: bool) -> None:
    async with running_lane("fast", tmp_path, journal=journal) as site, site.client() as client:
        await client.post(CHAT, json={"model": "a"})
        await site.until_idle()
    assert (tmp_path / "journal.jsonl").exists() == journal


async def test_alive(client: httpx.AsyncClient) -> None:
    assert await get(client, "alive?model=a") == {"model": "a", "alive": False}
    await client.post(CHAT, json={"model": "a"})
    assert await get(client, "alive?model=a") == {"model": "a", "alive": True}
    assert code(await client.get("/control/alive?model=x")) == (404, "model_not_found")
    assert code(await client.get("/control/alive")) == (404, "model_not_found")


async def test_the_config_is_shown_without_secrets(tmp_path: Path) -> None:
    async with running_lane(
        "fast",
        tmp_path,
        api_keys=["sk-secret-1"],
        policy={"name": "fifo"},
    ) as site:
        shown = masked_config(site.service.reloader.config)
        assert shown["api_keys"] == ["***"]
        assert "sk-secret" not in json.dumps(shown)
        async with site.client() as client:
            assert await get(client, "config") == json.loads(json.dumps(shown))


# ---- What it does ----


async def test_sleep_puts_a_model_to_sleep_and_a_request_wakes_it(
    client: httpx.AsyncClient, hooks: FakeHooks
) -> None:
    assert await post(client, "wake", {"model": "a"}) == "Model a woken"
    assert hooks.awake == {"a"}
    assert await post(client, "sleep", {"model": "a"}) == "Model a sleeping"
    assert await post(client, "sleep", {"model": "a"}) == "Model a sleeping"
    assert hooks.awake == set()
    assert (await client.post(CHAT, json={"model": "a"})).status_code == 200
    assert hooks.awake == {"a"}


async def test_sleep_waits_for_requests_in_flight(site: Site, client: httpx.AsyncClient) -> None:
    go_on = held(site)
    async with asking(client, "a") as answer, trio.open_nursery() as nursery:
        await until(lambda: site.in_flight == 1)
        nursery.start_soon(post, client, "sleep", {"model": "a"})
        await until(lambda: site.service.board.models["a"].phase.value == "draining")
        go_on.set()
        assert (await answer()).text == "ok"
    assert site.service.board.active_model is None


async def test_a_pin_keeps_others_out_until_it_is_taken_back(
    client: httpx.AsyncClient, hooks: FakeHooks
) -> None:
    assert await post(client, "pin", {"model": "a"}) == "Pinned to model: a"
    assert hooks.awake == {"a"}
    refused = await client.post(CHAT, json={"model": "b"})
    assert code(refused) == (503, "pinned")
    assert "Model a is pinned" in refused.text
    assert (await client.post(CHAT, json={"model": "a"})).status_code == 200
    status = await get(client, "status", shapes.Status)
    assert status.groups["default"].pinned == shapes.Pin(model="a", wait=False)
    assert await post(client, "switch", {"model": "b"}) == "Switched to model: b"  # moves the pin
    assert code(await client.post(CHAT, json={"model": "a"})) == (503, "pinned")
    assert await post(client, "unpin") == "Unpinned. Switched to auto mode."
    assert (await client.post(CHAT, json={"model": "a"})).status_code == 200


async def test_with_wait_others_stand_in_line(
    site: Site, client: httpx.AsyncClient, hooks: FakeHooks
) -> None:
    await post(client, "pin", {"model": "a", "wait": True})
    async with asking(client, "b") as answer:
        await until(lambda: site.service.board.queue_depths["b"] == 1)
        await settled()
        assert hooks.awake == {"a"}
        assert await post(client, "unpin", {"group": "default"}) == "Unpinned group: default"
        assert (await answer()).status_code == 200
    assert code(await client.post("/control/unpin", json={"group": "x"})) == (
        404,
        "group_not_found",
    )


async def test_a_pin_that_fails_is_rolled_back(client: httpx.AsyncClient, hooks: FakeHooks) -> None:
    await post(client, "pin", {"model": "a"})
    hooks.failing["b", "wake"] = 1
    assert code(await client.post("/control/pin", json={"model": "b"})) == (500, "hook_failed")
    status = await get(client, "status", shapes.Status)
    assert status.groups["default"].pinned == shapes.Pin(model="a", wait=False)
    assert (await client.post(CHAT, json={"model": "a"})).status_code == 200


async def test_a_request_is_cancelled_in_line(
    site: Site, client: httpx.AsyncClient, hooks: FakeHooks
) -> None:
    hooks.gates["a", "wake"] = trio.Event()
    async with asking(client, "a") as answer:
        await until(lambda: site.service.board.queue_depths["a"] == 1)
        (waiting,) = site.service.proxy.journeys.list(1).requests
        done = await client.delete(f"/control/requests/{waiting.id}")
        assert done.json() == {"message": f"Cancelled request: {waiting.id}"}
        ended = await answer()
        assert code(ended) == (503, "cancelled")
        assert ended.headers["x-should-retry"] == "false"
        hooks.gates["a", "wake"].set()
    assert code(await client.delete(f"/control/requests/{waiting.id}")) == (
        404,
        "request_not_found",
    )


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_a_request_is_cancelled_in_flight(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:

        async def stream(stream: trio.SocketStream, request: bytes) -> None:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            await stream.send_all(head + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
            assert not await stream.receive_some()  # closed

        site.backend.play = stream
        pieces: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", CHAT, json={"model": "a"}) as answer:
                async for piece in answer.aiter_bytes():
                    pieces.append(piece)
                    if len(pieces) == 1:
                        site.service.proxy.journeys.cancel(answer.headers["x-llmux-request-id"])
        assert b'"code":"cancelled"' in b"".join(pieces)
        await until(lambda: site.backend.open == 0)


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_a_request_is_cancelled_before_its_answer(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:

        async def never(stream: trio.SocketStream, request: bytes) -> None:
            await trio.sleep_forever()

        site.backend.play = never
        async with asking(client, "a") as answer:
            await until(lambda: bool(site.backend.received))
            (one,) = site.service.proxy.journeys.list(1).requests
            assert one.phase == "forwarding"
            site.service.proxy.journeys.cancel(one.id)
            assert code(await answer()) == (503, "cancelled")


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_a_request_is_cancelled_between_a_refused_connection_and_the_next_try(
    lane: str, tmp_path: Path, hooks: FakeHooks
) -> None:
    async with running_lane(lane, tmp_path, hooks=hooks) as site, site.client() as client:
        await site.service.board.force_switch("a")
        hooks.gates["a", "alive"] = trio.Event()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # and does not listen
            port = nobody.getsockname()[1]
            config = site.service.reloader.config.models["a"]
            site.service.proxy.use("a", replace(config, port=port))
            async with asking(client, "a") as answer:
                await until(lambda: ("a", "alive") in hooks.calls)
                (one,) = site.service.proxy.journeys.list(1).requests
                site.service.proxy.journeys.cancel(one.id)
                assert code(await answer()) == (503, "cancelled")


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_a_request_is_cancelled_in_the_instant_of_its_grant(
    lane: str, tmp_path: Path, hooks: FakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither in line any more nor in flight yet."""
    hooks.gates["a", "wake"] = trio.Event()
    async with running_lane(lane, tmp_path, hooks=hooks) as site, site.client() as client:
        tell = Waiter.tell_nowait

        def tell_and_cancel(waiter: Waiter, error: LlmuxError | None) -> None:
            tell(waiter, error)
            site.service.proxy.journeys.cancel(waiter.request)

        monkeypatch.setattr(Waiter, "tell_nowait", tell_and_cancel)
        async with asking(client, "a") as answer:
            await until(lambda: site.service.board.queue_depths["a"] == 1)
            hooks.gates["a", "wake"].set()
            assert code(await answer()) == (503, "cancelled")
        assert site.backend.received == []


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_a_long_path_is_told_in_part(lane: str, tmp_path: Path) -> None:
    """A batch of the feed holds fifty, and its ring only so many bytes."""
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        async with trio.open_nursery() as nursery:
            go_on = held(site)
            path = f"/upstream/a/{'x' * 50_000}"
            nursery.start_soon(client.get, path)
            await until(lambda: site.in_flight == 1)
            (one,) = site.service.proxy.journeys.list(1).requests
            assert one.path == path[:MOST_PATH_BYTES]
            go_on.set()


async def test_requests_to_the_fallback_are_seen_and_cancelled_too(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as other:

        async def never(stream: trio.SocketStream, request: bytes) -> None:
            await trio.sleep_forever()

        other.backend.play = never
        fallback = f"http://127.0.0.1:{other.backend.port}"
        async with running_lane(
            "fast", tmp_path / "2", fallback=fallback, fallback_models=["*"]
        ) as site:
            async with site.client() as client, asking(client, "unknown") as answer:
                await until(lambda: bool(other.backend.received))
                (one,) = site.service.proxy.journeys.list(1).requests
                assert (one.model, one.phase) == ("", "forwarding")
                site.service.proxy.journeys.cancel(one.id)
                assert code(await answer()) == (503, "cancelled")


async def test_reload_says_what_is_wrong(site: Site, client: httpx.AsyncClient) -> None:
    assert code(await client.post("/control/reload")) == (400, "bad_request")  # no file


@pytest.mark.parametrize("path", ["switch", "wake", "sleep", "pin"])
async def test_orders_for_nobody(client: httpx.AsyncClient, path: str) -> None:
    unknown = await client.post(f"/control/{path}", json={"model": "x"})
    assert code(unknown) == (404, "model_not_found")
    for body in (b"", b"{", b'{"model": 1}', b'{"model": "a", "more": 1}', b'"a"'):
        answer = await client.post(f"/control/{path}", content=body)
        assert code(answer) == (400, "bad_request"), body


# ---- Logs ----


async def lines(reader: LogReader, count: int) -> str:
    text = ""
    with trio.fail_after(5):
        while text.count("\n") < count:
            text += (await anext(reader)).decode()
    return text


def always() -> bool:
    return True


def never() -> bool:
    return False


async def test_a_log_is_followed_also_when_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    reader = LogReader(path, lines=2, follow=always)  # it may come later
    path.write_text("one\ntwo\nthr")
    assert await lines(LogReader(path, lines=2, follow=never), 1) == "two\n"
    assert await lines(reader, 1) == "two\n"
    with path.open("ab") as file:
        file.write(b"ee\n\x1b[31mfour\x1b[0m \xff\x00\n")
    assert await lines(reader, 2) == "three\nfour \ufffd\n"
    path.write_text("five\n")
    assert await lines(reader, 1) == "five\n"


async def test_the_end_of_a_log_without_a_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 200_000 + b"\nlast")
    found = b"".join([piece async for piece in LogReader(path, lines=1, follow=never)])
    assert found == b"last"
    found = b"".join([piece async for piece in LogReader(path, lines=9, follow=never)])
    assert len(found) == 200_005
    gone = [piece async for piece in LogReader(tmp_path / "no", lines=9, follow=never)]
    assert gone == []


async def test_logs_over_http(site: Site, client: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text("1\n2\n3\n")
    answer = await client.get("/control/logs/a?tail=2")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "2\n3\n"
    assert (await client.get("/control/logs/b")).text == ""
    assert code(await client.get("/control/logs/x")) == (404, "model_not_found")
    assert code(await client.get("/control/logs/a?follow=maybe")) == (400, "bad_request")


async def test_who_follows_a_log_does_not_hold_up_the_end(
    site: Site, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text("1\n")
    async with client.stream("GET", "/control/logs/a?follow=true") as answer:
        pieces = answer.aiter_text()
        assert await anext(pieces) == "1\n"
        site.service.feed.stop()
        with trio.fail_after(5):
            assert [piece async for piece in pieces] == []


async def test_most_of_a_log_that_was_cut_is_not_told_again(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"{number}\n" for number in range(100_000)))
    reader = LogReader(path, lines=1, follow=always)
    assert await lines(reader, 1) == "99999\n"
    path.write_text("".join(f"{number}\n" for number in range(50_000, 100_001)))  # as hooks.py cuts
    assert (await lines(reader, 200)).split("\n")[-2:] == ["100000", ""]


async def test_no_line_of_a_log_without_a_last_newline(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"old\n50 %")
    reader = LogReader(path, lines=0, follow=always)
    with trio.move_on_after(10 * LOOK_S) as nothing:
        await anext(reader)
    assert nothing.cancelled_caught
    with path.open("ab") as file:
        file.write(b" 51 %\n")
    assert await anext(reader) == b" 51 %\n"


# ---- Readers ----


async def test_a_reader_that_takes_nothing_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site:
        stuck = await site.connect()
        async with stuck:
            await stuck.send_all(b"GET /control/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            feed = site.service.feed
            await until(lambda: bool(feed._readers))
            long = shapes.Message(message="x" * 8_000_000)  # more than buffers take
            feed.tell("long", long)
            (lane,) = site.service.traffic._watched
            await until(lambda: lane.sending_since is not None)
            site.service.lifecycle.stop_admitting()
            await until(lambda: not feed._readers)


@pytest.mark.parametrize("path", ["events", "logs/a?follow=true"])
async def test_streams_end_when_llmux_stops(site: Site, path: str) -> None:
    """They must not hold it up for as long as its grace."""
    async with site.client() as client, client.stream("GET", f"/control/{path}") as answer:
        site.service.lifecycle.stop_admitting()
        with trio.fail_after(5):
            await answer.aread()


@pytest.mark.parametrize("path", ["events", "logs/a?follow=true"])
@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_a_head_is_answered_without_the_stream(lane: str, path: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        with trio.fail_after(5):
            answer = await client.head(f"/control/{path}")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_a_reader_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    limits = {"client_stall_secs": 0.3}
    async with running_lane("fast", tmp_path, limits=limits) as site:
        stuck = await site.connect()
        async with stuck:
            await stuck.send_all(b"GET /control/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            feed = site.service.feed
            await until(lambda: bool(feed._readers))
            long = shapes.Message(message="x" * 500_000)
            with trio.fail_after(10):
                while feed._readers:
                    feed.tell("long", long)
                    await trio.sleep(0.05)


# ---- The document ----


def test_the_document_is_written_down() -> None:
    written = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert written == json.loads(json.dumps(openapi())), (
        "run python -m llmux.api.openapi > docs/openapi.json"
    )


async def test_the_document_names_every_path(site: Site) -> None:
    routes = {
        (rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}"), method.lower())
        for rule in site.service.app.url_map.iter_rules()
        if not rule.rule.startswith(("/static", "/ui"))
        for method in rule.methods or ()
        if method in {"GET", "POST", "DELETE"}
    }
    documented = {(each.path, each.method) for each in OPERATIONS}
    assert routes - documented == set(), "add an Operation to OPERATIONS (llmux/api/openapi.py)"
    assert documented - routes == set(), "OPERATIONS (llmux/api/openapi.py) has no such route"
