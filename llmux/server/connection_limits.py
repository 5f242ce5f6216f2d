"""How many connections are served at a time: descriptors, the limit in all, each client's share."""

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

Serve = Callable[[trio.SocketStream], Awaitable[None]]


def raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard one; hooks get the original limit back."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS: "unlimited" is more than it takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(groups: int, reserve: int = 0) -> int:
    """Return how many clients the descriptor limit allows: each needs one, and one to its backend.

    Idle backend connections come on top: for each further group no more than all clients have
    asked at once, and no more than a pool keeps.

    Args:
        groups: Number of groups of models.
        reserve: Descriptors that something else needs.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    spare = soft - DESCRIPTORS - reserve
    return max(1, spare // (1 + groups), (spare - MAX_IDLE * (groups - 1)) // 2)


def at_most(
    limit: int, serve: Serve, share_of: Callable[[str | None], int | None] = lambda _peer: None
) -> Serve:
    """Limit how many connections are served at a time; the others get an error and are closed.

    Args:
        limit: Connections in all.
        serve: Serves one connection.
        share_of: Returns how many of them a peer may have; None: all.
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
            await _refuse(stream, TooManyConnections(limit))
        elif share is not None and tally.of(peer) >= share:
            whose = "Your address (limits.connections_per_client)"
            await _refuse(stream, TooManyConnections(share, whose))
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


async def _refuse(stream: trio.SocketStream, error: TooManyConnections) -> None:
    status, headers, body = error_answer(error)
    answer = response_head(status, [*headers, (b"connection", b"close")]) + body
    with suppress(*wire.BREAKS):
        await wire.send(stream.socket, answer, stall_s=0)
    await trio.aclose_forcefully(stream)


def connection_shares(
    most: int, config: Callable[[], Config]
) -> Callable[[str | None], int | None]:
    """Apply `limits.connections_per_client`; by default one address gets at most half of all.

    Args:
        most: Connections in all.
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
