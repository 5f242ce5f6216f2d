"""The only package that uses Hypercorn's internal classes: lifespan, connections and WebSockets.

These classes are not public API: `pyproject.toml` pins the minor version, and the tests in
`tests/server/test_e2e.py` fail if they change. Process-wide patches are all in `patches.py`.
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

from llmux.http.asgi_types import ASGIApp
from llmux.http.tls import TlsStream
from llmux.server.hypercorn_side.ends import EndingTrioServer
from llmux.server.hypercorn_side.patches import patch_hypercorn
from llmux.server.hypercorn_side.rules import RULES, use_rules
from llmux.server.hypercorn_side.sockets import read_ahead

__all__ = ["RULES", "HypercornSide", "patch_hypercorn", "use_rules"]


ServedStream = trio.SocketStream | TlsStream


class HypercornSide:
    """Runs an ASGI app's lifespan, and serves single connections for it."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        patch_hypercorn()
        self._app = ASGIWrapper(app)
        self._config = config
        self._context = WorkerContext(None)
        self._state: LifespanState = {}
        self._serving: dict[TCPServer, ServedStream] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the app's lifespan: its startup on entry, its shutdown on exit."""
        lifespan = Lifespan(self._app, self._config, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            yield
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()

    async def serve(self, stream: ServedStream, data: bytes) -> None:
        """Serve a connection until it ends; `data` holds bytes that were already read from it."""
        server = EndingTrioServer(
            self._app,
            self._config,
            self._context,
            ConnectionState(self._state.copy()),
            read_ahead(stream, data),
        )
        self._serving[server] = stream
        try:
            await server
        finally:
            del self._serving[server]

    async def stop(self) -> None:
        """Close idle connections now, and each busy one once its current request has ended."""
        await self._context.terminated.set()
        for server, stream in tuple(self._serving.items()):
            # Hypercorn considers an HTTP/2 connection busy from its preface on, so it would not
            # close this one until the client does.
            protocol = getattr(getattr(server, "protocol", None), "protocol", None)
            if isinstance(protocol, H2Protocol) and protocol.idle:
                await stream.aclose()
