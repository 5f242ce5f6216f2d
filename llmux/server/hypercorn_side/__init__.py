"""The one place that uses Hypercorn's own classes: its lifespan, connections, and WebSockets.

They are no public API; `pyproject.toml` bounds the version, and `tests/server/test_e2e.py` notices
if they change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import hypercorn.asyncio.run
import hypercorn.trio.run
import trio
from hypercorn import protocol
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio import tcp_server as asyncio_server
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol import ProtocolWrapper, h2, h11
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio import tcp_server as trio_server
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState, TaskGroup
from hypercorn.typing import WorkerContext as AnyWorkerContext

from llmux.base.names import shown
from llmux.http.asgi_types import ASGIApp
from llmux.observe.logs import get_logger
from llmux.server.hypercorn_side.ends import BoundedBuffer, EndingAsyncioServer, EndingTrioServer
from llmux.server.hypercorn_side.http1 import StrictH11Protocol
from llmux.server.hypercorn_side.http2 import BoundedH2Protocol
from llmux.server.hypercorn_side.inbox import InboxAsyncioGroup, InboxTrioGroup
from llmux.server.hypercorn_side.rules import RULES, use_rules
from llmux.server.hypercorn_side.sockets import ReadAhead, Send, Sending
from llmux.server.hypercorn_side.websocket import HoldingWSStream

__all__ = ["RULES", "HypercornSide", "mend_hypercorn", "use_rules"]

log = get_logger(__name__)


class HypercornSide:
    """Runs an ASGI app's lifespan, and serves single connections for it."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        mend_hypercorn()
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
        server = EndingTrioServer(
            self._app,
            self._config,
            self._context,
            ConnectionState(self._state.copy()),
            ReadAhead(stream, data),
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


class GuardedProtocol(ProtocolWrapper):
    """A connection that is closed when what the client sends is more than Hypercorn can take.

    What it raises then, at HTTP2-Settings that are no base64 say, would end the server.
    """

    def __init__(  # noqa: PLR0917 - Hypercorn's
        self,
        app: AppWrapper,
        config: Config,
        context: AnyWorkerContext,
        task_group: TaskGroup,
        state: ConnectionState,
        ssl: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Send,
        alpn_protocol: str | None = None,
    ) -> None:
        sending = Sending(send)
        super().__init__(
            app, config, context, task_group, state, ssl, client, server, sending, alpn_protocol
        )

    async def handle(self, event: ConnectionEvent) -> None:
        """Close it, which is also all that may be done with a protocol that has failed."""
        try:
            await super().handle(event)
        except Exception as error:
            if not isinstance(event, RawData):
                raise
            log.debug("request_unreadable", error=shown(repr(error)))
            with suppress(Exception):
                await self.send(Closed())


def mend_hypercorn() -> None:
    """Have Hypercorn use these, in this whole process."""
    h11.WSStream = h2.WSStream = HoldingWSStream  # type: ignore[attr-defined, assignment]
    protocol.H11Protocol = StrictH11Protocol  # type: ignore[assignment, attr-defined]
    protocol.H2Protocol = BoundedH2Protocol  # type: ignore[assignment, attr-defined]
    h2.StreamBuffer = BoundedBuffer  # type: ignore[misc]
    trio_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
    asyncio_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
    trio_server.TaskGroup = InboxTrioGroup  # type: ignore[attr-defined]
    asyncio_server.TaskGroup = InboxAsyncioGroup  # type: ignore[attr-defined]
    run: Any
    for run, server in (
        (hypercorn.trio.run, EndingTrioServer),
        (hypercorn.asyncio.run, EndingAsyncioServer),
    ):
        run.TCPServer = server
