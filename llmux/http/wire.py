"""Read and write sockets with as little as possible around each system call.

Trio's own `receive_some` and `send_all` try the call, then wait, then check twice for cancellation.
In a stream of tokens the first try to read nearly always fails, and the first try to write nearly
always succeeds. So here reading waits first, and writing waits only if it must. Every read is a
checkpoint; a write is one only if it blocks.
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
"""One receive buffer, and the limit for data read ahead of its consumer."""

FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05
"""Pauses between tries to connect to a Unix socket whose backlog is full: a server that accepts at
all has room again soon, and a try costs a few microseconds."""

PROBES = 4
"""Number of unanswered keep-alive probes that mean a dead peer."""

LONGEST_PROBE_S = 32767
LONGEST_UNACKED_MS = (1 << 31) - 1
"""Limits of Linux (MAX_TCP_KEEPIDLE in net/tcp.h; an int)."""

BREAKS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""Errors raised by a connection that breaks."""


class Adjustable(Protocol):
    """A socket of Trio, asyncio or the standard library."""

    @property
    def family(self) -> int: ...

    def setsockopt(self, level: int, option: int, value: int, /) -> Any: ...


def notice_death(sock: Adjustable, dead_s: float | None, stall_s: float = 0.0) -> None:
    """Have the kernel break a connection whose peer's host is gone without a FIN or RST.

    On Linux, accepted connections inherit this from the listening socket. Unix sockets need none of
    it. Options that a platform lacks are skipped.

    Args:
        sock: A connection, or a listening socket.
        dead_s: Seconds without any sign of the host until it counts as gone; None: the system's
            default, mostly never.
        stall_s: Seconds for which a living peer may take nothing. Linux would break that, too:
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
    """Allow, or stop allowing, a living peer to read nothing for longer than `dead_s`.

    TCP_USER_TIMEOUT also breaks a connection whose window stays shut for so long (tcp(7)). While it
    is off, a dead peer is noticed by unanswered probes or retransmissions.
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
    """Connect; an address skips Trio's happy eyeballs (RFC 8305), which only names need.

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
    """Connect to a Unix socket.

    With a full backlog, a non-blocking connect fails at once, where TCP's waits, and nothing tells
    when there is room again (connect(2), EAGAIN). So this retries with growing pauses.

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
    """Return the next bytes; nothing at the end of the stream. Raises OSError."""
    while True:
        await trio.lowlevel.wait_readable(open_fileno(socket))
        try:
            return os.read(socket.fileno(), RECEIVE_BYTES)
        except BlockingIOError:
            continue


async def send(
    socket: trio.socket.SocketType, data: bytes | memoryview, stall_s: float = math.inf
) -> None:
    """Send all of it.

    Args:
        socket: Non-blocking, as all of Trio's are.
        data: The bytes.
        stall_s: Seconds within which the peer must take something.

    Raises:
        trio.TooSlowError: It took nothing for `stall_s`.
        OSError: The connection broke.
    """
    sent = write(socket, data)
    if sent < len(data):
        rest = memoryview(data)[sent:]
        while rest:
            rest = rest[await send_some(socket, rest, stall_s) :]


async def send_some(
    socket: trio.socket.SocketType, data: bytes | memoryview, stall_s: float
) -> int:
    """Send some of it, once the peer takes something; see `send`.

    Returns:
        The number of bytes, which may be zero.
    """
    with trio.fail_after(stall_s):
        await trio.lowlevel.wait_writable(open_fileno(socket))
    return write(socket, data)


async def send_on(stream: trio.abc.SendStream, data: bytes, stall_s: float) -> None:
    """Send all of it on a stream, TLS or not; raises TooSlowError after a stall, or BREAKS."""
    for start in range(0, len(data), RECEIVE_BYTES):
        with trio.fail_after(stall_s):
            await stream.send_all(data[start : start + RECEIVE_BYTES])


def write(socket: trio.socket.SocketType, data: bytes | memoryview) -> int:
    """Send what the kernel takes at once; returns the number of bytes. Raises OSError."""
    try:
        return os.write(open_fileno(socket), data)
    except BlockingIOError:
        return 0


def open_fileno(socket: trio.socket.SocketType) -> int:
    fileno = socket.fileno()
    if fileno < 0:
        raise trio.ClosedResourceError("the connection was closed on this side")
    return fileno
