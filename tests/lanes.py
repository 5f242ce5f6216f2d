"""Both lanes in this process: real sockets on both sides, hooks on a fake GPU."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import httpx
import pytest
import trio
import trio.testing

from llmux.config import parse_config
from llmux.downstream.fastlane import FastLane
from llmux.http import wire
from llmux.server.composition import Service, build_service
from llmux.server.hypercorn_side import HypercornSide
from llmux.server.listening import server_config
from llmux.server.run import serving
from tests.certificates import client_context, write_pair
from tests.fakes import FakeHooks

LANES = ["fast", "asgi"]

LANES_AND_TLS = [
    *LANES,
    pytest.param("tls", marks=pytest.mark.slow),
    pytest.param("asgi-tls", marks=pytest.mark.slow),
]
"""The same over TLS, too, when there is time: `tls` is the fast lane, `asgi-tls` the other."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class ScriptedBackend:
    """A backend that records what it gets, and plays what a test wants for each connection.

    Args:
        path: The Unix socket that it listens on, instead of a port.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.port = 0
        self.received: list[bytes] = []
        self.open = 0
        self.play: Callable[[trio.SocketStream, bytes], Awaitable[None]] = play(OK)

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        if self.path is not None:
            unix = trio.socket.socket(socket.AF_UNIX)
            await unix.bind(str(self.path))
            unix.listen(64)
            listeners = [trio.SocketListener(unix)]
        else:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    @property
    def place(self) -> dict[str, Any]:
        """What a model's config says of where it is."""
        return {"port": self.port} if self.path is None else {"url": f"unix:{self.path}"}

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.open += 1
        try:
            while request := await read_request(stream):
                self.received.append(request)
                await self.play(stream, request)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)


async def read_request(stream: trio.SocketStream) -> bytes:
    """One request with a Content-Length or no body; nothing at the end of the stream."""
    data = b""
    while True:
        head, blank, body = data.partition(b"\r\n\r\n")
        if blank:
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(body) >= length:
                return data
        more = bytes(await stream.receive_some())
        if not more:
            return b""
        data += more


def play(
    *pieces: bytes, close: bool = False
) -> Callable[[trio.SocketStream, bytes], Awaitable[None]]:
    """Answer each request with these pieces, one send each."""

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()
        if close:
            await stream.aclose()

    return answer


class TlsClient:
    """A client over TLS, with what tests do to its socket."""

    def __init__(self, tls: trio.SSLStream[trio.SocketStream]) -> None:
        tcp = tls.transport_stream
        self.socket, self.setsockopt, self.send_eof = tcp.socket, tcp.setsockopt, tcp.send_eof
        self.unwrap, self.receive_some, self.send_all = tls.unwrap, tls.receive_some, tls.send_all
        self.aclose = tls.aclose

    async def __aenter__(self) -> TlsClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Site:
    """A running llmux on one lane."""

    def __init__(
        self,
        service: Service,
        backend: ScriptedBackend,
        port: int,
        fast: FastLane,
        *,
        is_tls: bool = False,
    ) -> None:
        self.service = service
        self.fast = fast
        self.backend = backend
        self.port = port
        self.is_tls = is_tls
        self.url = f"http{'s' if is_tls else ''}://127.0.0.1:{port}"

    async def connect(self) -> trio.SocketStream:
        """A connection; over TLS its handshake is done, and it is a `TlsClient`."""
        tcp = await trio.open_tcp_stream("127.0.0.1", self.port)
        if not self.is_tls:
            return tcp
        tls = trio.SSLStream(
            tcp, client_context(), server_hostname="127.0.0.1", https_compatible=True
        )
        await tls.do_handshake()
        return cast("trio.SocketStream", TlsClient(tls))

    async def exchange(self, *pieces: bytes, seconds: float = 20) -> bytes:
        """Send raw pieces on one connection; returns all that comes back until it is closed."""
        stream = await self.connect()
        async with stream:
            with trio.fail_after(seconds):
                for piece in pieces:
                    await stream.send_all(piece)
                return await read_all(stream)

    def client(self) -> httpx.AsyncClient:
        # To read the system's certificates would take 0.05 s, and there is no TLS.
        return httpx.AsyncClient(base_url=self.url, timeout=10, verify=self.trusted)

    @property
    def trusted(self) -> ssl.SSLContext | bool:
        """For the `verify` of httpx."""
        return client_context() if self.is_tls else False

    @property
    def in_flight(self) -> int:
        return self.service.board.in_flight_count("a")

    async def cut(self, request: bytes, passed_on: bytes) -> bytes:
        """Send a request and cut it where it waits, after `passed_on` has come; returns the whole answer."""
        async with await self.connect() as stream:
            with trio.fail_after(20):
                await stream.send_all(request)
                received = b""
                while passed_on not in received:
                    received += await stream.receive_some()
                await settled()
                self.service.board.models["a"].in_flight.cut()
                return received + await read_all(stream)

    async def until_idle(self) -> None:
        with trio.fail_after(20):
            while self.in_flight or self.service.board.queue_depths["a"]:
                await trio.sleep(0.001)


async def settled() -> None:
    """Wait until no task here has anything to do, as all that was sent here has been read."""
    await trio.testing.wait_all_tasks_blocked(0.01)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything until the end of the stream; a reset ends it, too."""
    data = b""
    try:
        while more := await stream.receive_some():
            data += more
    except trio.BrokenResourceError:
        pass
    return data


@asynccontextmanager
async def running_lane(
    lane: str,
    folder: Path,
    *,
    models: Sequence[str] = ("a",),
    hooks: FakeHooks | None = None,
    socket_path: Path | None = None,
    model_settings: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> AsyncIterator[Site]:
    """Start a scripted backend and llmux in front of it; at the end nothing may be left over."""
    backend = ScriptedBackend(socket_path)
    is_tls = lane.endswith("tls")
    if is_tls and "tls" not in settings:
        settings["tls"] = write_pair(folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        model = {**backend.place, "wake": "up", "sleep": "down", "alive": "ping", **model_settings}
        config = parse_config(
            {"models": dict.fromkeys(models, model), "state_dir": str(folder), **settings},
            directory=folder,
        )
        service = build_service(config, hooks=hooks or FakeHooks())
        rest = HypercornSide(service.app, server_config("127.0.0.1", 0, config))
        fast = FastLane(
            service.proxy,
            rest.serve,
            stall_s=config.limits.client_stall_secs,
            most_fields=config.limits.header_fields,
        )
        async with rest.lifespan():
            nursery.start_soon(fast.run)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            limits = config.limits
            wire.notice_death(listeners[0].socket, limits.dead_peer_secs, limits.client_stall_secs)
            served_by = fast if lane in {"fast", "tls"} else None
            handler = serving(served_by, rest, service.certificates)
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            port = listeners[0].socket.getsockname()[1]
            site = Site(service, backend, port, fast, is_tls=is_tls)
            yield site
            await site.until_idle()
        nursery.cancel_scope.cancel()
