"""A request's journey without sockets on the client's side: a lane that records what it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmux.config import Limits, parse_config
from llmux.errors import BackendBroke
from llmux.observe.listeners import observed
from llmux.observe.metrics import Metrics
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import Bodies, Body
from llmux.proxy.lane import ClientLeft, EventStream, HeaderList, Tunnel
from llmux.switching.switchboard import Switchboard
from llmux.upstream import Answer
from tests.fakes import FakeHooks
from tests.servers import CheckingBackend

HOOKS = {"wake": "up", "sleep": "down", "alive": "ping"}


class FakeLane:
    """A client that asks and records."""

    method = b"POST"
    peer: str | None = "10.0.0.9"
    scheme = "http"
    upgrade = b""
    cut_scope: trio.CancelScope | None = None
    reading: trio.CancelScope | None = None
    sent_bytes = 0
    is_sending = False
    tunnel: Tunnel | None = None
    unblock: Callable[[], None] | None = None

    def __init__(self, body: dict[str, Any], target: bytes = b"/v1/chat/completions") -> None:
        self.target = target
        self.headers: HeaderList = [(b"Host", b"llmux:3000")]
        self.has_answered = False
        self.status = 0
        self.answer_headers: dict[bytes, bytes] = {}
        self.received = b""
        self.ended = False
        self.sent = json.dumps(body).encode()
        self.body = Body(Bodies(Limits(body_bytes=1000)))
        self.left = trio.Event()
        self.fails: Exception | None = None
        self.error: Exception | None = None

    @property
    def events(self) -> EventStream:
        return self

    async def read_body(self) -> None:
        await trio.lowlevel.checkpoint()
        self.body.grow(len(self.sent))
        if self.left.is_set():
            raise ClientLeft
        self.body.data = self.sent

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self.left.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                yield
            except Exception as error:
                nursery.cancel_scope.cancel()
                self.error = error
            else:
                self.error = None
            nursery.cancel_scope.cancel()
        if self.error is not None:
            raise self.error
        if self.left.is_set():
            raise ClientLeft

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        self._start(answer.status, headers)
        async for chunk in answer.chunks():
            self.received += chunk
            if self.fails is not None:
                raise self.fails
        self.ended = True

    async def begin_events(self, headers: HeaderList) -> None:
        self._start(200, headers)

    async def send_events(self, data: bytes) -> None:
        self.received += data

    async def end_events(self) -> None:
        self.ended = True

    async def send_last_event(self, event: bytes) -> None:
        self.last_event = event

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._start(status, headers)
        self.received = body
        self.ended = True

    def _start(self, status: int, headers: HeaderList) -> None:
        assert not self.has_answered
        self.has_answered = True
        self.status = status
        self.answer_headers = {name.lower(): value for name, value in headers}

    @property
    def error_code(self) -> str:
        return str(json.loads(self.received)["error"]["code"])


class Rig:
    """A proxy between fake lanes and real backends on loopback, with hooks on a fake GPU."""

    def __init__(self, backend: CheckingBackend, fallback: CheckingBackend) -> None:
        self.backend = backend
        config = parse_config(
            {
                "models": {"a": {"port": backend.port, **HOOKS}},
                "fallback": f"http://127.0.0.1:{fallback.port}",
                "fallback_models": ["*"],
                "limits": {"body_bytes": 1000},
            }
        )
        self.hooks = FakeHooks()
        self.metrics = Metrics()
        events = observed(self.metrics)
        self.board = Switchboard(config, self.hooks, events)
        self.proxy = ModelProxy(config, self.board, events)

    def counted(self, model: str, status: int, waited: bool) -> float | None:
        labels = {"model": model, "status": str(status), "waited": str(waited).lower()}
        return self.metrics.registry.get_sample_value("llmux_requests_total", labels)


@asynccontextmanager
async def running(tmp_path: Any) -> AsyncIterator[Rig]:
    (tmp_path / "awake").touch()
    backend = CheckingBackend("a", tmp_path / "awake")
    fallback = CheckingBackend("fallback", tmp_path / "awake")
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        await nursery.start(fallback.serve)
        rig = Rig(backend, fallback)
        nursery.start_soon(rig.board.run)
        yield rig
        assert rig.board.in_flight_count("a") == 0
        assert rig.board.queue_depths == {"a": 0}
        rig.proxy.upstreams.close()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def rig(tmp_path: Any) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


async def test_an_answer_is_relayed_and_counted(rig: Rig) -> None:
    first, second = FakeLane({"model": "a"}), FakeLane({"model": "a"})
    await rig.proxy.serve(first)
    await rig.proxy.serve(second)
    assert (first.status, first.ended) == (200, True)
    assert first.answer_headers[b"x-llmux-model"] == b"a"
    assert second.answer_headers[b"x-llmux-wait-ms"] == b"0"
    assert rig.counted("a", 200, waited=True) == 1
    assert rig.counted("a", 200, waited=False) == 1
    registry = rig.metrics.registry
    labels = {"model": "a"}
    assert registry.get_sample_value("llmux_request_queue_wait_seconds_count", labels) == 1


async def test_errors_are_answered_and_counted(rig: Rig) -> None:
    lane = FakeLane({"model": "a", "padding": "x" * 1000})
    await rig.proxy.serve(lane)
    assert (lane.status, lane.error_code) == (413, "body_too_large")
    assert rig.counted("", 413, waited=False) == 1
    rig.hooks.failing = {("a", "wake"): 1}
    lane = FakeLane({"model": "a"})
    await rig.proxy.serve(lane)
    assert (lane.status, lane.error_code) == (500, "hook_failed")
    assert lane.answer_headers[b"x-llmux-model"] == b"a"
    assert rig.counted("a", 500, waited=True) == 1


@pytest.mark.parametrize("body", [{"model": "unknown"}, {"no": "model"}])
async def test_the_fallback_gets_what_names_no_model_of_ours(
    rig: Rig, body: dict[str, Any]
) -> None:
    lane = FakeLane(body)
    await rig.proxy.serve(lane)
    assert json.loads(lane.received)["served_by"] == "fallback"
    assert b"x-llmux-model" not in lane.answer_headers
    assert rig.counted("", 200, waited=False) == 1


async def test_the_unforeseen_is_answered_too(rig: Rig) -> None:
    class BrokenLane(FakeLane):
        async def read_body(self) -> None:
            raise ZeroDivisionError("oops")

    lane = BrokenLane({})
    await rig.proxy.serve(lane)
    assert (lane.status, lane.error_code) == (500, "internal")
    assert b"Internal error: ZeroDivisionError: oops" in lane.received


@pytest.mark.parametrize("error", [BackendBroke("gone"), ZeroDivisionError("oops")])
async def test_after_the_status_line_an_error_is_a_cut(rig: Rig, error: Exception) -> None:
    lane = FakeLane({"model": "a", "stream": True})
    lane.fails = error
    await rig.proxy.serve(lane)
    assert (lane.status, lane.ended) == (200, False)
    assert rig.counted("a", 200, waited=True) == 1


async def test_a_client_that_leaves_before_its_body_is_read(rig: Rig) -> None:
    lane = FakeLane({"model": "a"})
    lane.left.set()
    await rig.proxy.serve(lane)
    assert not lane.has_answered
    assert rig.counted("", 499, waited=False) == 1


async def test_a_client_that_leaves_in_line(rig: Rig) -> None:
    rig.hooks.gates = {("a", "wake"): trio.Event()}
    lane = FakeLane({"model": "a"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.proxy.serve, lane)
        with trio.fail_after(20):
            while not rig.board.queue_depths["a"]:
                await trio.sleep(0.001)
        lane.left.set()
    assert not lane.has_answered
    assert rig.board.queue_depths == {"a": 0}
    assert rig.counted("a", 499, waited=True) == 1
    rig.hooks.gates[("a", "wake")].set()


async def test_a_client_that_leaves_in_flight_closes_the_backend(rig: Rig) -> None:
    lane = FakeLane({"model": "a", "stream": True, "chunks": 1_000_000, "interval": 0.001})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.proxy.serve, lane)
        with trio.fail_after(20):
            while not lane.received:
                await trio.sleep(0.001)
        lane.left.set()
    assert rig.board.in_flight_count("a") == 0
    with trio.fail_after(20):
        while not rig.backend.aborted:
            await trio.sleep(0.001)
    await wait_all_tasks_blocked()
