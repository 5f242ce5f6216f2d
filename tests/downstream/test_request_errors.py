"""No error of a request on the ASGI lane ends the lifespan, with all other requests."""

from __future__ import annotations

from typing import Any, cast

import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from llmux.downstream.asgi_own import OwnRequest
from llmux.downstream.asgi_watch import Watched
from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.proxy.forward import ModelProxy
from llmux.proxy.lane import ClientLeft

NO_PROXY = cast("ModelProxy", None)
SCOPE: dict[str, Any] = {"type": "http", "path": "/metrics"}


async def never() -> Message:
    await trio.sleep_forever()
    raise AssertionError


class Server:
    """An ASGI server that takes no message once it has closed the connection, as Hypercorn."""

    def __init__(self) -> None:
        self.is_closed = False
        self.sent: list[str] = []

    async def send(self, message: Message) -> None:
        if self.is_closed:
            raise RuntimeError(f"unexpected message {message['type']}")
        self.sent.append(message["type"])

    async def serve(self, request: Watched) -> None:
        await request.watch()
        self.is_closed = True


def own(app: ASGIApp, server: Server) -> OwnRequest:
    return OwnRequest(app, SCOPE, never, server.send)


async def test_an_error_beside_a_cancellation() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        async def fail() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while cancelled")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    request = own(app, Server())
    with capture_logs() as events:
        async with trio.open_nursery() as lifespan:
            lifespan.start_soon(request.run, NO_PROXY)
            await wait_all_tasks_blocked()
            request.scope.cancel()
            await request.ended.wait()
    assert [event["event"] for event in events] == ["request_failed"]


async def test_a_response_after_the_server_has_closed_the_connection() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
                await send({"type": "http.response.start", "status": 503, "headers": []})

    server = Server()
    request = own(app, server)
    with capture_logs() as events:
        async with trio.open_nursery() as lifespan:
            lifespan.start_soon(request.run, NO_PROXY)
            lifespan.start_soon(server.serve, request)
            await wait_all_tasks_blocked()
            request.watching.cancel()
            await request.ended.wait()
    assert server.sent == []
    assert events == []


async def test_a_lane_is_told_that_the_client_has_left() -> None:
    told: list[bool] = []

    class Late(Watched):
        async def serve(self, _proxy: ModelProxy) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
                try:
                    await self.send({"type": "http.response.start", "status": 200, "headers": []})
                except ClientLeft:
                    told.append(True)
                    raise

    server = Server()
    request = Late(never, server.send)
    async with trio.open_nursery() as lifespan:
        lifespan.start_soon(request.run, NO_PROXY)
        lifespan.start_soon(server.serve, request)
        await trio.lowlevel.checkpoint()
        request.watching.cancel()
    assert told == [True]
    assert server.sent == []
