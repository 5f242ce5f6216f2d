"""Run `llmux serve`: sockets, lanes and signals. For the stages of its end, see `lifecycle.py`."""

from __future__ import annotations

import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.config import Sockets

from llmux.config import Config
from llmux.downstream.asgi_watch import CUT_S
from llmux.downstream.fastlane import FastLane
from llmux.http import wire
from llmux.observe import logs
from llmux.server.certificates import Certificates
from llmux.server.composition import Service, build_service
from llmux.server.connection_limits import Serve, at_most, connection_shares, most_connections
from llmux.server.control_listener import MOST_CONNECTIONS, Opened
from llmux.server.exits import EXIT_AT_ONCE, EXIT_SWITCHER_DIED
from llmux.server.hypercorn_side import HypercornSide
from llmux.server.listening import listeners
from llmux.server.secure import serve_tls
from llmux.server.signals import HANDLED, let_through
from llmux.server.systemd import notify_systemd, reloading
from llmux.switching.reload import Vet, no_mistakes

log = logs.get_logger(__name__)


async def serve_config(
    config: Config,
    server: ServerConfig,
    sockets: Sockets,
    *,
    watch: bool = False,
    control: Opened | None = None,
    on_serving: Callable[[], object] = lambda: None,
    ends_with_terminal: bool = False,
    vet: Vet = no_mistakes,
) -> int:
    """Serve until a signal arrives or a switcher dies; returns the exit code.

    A second signal ends everything at once: clients are cut, and a running hook is ended. SIGHUP
    reloads the config.

    Args:
        config: The config to serve.
        server: Hypercorn's settings.
        sockets: The main listener's sockets.
        watch: Reload the config whenever its file changes.
        control: The control API's own socket, if it has one.
        on_serving: Called once requests are answered.
        ends_with_terminal: True to stop at SIGHUP, which a closed terminal sends.
        vet: Finds further mistakes in the configs of reloads.
    """
    died, stopping = trio.Event(), trio.Event()
    service = build_service(config, on_switcher_death=died.set, control=control)
    rest = HypercornSide(service.app, server)
    lane: FastLane | None = None
    if hasattr(select, "epoll"):  # without it (not Linux), Hypercorn serves all connections
        lane = FastLane(
            service.proxy,
            rest.serve,
            stall_s=config.limits.client_stall_secs,
            most_fields=config.limits.header_fields,
        )
        service.watchdog.watch(lane.standing_still)
    serve_connection = serving(lane, rest, service.certificates)
    reserve = MOST_CONNECTIONS if control else 0
    most = config.limits.connections or most_connections(len(service.board.groups), reserve)
    reloader = service.reloader
    reloader.vet, reloader.reloading = vet, reloading
    shares = connection_shares(most, lambda: reloader.config)
    serve_connection = at_most(most, serve_connection, shares, is_tls=bool(service.certificates))
    with (
        trio.open_signal_receiver(*HANDLED) as signals,
        let_through(),
        trio.CancelScope() as everything,
    ):
        async with rest.lifespan(), trio.open_nursery() as background:
            reload = None if ends_with_terminal else reloader.request
            background.start_soon(_handle_signals, signals, stopping, everything, reload, service)
            if watch:
                background.start_soon(reloader.watch)
            if lane is not None:
                background.start_soon(lane.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    accept = partial(trio.serve_listeners, handler_nursery=connections)
                    for sock in sockets.insecure_sockets:  # accepted sockets inherit the options
                        limits = config.limits
                        wire.notice_death(sock, limits.dead_peer_secs, limits.client_stall_secs)
                    listening = listeners(sockets, service.certificates.scheme)
                    accepting.start_soon(accept, serve_connection, listening)
                    models = service.board.registered_models
                    if service.certificates:
                        service.certificates.note()
                    log.info("serving", config=str(config.path), models=models)
                    on_serving()
                    notify_systemd("READY=1")
                    await _wait_first(stopping.wait, died.wait)
                    notify_systemd("STOPPING=1")
                    accepting.cancel_scope.cancel()
                grace_ends_at = service.lifecycle.stop_admitting()
                connections.cancel_scope.deadline = grace_ends_at + CUT_S
                background.start_soon(service.lifecycle.cut_at_last)
                if lane is not None:
                    lane.stop()
                await rest.stop()
            await service.lifecycle.settle()
            background.cancel_scope.cancel()
    if everything.cancelled_caught:
        return EXIT_AT_ONCE
    return EXIT_SWITCHER_DIED if died.is_set() else 0


def serving(lane: FastLane | None, rest: HypercornSide, certificates: Certificates) -> Serve:
    """Return what serves a connection, plain or over TLS."""

    async def serve_over_tls(stream: trio.SocketStream) -> None:
        if lane is None:
            await serve_tls(rest.serve, stream, certificates.context)
        else:
            await lane.serve_tls(stream, certificates.context)

    if certificates:
        return serve_over_tls
    return partial(rest.serve, data=b"") if lane is None else lane.serve


async def _handle_signals(
    signals: AsyncIterator[int],
    stopping: trio.Event,
    everything: trio.CancelScope,
    reload: Callable[[], object] | None,
    service: Service,
) -> None:
    """Stop at the first signal, at once at the second; reload at SIGHUP, if that is wanted."""
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGHUP and reload is not None:
            if not stopping.is_set():
                reload()
        elif stopping.is_set():
            log.warning("stopping_at_once", signal=name)
            everything.cancel()
        else:
            grace_s = service.reloader.config.shutdown_grace_secs
            about: dict[str, str] = {}
            if waits_for := service.board.unfinished:
                again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
                about = {"waits_for": waits_for, "hint": f"{again} cuts them"}
            log.info("stopping", signal=name, grace_secs=grace_s, **about)
            stopping.set()


async def _wait_first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Wait until the first of these returns, and cancel the others."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[None]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)
