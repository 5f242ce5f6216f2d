"""Every process-wide patch of Hypercorn, each with the upstream bug that it works around.

They apply to the whole process: under `hypercorn llmux.app:app` Hypercorn creates the connections,
so llmux has no object to configure. All of these bugs are in Hypercorn 0.18.0, and `pyproject.toml`
admits no other minor version. Before raising that bound, check each patch with `tests/server`, and
remove those whose bug is fixed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypercorn.asyncio.run
import hypercorn.trio.run
from hypercorn import protocol
from hypercorn.asyncio import tcp_server as asyncio_server
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol import ProtocolWrapper, h2, h11
from hypercorn.trio import tcp_server as trio_server
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup, WorkerContext

from llmux.base.names import shown
from llmux.observe.logs import get_logger
from llmux.server.hypercorn_side.ends import BoundedBuffer, EndingAsyncioServer, EndingTrioServer
from llmux.server.hypercorn_side.http1 import StrictH11Protocol
from llmux.server.hypercorn_side.http2 import BoundedH2Protocol
from llmux.server.hypercorn_side.inbox import InboxAsyncioGroup, InboxTrioGroup
from llmux.server.hypercorn_side.sockets import Send, Sending
from llmux.server.hypercorn_side.websocket import HoldingWSStream

log = get_logger(__name__)


class GuardedProtocol(ProtocolWrapper):
    """Closes a connection when Hypercorn fails on the client's input.

    The exception, for example for HTTP2-Settings that are not base64, would end the server.
    """

    def __init__(  # noqa: PLR0917 - Hypercorn's
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
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
        try:
            await super().handle(event)
        except Exception as error:
            if not isinstance(event, RawData):
                raise
            log.debug("request_unreadable", error=shown(repr(error)))
            with suppress(Exception):  # a protocol that has failed is good for nothing else
                await self.send(Closed())


def patch_hypercorn() -> None:
    """Replace Hypercorn's classes with llmux's, for the whole process."""
    # A message before the handshake is answered gets a 400, and may end the server; compression is
    # negotiated without a bound on the size of the inflated frame.
    h11.WSStream = h2.WSStream = HoldingWSStream  # type: ignore[attr-defined, assignment]
    # h11 accepts bare LF, folded fields and NUL in chunk extensions; if anything follows a
    # connection's last request, its response is replaced with an empty 400.
    protocol.H11Protocol = StrictH11Protocol  # type: ignore[assignment, attr-defined]
    # DATA after an early response ends the connection with all its streams; a flood of frames
    # keeps other tasks from running; a response that the app gives up gets no end.
    protocol.H2Protocol = BoundedH2Protocol  # type: ignore[assignment, attr-defined]
    # A stream buffers a whole response for a client that opens no window, so no stall is noticed.
    h2.StreamBuffer = BoundedBuffer  # type: ignore[misc]
    # An exception in a protocol on malformed input ends the server, with all connections.
    trio_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
    asyncio_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
    # The task that reads a connection waits for room in a queue after its app has ended.
    trio_server.TaskGroup = InboxTrioGroup  # type: ignore[attr-defined]
    asyncio_server.TaskGroup = InboxAsyncioGroup  # type: ignore[attr-defined]
    # A client that reads nothing keeps its connection forever; on asyncio even a closed one.
    run: Any
    for run, server in (
        (hypercorn.trio.run, EndingTrioServer),
        (hypercorn.asyncio.run, EndingAsyncioServer),
    ):
        run.TCPServer = server
