"""The one place that uses Hypercorn's own classes: its lifespan, connections, and WebSockets.

They are no public API; `pyproject.toml` bounds the version, and `tests/test_e2e.py` notices if they
change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol import ProtocolWrapper, h2, h11
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio import tcp_server
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState, WebsocketAcceptEvent

from llmux.asgi_types import ASGIApp
from llmux.logs import get_logger
from llmux.names import shown

MAX_EARLY_BYTES = 65536
"""What a client may send of its WebSocket before the handshake is answered."""

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


class AsciiHTTPStream(HTTPStream):
    """A request whose path may be anything that HTTP/2 lets pass; h11 has looked at others.

    Hypercorn fails at bytes that are not ASCII, and would close the connection, other requests on
    it included.
    """

    async def handle(self, event: Event) -> None:
        """Refuse what Hypercorn cannot take."""
        if isinstance(event, Request) and not event.raw_path.isascii():
            self.closed = True
            headers = [(b"content-length", b"0")]
            number = self.stream_id
            await self.send(Response(stream_id=number, headers=headers, status_code=400))
            await self.send(EndBody(stream_id=number))
            await self.send(StreamClosed(stream_id=number))
            return
        await super().handle(event)


class HoldingWSStream(WSStream):
    """A WebSocket whose client may send before its handshake is answered.

    Hypercorn answers that with a 400 of its own and tells the app nothing from then on, not even
    that the client leaves. If the app has answered by then, the second answer ends the server.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._early = b""
        self._opened = self.context.event_class()

    async def handle(self, event: Event) -> None:
        """Hold what comes too early; what follows a refusal is for nobody."""
        if isinstance(event, Request):
            await self._begin(event)
        elif self.closed or self._opened.is_set() or not isinstance(event, Body | Data):
            await super().handle(event)
        elif self.state is ASGIWebsocketState.CONNECTED:
            await self._opened.wait()
            await super().handle(event)
        elif self.state is ASGIWebsocketState.HANDSHAKE:
            self._early += event.data
            if len(self._early) > MAX_EARLY_BYTES:
                await self.send(StreamClosed(stream_id=self.stream_id))

    async def _begin(self, request: Request) -> None:
        """Close what Hypercorn refuses; it would leave that open. Refuse what breaks it."""
        stream_id = self.stream_id
        try:
            await super().handle(request)
        except UnicodeDecodeError:  # in a header of the handshake
            self.closed = True
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await self.send(Response(stream_id=stream_id, headers=headers, status_code=400))
            await self.send(EndBody(stream_id=stream_id))
        if self.closed:
            await self.send(StreamClosed(stream_id=stream_id))

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        await super()._accept(message)
        # Not here, where the app waits: it could not take them meanwhile.
        self.task_group.spawn(self._take_early)

    async def _take_early(self) -> None:
        await super().handle(Data(stream_id=self.stream_id, data=self._early))
        self._early = b""
        await self._opened.set()


class GuardedProtocol(ProtocolWrapper):
    """A connection that is closed when what the client sends is more than Hypercorn can take.

    What it raises then, at HTTP2-Settings that are no base64 say, would end the server.
    """

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
    h11.HTTPStream = h2.HTTPStream = AsciiHTTPStream  # type: ignore[attr-defined]
    tcp_server.ProtocolWrapper = GuardedProtocol  # type: ignore[attr-defined]
