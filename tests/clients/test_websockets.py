"""WebSockets with the `websockets` package on both sides, and llmux between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.clients.site import PATIENCE_S, Site, needs_package, package, running_site

pytestmark = [pytest.mark.slow, needs_package("websockets")]

LARGE = 3 << 20


class Echo:
    """A server that sends back what it gets, and remembers how each connection ended."""

    def __init__(self) -> None:
        self.closed = package("websockets.exceptions").ConnectionClosed
        self.paths: list[str] = []
        self.ends: list[tuple[int | None, str | None]] = []

    async def serve(self, socket: Any) -> None:
        self.paths.append(socket.request.path)
        with suppress(self.closed):
            while (message := await socket.recv()) != "vanish":
                if isinstance(message, str) and message.startswith("close "):
                    await socket.aclose(int(message.removeprefix("close ")), "as you wish")
                await socket.send(message)
            await trio.aclose_forcefully(socket.stream)
        self.ends.append((socket.close_code, socket.close_reason))


@asynccontextmanager
async def running_echo(
    form: str, folder: Path, subprotocols: list[str] | None = None
) -> AsyncIterator[tuple[Site, Echo]]:
    server = package("websockets.trio.server")
    echo = Echo()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        running = await nursery.start(
            lambda task_status: server.serve(
                echo.serve, listeners=listeners, subprotocols=subprotocols,
                max_size=LARGE, task_status=task_status,
            )
        )  # fmt: skip
        async with running_site(folder, form, {"scripted": {"port": port}}) as site:
            with trio.fail_after(PATIENCE_S):
                yield site, echo
        await running.aclose()


def connect(site: Site, path: str = "/v1/realtime?model=scripted", **options: Any) -> Any:
    url = site.url.replace("http://", "ws://") + path
    return package("websockets.trio.client").connect(url, max_size=LARGE, **options)


async def in_flight(site: Site) -> int:
    async with site.llmux.client() as client:
        facts = (await client.get("/v1/models/scripted")).json()["llmux"]
    return int(facts["in_flight"])


async def test_messages_and_subprotocol(form: str, tmp_path: Path) -> None:
    async with running_echo(form, tmp_path, ["realtime", "chat"]) as (site, echo):
        async with connect(site, subprotocols=["chat", "other"]) as socket:
            assert socket.subprotocol == "chat"
            assert socket.response.headers["x-llmux-model"] == "scripted"
            assert await in_flight(site) == 1
            for message in ("zwölf", b"\x00\xff" * 10, "", b"", "x" * (2 << 20), b"y" * (2 << 20)):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send(["in ", "two ", "parts"])
            assert await socket.recv() == "in two parts"
            await (await socket.ping("alive?")).wait()
        assert echo.paths == ["/v1/realtime?model=scripted"]
        while await in_flight(site):
            pass


async def test_without_a_subprotocol(form: str, tmp_path: Path) -> None:
    async with running_echo(form, tmp_path) as (site, echo):
        async with connect(site, "/upstream/scripted/any/where?x=1", compression=None) as socket:
            assert socket.subprotocol is None
            await socket.send("hello")
            assert await socket.recv() == "hello"
        assert echo.paths == ["/any/where?x=1"]


@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_close_codes(form: str, code: int, tmp_path: Path) -> None:
    closed = package("websockets.exceptions").ConnectionClosed
    async with running_echo(form, tmp_path) as (site, echo):
        async with connect(site) as socket:
            await socket.send(f"close {code}")
            with pytest.raises(closed):
                await socket.recv()
            assert socket.close_code == code
            if form == "llmux":  # Hypercorn sends no reason
                assert socket.close_reason == "as you wish"
        async with connect(site) as socket:
            await socket.aclose(code, "bye")
        await site.until(lambda: len(echo.ends) == 2)
        # Hypercorn tells its app 1000 for any code that a client closes with.
        assert echo.ends[1] == ((code, "bye") if form == "llmux" else (1000, ""))


async def test_a_server_that_goes_away(form: str, tmp_path: Path) -> None:
    """Without a closing frame nobody may see a good end."""
    closed = package("websockets.exceptions").ConnectionClosedError
    async with running_echo(form, tmp_path) as (site, echo):
        async with connect(site) as socket:
            await socket.send("vanish")
            with pytest.raises(closed):
                await socket.recv()
        assert echo.paths


async def test_refused_handshakes(form: str, tmp_path: Path) -> None:
    refused = package("websockets.exceptions").InvalidStatus
    async with running_site(tmp_path, form, api_keys=["secret"]) as site:
        key = {"additional_headers": {"Authorization": "Bearer secret"}}
        with trio.fail_after(PATIENCE_S):
            for path, options, status in (
                ("/v1/realtime?model=none", key, 404),
                ("/v1/realtime?model=a", {}, 401),
                ("/v1/realtime?model=a", key, 404),  # the stand-in speaks no WebSocket
            ):
                with pytest.raises(refused) as error:
                    async with connect(site, path, **options):
                        pass
                assert error.value.response.status_code == status
