"""The one place that uses Hypercorn's own classes: its lifespan, and connections handed to it.

They are no public API; `pyproject.toml` bounds the version, and `tests/test_e2e.py` notices if they
change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from llmux.asgi_types import ASGIApp


class HypercornSide:
    """Runs an ASGI app's lifespan, and serves single connections for it."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app = ASGIWrapper(app)
        self._config = config
        self._context = WorkerContext(None)
        self._state: LifespanState = {}
        self._serving: dict[TCPServer, trio.SocketStream] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """From the app's startup to its shutdown."""
        lifespan = Lifespan(self._app, self._config, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            yield
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()

    async def serve(self, stream: trio.SocketStream, data: bytes) -> None:
        """Serve a connection of which some bytes have been read, to its end."""
        server = TCPServer(
            self._app,
            self._config,
            self._context,
            ConnectionState(self._state.copy()),
            ReadAhead(stream, data),  # type: ignore[arg-type]
        )
        self._serving[server] = stream
        try:
            await server
        finally:
            del self._serving[server]

    async def stop(self) -> None:
        """Close idle connections, and the others after the request that they carry."""
        await self._context.terminated.set()
        for server, stream in tuple(self._serving.items()):
            # Hypercorn takes HTTP/2 for busy from its preface on.
            protocol = getattr(getattr(server, "protocol", None), "protocol", None)
            if isinstance(protocol, H2Protocol) and protocol.idle:
                await stream.aclose()


class ReadAhead:
    """A stream some of whose bytes have been read; what Hypercorn needs of one, no more."""

    def __init__(self, stream: trio.SocketStream, data: bytes) -> None:
        self._stream = stream
        self._data = data
        self.socket = stream.socket
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What was read ahead first, then what comes."""
        if self._data:
            data, self._data = self._data, b""
            await trio.lowlevel.checkpoint()
            return data
        return bytes(await self._stream.receive_some(max_bytes))
