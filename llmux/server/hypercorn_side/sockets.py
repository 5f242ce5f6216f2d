"""Corrections to how Hypercorn uses sockets: sending, half-closing, noticing that peers left."""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from hypercorn.events import Closed, Event

from llmux.http import wire
from llmux.http.tls import TlsStream
from llmux.server.hypercorn_side.rules import RULES

Send = Callable[[Event], Awaitable[None]]


class Sending:
    """Wraps Hypercorn's `TCPServer.protocol_send`, so that a late send does not raise.

    When Hypercorn closes a connection it sends EOF, and in Trio no other task may send meanwhile.
    Hypercorn reports the resulting error as the app's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._server: Any = getattr(send, "__self__", None)

    async def __call__(self, event: Event) -> None:
        try:
            await self._send(event)
        except trio.BusyResourceError:
            await self._server.protocol.handle(Closed())

    async def end(self) -> None:
        """Half-close the connection if the transport supports it (TLS does not)."""
        with suppress(Exception):
            if (stream := getattr(self._server, "stream", None)) is not None:
                await stream.send_eof()
            elif (writer := getattr(self._server, "writer", None)) is not None:
                writer.write_eof()

    def has_left(self) -> bool:
        """Return whether the client has closed its side, even if received bytes are still unread.

        Always False except on Linux, where POLLRDHUP tells.
        """
        found = socket_of(self._server)
        if found is None or not hasattr(select, "POLLRDHUP"):
            return False
        if found.fileno() < 0:  # asyncio closed a broken one; only a reader is told
            return True
        poll = select.poll()
        poll.register(found.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))


def notice_death(server: Any) -> None:
    """Make the kernel notice when the client's host disappears without closing the connection.

    Args:
        server: Hypercorn's `TCPServer`, of Trio or asyncio.
    """
    if (sock := socket_of(server)) is not None:
        with suppress(OSError, trio.ClosedResourceError):  # reset before it was accepted
            wire.notice_death(sock, RULES.dead_peer_s, RULES.stall_s)


def socket_of(server: Any) -> Any:
    """Return the socket of a connection's `TCPServer`, or None if it has none, as in tests."""
    if (stream := getattr(server, "stream", None)) is not None:
        stream = getattr(stream, "transport_stream", stream)  # TLS
        return getattr(stream, "socket", None)
    if (writer := getattr(server, "writer", None)) is not None:
        return writer.get_extra_info("socket")
    return None


def has_room(task_group: Any) -> bool:
    """Return whether a task can still be started: asyncio raises in a cancelled task group."""
    return not getattr(getattr(task_group, "_task_group", None), "_aborting", False)


class ReadAhead:
    """A stream with bytes that were read ahead; it has only the methods that Hypercorn calls."""

    def __init__(self, stream: trio.SocketStream | TlsStream, data: bytes) -> None:
        self._stream = stream
        self._data = data
        self.socket = stream.socket
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._data:
            data, self._data = self._data, b""
            await trio.lowlevel.checkpoint()
            return data
        return bytes(await self._stream.receive_some(max_bytes))


class TlsReadAhead(ReadAhead):
    """The same over TLS, which Hypercorn tells by these methods."""

    def __init__(self, stream: TlsStream, data: bytes) -> None:
        super().__init__(stream, data)
        self.transport_stream = stream.transport_stream
        self.do_handshake = stream.do_handshake
        self.selected_alpn_protocol = stream.selected_alpn_protocol


def read_ahead(stream: trio.SocketStream | TlsStream, data: bytes) -> ReadAhead:
    """Return a stream with bytes that were read ahead, in the form that Hypercorn takes."""
    return TlsReadAhead(stream, data) if isinstance(stream, TlsStream) else ReadAhead(stream, data)
