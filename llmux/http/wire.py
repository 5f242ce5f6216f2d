"""Reading and writing sockets with as little as possible around each system call.

Trio's own `receive_some` and `send_all` try the call, then wait, then check twice for cancellation.
In a stream of tokens the first try to read nearly always fails, and the first try to write nearly
always succeeds: so here reading waits first, and writing does not wait at all if it need not. Every
read is a checkpoint; a write is one only if it blocks.
"""

from __future__ import annotations

import errno
import math
import os
import socket as sockets
from contextlib import suppress
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, AF_UNIX, SO_ERROR, SOL_SOCKET
from socket import socket as stdlib_socket
from typing import Any, Protocol

import trio

RECEIVE_BYTES = 65536
"""One receive buffer, and all that is read ahead of whoever takes the data."""

FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05
"""Between two tries to connect to a Unix socket whose backlog is full: a server that accepts at all
has room again soon, and a try costs a few microseconds."""

PROBES = 4
"""Unanswered, so many probes mean that a peer is dead."""

LONGEST_PROBE_S = 32767
LONGEST_UNACKED_MS = (1 << 31) - 1
"""The most that Linux takes (MAX_TCP_KEEPIDLE in net/tcp.h; an int)."""

BREAKS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a connection that breaks raises."""


class Adjustable(Protocol):
    """A socket of Trio, asyncio or the standard library."""

    @property
    def family(self) -> int:
        """Its address family."""
        ...

    def setsockopt(self, level: int, option: int, value: int, /) -> Any:
        """Set an option; raises OSError."""
        ...


def notice_death(sock: Adjustable, dead_s: float | None, stall_s: float = 0.0) -> None:
    """Have the kernel break a connection whose other host is gone, though it never said so.

    Connections that a listening socket accepts inherit this on Linux. Unix sockets need none of it;
    what a platform does not have is left out.

    Args:
        sock: A connection, or a socket that listens.
        dead_s: Seconds without an answer after which the host counts as gone; None: as the system
            has it, which is mostly for ever.
        stall_s: For so long the other side may be alive and take nothing. Linux breaks that, too:
            see `allow_stall`.
    """
    if dead_s is None or sock.family not in {AF_INET, AF_INET6}:
        return
    idle_s = _whole(dead_s / 2, LONGEST_PROBE_S)
    for level, name, value in (
        ("SOL_SOCKET", "SO_KEEPALIVE", 1),
        ("IPPROTO_TCP", "TCP_KEEPIDLE", idle_s),
        ("IPPROTO_TCP", "TCP_KEEPALIVE", idle_s),  # the same on macOS
        ("IPPROTO_TCP", "TCP_KEEPINTVL", _whole(dead_s / 2 / PROBES, LONGEST_PROBE_S)),
        ("IPPROTO_TCP", "TCP_KEEPCNT", PROBES),
        ("IPPROTO_TCP", "TCP_USER_TIMEOUT", _unacked_ms(max(dead_s, stall_s))),
    ):
        _set(sock, level, name, value)


def allow_stall(sock: Adjustable, dead_s: float | None, *, allowed: bool) -> None:
    """Let the other side be alive and read nothing, or no more, for longer than `dead_s`.

    TCP_USER_TIMEOUT also breaks a connection whose window has been shut for so long (tcp(7)). While
    it is off, a peer that is gone is noticed by unanswered probes, or retransmissions.
    """
    if dead_s is not None and sock.family in {AF_INET, AF_INET6}:
        _set(sock, "IPPROTO_TCP", "TCP_USER_TIMEOUT", 0 if allowed else _unacked_ms(dead_s))


def _set(sock: Adjustable, level: str, name: str, value: int) -> None:
    if (option := getattr(sockets, name, None)) is not None:
        with suppress(OSError):
            sock.setsockopt(getattr(sockets, level), option, value)


def _whole(value: float, most: int) -> int:
    return max(1, min(round(value), most))


def _unacked_ms(seconds: float) -> int:
    return _whole(min(seconds, LONGEST_UNACKED_MS) * 1000, LONGEST_UNACKED_MS)


async def connect(host: str, port: int) -> trio.SocketStream:
    """A connection, by the shortest way there is for an address: names cost Trio a race.

    Args:
        host: A name, or an IPv4 or IPv6 address.
        port: Its port.

    Raises:
        OSError: There is no connection.
    """
    try:
        family = AF_INET6 if ip_address(host).version == 6 else AF_INET
    except ValueError:
        return await trio.open_tcp_stream(host, port)
    plain = stdlib_socket(family)
    try:
        plain.setblocking(False)
        failed = plain.connect_ex((host, port))
        if failed == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(plain)
            failed = plain.getsockopt(SOL_SOCKET, SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        plain.close()
        raise
    return trio.SocketStream(trio.socket.from_stdlib_socket(plain))


async def connect_unix(path: str) -> trio.SocketStream:
    """A connection to a Unix socket.

    A full backlog does not hold up a socket that does not block, as it does with TCP, and says
    nothing once there is room (connect(2), EAGAIN): so this tries again, a little later each time.

    Raises:
        OSError: There is no connection.
    """
    plain = stdlib_socket(AF_UNIX)
    pause_s = FIRST_PAUSE_S
    try:
        plain.setblocking(False)
        while failed := plain.connect_ex(path):
            if failed != errno.EAGAIN:
                raise OSError(failed, os.strerror(failed))
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    except BaseException:
        plain.close()
        raise
    return trio.SocketStream(trio.socket.from_stdlib_socket(plain))


async def receive(socket: trio.socket.SocketType) -> bytes:
    """What comes next; nothing at the end of the stream. Raises OSError."""
    while True:
        await trio.lowlevel.wait_readable(_open_fileno(socket))
        try:
            return os.read(socket.fileno(), RECEIVE_BYTES)
        except BlockingIOError:
            continue


async def send(
    socket: trio.socket.SocketType, data: bytes | memoryview, stall_s: float = math.inf
) -> None:
    """Send all of it.

    Args:
        socket: Where to.
        data: What.
        stall_s: Seconds in which the other side must take something.

    Raises:
        trio.TooSlowError: It took nothing for `stall_s`.
        OSError: The connection broke.
    """
    sent = write(socket, data)
    if sent < len(data):
        rest = memoryview(data)[sent:]
        while rest:
            with trio.fail_after(stall_s):
                await trio.lowlevel.wait_writable(_open_fileno(socket))
            rest = rest[write(socket, rest) :]


async def send_on(stream: trio.abc.SendStream, data: bytes, stall_s: float) -> None:
    """Send all of it on a stream, which may be of TLS; raises TooSlowError or BREAKS."""
    for start in range(0, len(data), RECEIVE_BYTES):
        with trio.fail_after(stall_s):
            await stream.send_all(data[start : start + RECEIVE_BYTES])


def write(socket: trio.socket.SocketType, data: bytes | memoryview) -> int:
    """Send as much as there is room for now; returns how many bytes. Raises OSError."""
    try:
        return os.write(_open_fileno(socket), data)
    except BlockingIOError:
        return 0


def _open_fileno(socket: trio.socket.SocketType) -> int:
    fileno = socket.fileno()
    if fileno < 0:
        raise trio.ClosedResourceError("the connection was closed on this side")
    return fileno
