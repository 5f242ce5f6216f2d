"""TLS on the fast lane: a client's connection whose bytes are encrypted, and what it needs besides.

Requests, WebSockets and the pump deal with it as with any other connection. Plain connections share
none of this code, and pay nothing for it.

    TlsConnection    bytes in and out
    TlsPieces        what the pump leaves to a request's task
    TlsRelay         a piece of a body on its way through the pump
    Farewells        clients that say goodbye and keep the connection open
"""

from __future__ import annotations

import select
import ssl
from typing import ClassVar

import outcome
import trio

from llmux.downstream.fast_connection import ClientConnection, Server
from llmux.downstream.fast_departures import Departures
from llmux.downstream.pump import BULK_BYTES, Pieces, Pump, Relay
from llmux.http import wire
from llmux.http.tls import SLICE_BYTES, TlsSocket, TlsStream
from llmux.proxy.lane import ClientLeft
from llmux.upstream.answers import WireBody

UNSENT = b"\0unsent"
"""Wakes the task of a body whose client's socket is full (compared by identity)."""


class TlsConnection(ClientConnection):
    """See `ClientConnection`.

    Args:
        lane: The lane that it belongs to.
        stream: The connection, before its handshake.
        context: Holds the certificate.

    Attributes:
        tls: Its encryption.
    """

    scheme: ClassVar[str] = "https"

    def __init__(self, lane: Server, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        super().__init__(lane, stream)
        self.tls = TlsSocket(self.socket, context)

    @property
    def whole_stream(self) -> TlsStream:
        """See `ClientConnection`."""
        return TlsStream(self.tls, self.stream)

    def has_left(self) -> bool:
        """See `ClientConnection`."""
        return self.tls.has_ended or super().has_left()

    def has_unread(self) -> bool:
        """See `ClientConnection`."""
        return self.tls.has_early or super().has_unread()

    async def receive(self) -> bytes:
        """See `ClientConnection`."""
        return await self.tls.receive()

    async def send(self, data: bytes) -> None:
        """See `ClientConnection`."""
        try:
            if len(data) <= SLICE_BYTES:
                is_sent = self.tls.write(data)
                self.sent_bytes += len(data)
                if not is_sent:
                    await self._flush()
                return
            with memoryview(data) as view:
                for start in range(0, len(view), SLICE_BYTES):
                    await self.send(bytes(view[start : start + SLICE_BYTES]))
        except wire.BREAKS:
            self.can_go_on = False
            raise ClientLeft from None

    async def _flush(self) -> None:
        self.is_sending = True
        try:
            await self.tls.flush(self.lane.stall_s)
        except trio.TooSlowError:
            self.can_go_on = False
            raise ClientLeft from None
        finally:
            self.is_sending = False

    async def flush(self) -> None:
        """Send what is encrypted; raises ClientLeft, as `send` does."""
        await self.send(b"")

    def pieces(self, body: WireBody) -> Pieces:
        """See `ClientConnection`."""
        return TlsPieces(self.lane.pump, body, self)

    async def end_sending(self) -> None:
        """See `ClientConnection`."""
        self.tls.say_goodbye()
        await super().end_sending()

    def say_goodbye(self) -> None:
        """See `ClientConnection`."""
        self.tls.say_goodbye()


class TlsRelay(Relay):
    """See `pump.Relay`.

    Its `step` repeats how `Relay.step` takes a piece: a shared method would be one more call for
    each piece on plain connections.
    """

    __slots__ = ("_tls",)

    def __init__(self, body: WireBody, client: ClientConnection) -> None:
        super().__init__(body, client)
        assert isinstance(client, TlsConnection)
        self._tls = client.tls

    def step(self) -> outcome.Maybe[bytes] | None:
        """See `pump.Relay`."""
        try:
            data = self._source.receive_now()
            if data is None:
                return None
            self.is_bulk = len(data) >= BULK_BYTES
            data = self._body.take(data)
        except Exception as error:
            return outcome.Error(error)
        try:
            is_sent = self._tls.write(data)
        except wire.BREAKS:
            return outcome.Error(ClientLeft())
        self._client.sent_bytes += len(data)
        if not is_sent:
            return outcome.Value(UNSENT)
        return outcome.Value(b"") if self._source.has_ended else None


class TlsPieces(Pieces):
    """See `Pieces`."""

    __slots__ = ("_tls_client",)
    _kind: ClassVar[type[Relay]] = TlsRelay

    def __init__(self, pump: Pump, body: WireBody, client: TlsConnection) -> None:
        super().__init__(pump, body, client)
        self._tls_client = client

    async def __anext__(self) -> bytes:
        while (data := await super().__anext__()) is UNSENT:
            await self._tls_client.flush()
        return data


class Farewells(Departures):
    """Notices clients that say goodbye in TLS, and keep the connection open.

    The kernel sees only bytes there. So connections with unread bytes are looked at once a second,
    unless their task reads them itself.
    """

    events: ClassVar[int] = select.EPOLLIN

    def look(self) -> None:
        """See `Departures`."""
        for fileno, _ in self._epoll.poll(0):
            connection = self._connections.get(fileno)
            if isinstance(connection, TlsConnection):
                connection.tls.look()
                if connection.tls.has_ended:
                    connection.note_left()

    def close(self) -> None:
        """Stop watching."""
        self._epoll.close()
