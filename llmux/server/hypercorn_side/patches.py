"""Every process-wide patch of Hypercorn, each with the upstream bug that it works around.

They must hold for the whole process: under `hypercorn llmux.app:app` nothing of llmux makes the
connections, so there is no object to configure. All of these bugs are in Hypercorn 0.18.0, and
`pyproject.toml` admits no other minor version. Each patch may go with the first version that no
longer has its bug: whoever raises that bound checks all of them, with `tests/server`.
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
    """Closes a connection when the client sends more than Hypercorn can take.

    An exception from there, for HTTP2-Settings that are no base64 say, would end the server.
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
            with suppress(Exception):  # nothing else may be done with a protocol that has failed
                await self.send(Closed())


def patch_hypercorn() -> None:
    """Put llmux's classes in the place of Hypercorn's, in this whole process."""
    # A message before the handshake is answered gets a 400, and may end the server; compression is
    # negotiated without a bound on what a frame inflates to.
    h11.WSStream = h2.WSStream = HoldingWSStream  # type: ignore[attr-defined, assignment]
    # h11 takes bare LF, folded fields and NUL in chunk extensions, and replaces the answer to a
    # last request by an empty 400 if anything follows it.
    protocol.H11Protocol = StrictH11Protocol  # type: ignore[assignment, attr-defined]
    # DATA behind an early answer ends the connection with all its streams; floods of frames are
    # taken without a break; a response that is given up has no end.
    protocol.H2Protocol = BoundedH2Protocol  # type: ignore[assignment, attr-defined]
    # A stream buffers all of an answer that its client opens no window for, so no stall is seen.
    h2.StreamBuffer = BoundedBuffer  # type: ignore[misc]
    # An error that a protocol raises at malformed input ends the server, with all connections.
    trio_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
    asyncio_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
    # The task that reads a connection waits for room in a queue that no app reads any more.
    trio_server.TaskGroup = InboxTrioGroup  # type: ignore[attr-defined]
    asyncio_server.TaskGroup = InboxAsyncioGroup  # type: ignore[attr-defined]
    # A client that takes nothing holds its connection for ever; asyncio keeps a closed one, too.
    run: Any
    for run, server in (
        (hypercorn.trio.run, EndingTrioServer),
        (hypercorn.asyncio.run, EndingAsyncioServer),
    ):
        run.TCPServer = server
