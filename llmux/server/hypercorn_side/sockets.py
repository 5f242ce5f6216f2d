"""Corrections to how Hypercorn uses sockets: sending, half-closing, and noticing departures."""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from hypercorn.events import Closed, Event

from llmux.http import wire
from llmux.server.hypercorn_side.rules import RULES

Send = Callable[[Event], Awaitable[None]]


class Sending:
    """Sends on a connection: Hypercorn's `TCPServer.protocol_send`, without its tracebacks.

    Trio lets nobody send while another task says that nothing more will come, as Hypercorn does
    when it closes. It takes what that raises for a mistake of the app's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._server: Any = getattr(send, "__self__", None)

    async def __call__(self, event: Event) -> None:
        """Send, or tell the protocol that the connection is closed."""
        try:
            await self._send(event)
        except trio.BusyResourceError:
            await self._server.protocol.handle(Closed())

    async def end(self) -> None:
        """Half-close the connection where the transport can (TLS cannot)."""
        with suppress(Exception):
            if (stream := getattr(self._server, "stream", None)) is not None:
                await stream.send_eof()
            elif (writer := getattr(self._server, "writer", None)) is not None:
                writer.write_eof()

    def has_left(self) -> bool:
        """Return whether the client has closed its side, even behind bytes that are still unread.

        False where that cannot be known: only Linux can tell.
        """
        found = socket_of(self._server)
        if found is None or not hasattr(select, "POLLRDHUP"):
            return False
        if found.fileno() < 0:  # asyncio has seen it break, and tells only who reads
            return True
        poll = select.poll()
        poll.register(found.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))


def notice_death(server: Any) -> None:
    """Have the kernel notice when the client's host is gone without closing.

    Args:
        server: Hypercorn's `TCPServer`, of Trio or asyncio.
    """
    if (sock := socket_of(server)) is not None:
        with suppress(OSError, trio.ClosedResourceError):  # reset before it was accepted
            wire.notice_death(sock, RULES.dead_peer_s, RULES.stall_s)


def socket_of(server: Any) -> Any:
    """Return the socket of a connection's `TCPServer`, or None without one, as in tests."""
    if (stream := getattr(server, "stream", None)) is not None:
        stream = getattr(stream, "transport_stream", stream)  # TLS
        return getattr(stream, "socket", None)
    if (writer := getattr(server, "writer", None)) is not None:
        return writer.get_extra_info("socket")
    return None


def has_room(task_group: Any) -> bool:
    """Return whether a task can still start: in a group that asyncio has cancelled, that raises."""
    return not getattr(getattr(task_group, "_task_group", None), "_aborting", False)


class ReadAhead:
    """A stream with bytes read ahead; it has only what Hypercorn needs of a stream."""

    def __init__(self, stream: trio.SocketStream, data: bytes) -> None:
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
