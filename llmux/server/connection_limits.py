"""Limits on connections: by descriptors, in total, and per client."""

from __future__ import annotations

import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from llmux.config import Config
from llmux.errors import TooManyConnections
from llmux.http import wire
from llmux.http.clients import Tally, is_loopback
from llmux.http.heads import response_head
from llmux.openai.answers import error_answer
from llmux.upstream.connections import MAX_IDLE

DESCRIPTORS = 64
"""Descriptors kept for llmux itself, hooks included."""

ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""A fatal alert of TLS, internal_error (RFC 8446, section 6): there is none for an overload."""

Serve = Callable[[trio.SocketStream], Awaitable[None]]


def raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard one; hooks get the original limit back."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports "unlimited", but does not accept it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(groups: int, reserve: int = 0) -> int:
    """Return how many clients the descriptor limit allows.

    Each client needs a descriptor, and another one for its backend connection. Idle backend
    connections come on top: for each further group, up to the number of clients, or up to
    `MAX_IDLE`, whichever is less.

    Args:
        groups: Number of groups of models.
        reserve: Descriptors reserved for other purposes.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    spare = soft - DESCRIPTORS - reserve
    return max(1, spare // (1 + groups), (spare - MAX_IDLE * (groups - 1)) // 2)


def at_most(
    limit: int,
    serve: Serve,
    share_of: Callable[[str | None], int | None] = lambda _peer: None,
    *,
    is_tls: bool = False,
) -> Serve:
    """Limit the number of concurrent connections; further ones get an error and are closed.

    Args:
        limit: Connections in total.
        serve: Serves one connection.
        share_of: Returns the limit for a peer's address; None: no limit of its own.
        is_tls: True if clients speak TLS. There is no handshake for them, but an alert.
    """
    count = 0
    tally = Tally()

    async def serve_or_refuse(stream: trio.SocketStream) -> None:
        nonlocal count
        try:
            peer = peer_of(stream.socket)
        except OSError:  # reset before it was accepted
            await trio.aclose_forcefully(stream)
            return
        share = share_of(peer)
        if count >= limit:
            await _refuse(stream, TooManyConnections(limit), is_tls=is_tls)
        elif share is not None and tally.of(peer) >= share:
            whose = "Your address (limits.connections_per_client)"
            await _refuse(stream, TooManyConnections(share, whose), is_tls=is_tls)
        else:
            count += 1
            try:
                with tally.one_more(peer):
                    await serve(stream)
            finally:
                count -= 1

    return serve_or_refuse


def peer_of(socket: trio.socket.SocketType) -> str | None:
    """Return the address of a connection's peer, None on a Unix socket. Raises OSError."""
    peer = socket.getpeername()
    return str(peer[0]) if isinstance(peer, tuple) else None


async def _refuse(stream: trio.SocketStream, error: TooManyConnections, *, is_tls: bool) -> None:
    status, headers, body = error_answer(error)
    answer = response_head(status, [*headers, (b"connection", b"close")]) + body
    if is_tls:
        answer = ALERT
    with suppress(*wire.BREAKS):
        await wire.send(stream.socket, answer, stall_s=0)
    await trio.aclose_forcefully(stream)


def connection_shares(
    most: int, config: Callable[[], Config]
) -> Callable[[str | None], int | None]:
    """Return the limit for a peer's address, by `limits.connections_per_client`.

    By default one address may hold half of all connections; this machine and trusted proxies may
    hold all.

    Args:
        most: Connections in total.
        config: Returns the config in use.
    """

    def share_of(peer: str | None) -> int | None:
        now = config()
        if peer in now.proxies:
            return None
        share = now.limits.connections_per_client
        if share is None and not is_loopback(peer):
            return max(1, most // 2)
        return share

    return share_of
