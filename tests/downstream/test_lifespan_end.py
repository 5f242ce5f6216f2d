"""Requests that an ASGI server still passes on while, or after, the app's lifespan ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from llmux.config import parse_config
from llmux.server.composition import Service, build_service
from llmux.server.hypercorn_side import HypercornSide
from llmux.server.listening import server_config
from tests.downstream.test_lanes import HANDSHAKE, error_code, post, status
from tests.fakes import FakeHooks
from tests.lanes import read_all

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

REQUESTS = {"a model's": post(), "llmux's own": HEALTH, "a WebSocket": HANDSHAKE}


def served(folder: Path) -> tuple[Service, HypercornSide]:
    model = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}
    config = parse_config({"models": {"a": model}, "state_dir": str(folder)}, directory=folder)
    service = build_service(config, hooks=FakeHooks())
    return service, HypercornSide(service.app, server_config("127.0.0.1", 0, config))


async def exchange(side: HypercornSide, request: bytes) -> bytes:
    """Send a request on a new connection; returns all that comes back until it is closed."""
    ours, theirs = (
        trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair()
    )
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, ours:
            nursery.start_soon(side.serve, theirs, b"")
            await ours.send_all(request)
            return await read_all(ours)


@asynccontextmanager
async def ending_slowly(service: Service) -> AsyncIterator[None]:
    """Begin to end the lifespan, whose nursery stays open for as long as the context lasts."""
    released = trio.Event()

    async def stay() -> None:
        with trio.CancelScope(shield=True):
            await released.wait()

    service.app.nursery.start_soon(stay)
    await trio.lowlevel.checkpoint()
    service.app.nursery.cancel_scope.cancel()
    try:
        yield
    finally:
        released.set()


def check(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert (status(answer), error_code(answer)) == (503, "shutting_down")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_that_comes_after_the_lifespan(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task found the lifespan's nursery closed: an empty 500, and a traceback in the log."""
    service, side = served(tmp_path)
    async with side.lifespan():
        pass
    check(await exchange(side, REQUESTS[kind]), caplog)
    assert service.proxy.bodies.held_bytes == 0


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_that_comes_as_the_lifespan_ends(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task was cancelled before it could answer."""
    service, side = served(tmp_path)
    async with side.lifespan(), ending_slowly(service):
        check(await exchange(side, REQUESTS[kind]), caplog)
    assert service.proxy.bodies.held_bytes == 0


async def test_a_lifespan_that_is_cancelled_from_outside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then its nursery does not say that it was cancelled, and takes no task all the same."""
    _, side = served(tmp_path)
    with trio.CancelScope() as everything:
        async with side.lifespan():
            everything.cancel()
    check(await exchange(side, post()), caplog)
