"""How `llmux serve` runs: sockets, lanes, signals, and an orderly end."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.config import Sockets
from hypercorn.utils import repr_socket_addr

from llmux.config import Config
from llmux.downstream.fastlane import FastLane
from llmux.errors import TooManyConnections
from llmux.http import wire
from llmux.http.clients import Tally, is_loopback
from llmux.http.heads import response_head
from llmux.observe import logs
from llmux.openai.wire import error_answer
from llmux.server.accepting import BatchListener
from llmux.server.composition import EXIT_SWITCHER_DIED, build_service, exit_at_once
from llmux.server.control_listener import MOST_CONNECTIONS, Opened
from llmux.server.hypercorn_side import HypercornSide
from llmux.server.signals import HEEDED, let_through
from llmux.switching.reload import Reloader
from llmux.upstream.connections import MAX_IDLE

DESCRIPTORS = 64
"""What llmux itself needs, hooks included."""

Serve = Callable[[trio.SocketStream], Awaitable[None]]

EXIT_AT_ONCE = 4
"""A second signal came while llmux was stopping."""

log = logs.get_logger(__name__)


def raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; hooks get the limit back that there was."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS: "unlimited" is more than it takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(groups: int, reserve: int = 0) -> int:
    """How many there are descriptors for: a client needs one, and one to its backend.

    What idles besides, one backend a group, is no more than all clients have asked at once, and no
    more than a pool keeps.

    Args:
        groups: Of models.
        reserve: What else needs descriptors, and how many.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    spare = soft - DESCRIPTORS - reserve
    return max(1, spare // (1 + groups), (spare - MAX_IDLE * (groups - 1)) // 2)


def at_most(
    limit: int, serve: Serve, share_of: Callable[[str | None], int | None] = lambda _peer: None
) -> Serve:
    """Serve so many connections at a time; others are told so, and closed.

    Args:
        limit: How many in all.
        serve: Serves one.
        share_of: How many a peer may have of them; None: all.
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
    """The address of a connection's other side; None on a Unix socket. Raises OSError."""
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
    """How many connections each peer may have, as `limits.connections_per_client` says.

    By default no one address keeps all others out.

    Args:
        most: How many there may be in all.
        config: The config that is used now.
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


async def serve_config(
    config: Config,
    server: ServerConfig,
    sockets: Sockets,
    *,
    watch: bool = False,
    control: Opened | None = None,
) -> int:
    """Serve until a signal comes or a switcher dies; returns the exit code.

    A second signal ends everything at once: clients are cut, and a hook that runs is ended. SIGHUP
    has the config read again.

    Args:
        config: What to serve.
        server: Hypercorn's settings.
        sockets: Where to listen.
        watch: Reload the config whenever its file changes.
        control: Where the control API listens by itself.
    """
    died, stopping = trio.Event(), trio.Event()
    service = build_service(config, on_switcher_death=died.set, control=control)
    rest = HypercornSide(service.app, server)
    serve_connection: Serve = partial(rest.serve, data=b"")
    lane: FastLane | None = None
    if hasattr(select, "epoll"):  # on other systems than Linux, all goes through Hypercorn
        lane = FastLane(
            service.proxy,
            rest.serve,
            stall_s=config.limits.client_stall_secs,
            most_fields=config.limits.header_fields,
        )
        serve_connection = lane.serve
    reserve = MOST_CONNECTIONS if control else 0
    most = config.limits.connections or most_connections(len(service.board.groups), reserve)
    reloader = service.reloader
    shares = connection_shares(most, lambda: reloader.config)
    serve_connection = at_most(most, serve_connection, shares)
    with (
        trio.open_signal_receiver(*HEEDED) as signals,
        let_through(),
        trio.CancelScope() as everything,
    ):
        async with rest.lifespan(), trio.open_nursery() as background:
            background.start_soon(_heed, signals, stopping, everything, reloader)
            if watch:
                background.start_soon(reloader.watch)
            if lane is not None:
                background.start_soon(lane.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    accept = partial(trio.serve_listeners, handler_nursery=connections)
                    for sock in sockets.insecure_sockets:  # what they accept inherits it
                        limits = config.limits
                        wire.notice_death(sock, limits.dead_peer_secs, limits.client_stall_secs)
                    accepting.start_soon(accept, serve_connection, listeners(sockets))
                    models = service.board.registered_models
                    log.info("serving", config=str(config.path), models=models)
                    notify_systemd("READY=1")
                    await _wait_first(stopping.wait, died.wait)
                    notify_systemd("STOPPING=1")
                    accepting.cancel_scope.cancel()
                # No new connections; those in line get their 503, those in flight the grace.
                service.stop()
                if lane is not None:
                    lane.stop()
                await rest.stop()
                grace_ends_at = trio.current_time() + reloader.config.shutdown_grace_secs
                connections.cancel_scope.deadline = grace_ends_at
            with trio.move_on_at(grace_ends_at) as patience:
                await service.board.wait_ended()  # a hook may use what is left of the grace
            if died.is_set() and patience.cancelled_caught:
                exit_at_once()  # its hook cannot be ended: it would be waited for for ever
            service.board.end()
            if reloader.config.on_shutdown == "sleep" and not died.is_set():
                await service.board.put_to_sleep()
            background.cancel_scope.cancel()
    if everything.cancelled_caught:
        return EXIT_AT_ONCE
    return EXIT_SWITCHER_DIED if died.is_set() else 0


async def _heed(
    signals: AsyncIterator[int],
    stopping: trio.Event,
    everything: trio.CancelScope,
    reloader: Reloader,
) -> None:
    """The first signal asks llmux to stop, the second to do so at once; SIGHUP reloads."""
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            if not stopping.is_set():
                reloader.request()
        elif stopping.is_set():
            log.warning("stopping_at_once", signal=name)
            everything.cancel()
        else:
            grace_s = reloader.config.shutdown_grace_secs
            log.info("stopping", signal=name, grace_secs=grace_s)
            stopping.set()


def notify_systemd(state: str) -> None:
    """Tell systemd, if it has started llmux with `Type=notify`; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        # A name that begins with @ is in the abstract namespace.
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode())


async def _wait_first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when the first of these does."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[None]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


def listen(config: ServerConfig) -> Sockets:
    """Bind and listen; raises OSError if the address cannot be had."""
    try:
        sockets = config.create_sockets()
    except OSError as error:
        advice = "; `port` or -p chooses another" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"cannot listen on {config.bind[0]}: {error.strerror}{advice}") from error
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        sock.listen(config.backlog)
    return sockets


def listeners(sockets: Sockets) -> list[BatchListener]:
    """Trio's listeners on these; says where they listen."""
    for sock in sockets.insecure_sockets:
        log.info("listening", url="http://" + repr_socket_addr(sock.family, sock.getsockname()))
    return [BatchListener(sock) for sock in sockets.insecure_sockets]


def server_config(host: str, port: int, llmux: Config) -> ServerConfig:
    """Hypercorn's settings, each with the reason why its default does not do."""
    config = ServerConfig()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.graceful_timeout = llmux.shutdown_grace_secs  # the default cuts streams after 3 s
    config.keep_alive_timeout = 75  # as nginx; 5 s make clients reconnect between questions
    config.keep_alive_max_requests = sys.maxsize  # nothing here needs fresh connections
    config.h11_max_incomplete_size = 64 * 1024  # long cookies and tokens
    config.backlog = 1024  # 100 is few for a burst
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
