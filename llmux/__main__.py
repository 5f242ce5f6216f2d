"""The command line: `llmux serve` and what helps with its config and its policy."""

from __future__ import annotations

import gc
import json
import logging
import resource
import select
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.config import Sockets
from hypercorn.utils import repr_socket_addr

from llmux import __version__, logs
from llmux.app import (
    EXIT_CONFIG,
    EXIT_SWITCHER_DIED,
    build_service,
    find_config,
    print_mistake,
)
from llmux.config import Config, HookName, config_schema
from llmux.errors import ConfigError
from llmux.fastlane import FastLane
from llmux.hypercorn_side import HypercornSide
from llmux.policy import load_policy
from llmux.simulate.commands import replay_command, simulate_command
from llmux.statelock import LockHeld, state_lock

EXIT_CANNOT_LISTEN = 1

GRACE_S = 30.0
"""How long requests in flight may go on after SIGTERM."""

log = logs.get_logger(__name__)
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class ServeOptions:
    """The options of `llmux` and `llmux serve`."""

    config: Path | None
    host: str | None
    port: int | None
    verbose: bool
    log_format: logs.LogFormat


config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="The config file. Default: $LLMUX_CONFIG, ./llmux.yaml or ./config.yaml.",
)


def serve_options(command: Command) -> Command:
    """The options that `llmux` and `llmux serve` share."""
    for option in (
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text"),
        click.option("-v", "--verbose", is_flag=True, help="Log at debug level."),
        click.option("-p", "--port", type=click.IntRange(0, 65535), help="Override the port."),
        click.option("-H", "--host", help="Override the address to listen on."),
        config_option,
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@click.version_option(__version__, prog_name="llmux")
@serve_options
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Serve many language models from one GPU, behind one OpenAI-compatible server.

    Without a command: serve.
    """
    context.obj = options
    if context.invoked_subcommand is None:
        sys.exit(run_server(ServeOptions(**options)))


@main.command()
@serve_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Serve the config's models until SIGTERM or SIGINT."""
    sys.exit(run_server(ServeOptions(**with_options_before(context, options))))


def with_options_before(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Options given before the command count where the command itself does not say otherwise."""
    given = click.core.ParameterSource.COMMANDLINE
    return {
        name: value if context.get_parameter_source(name) is given else context.obj[name]
        for name, value in options.items()
    }


@main.command()
@config_option
@click.pass_context
def check(context: click.Context, /, **options: Any) -> None:
    """Check a config and show what it says; exit code 2 if it cannot be used."""
    try:
        loaded = find_config(with_options_before(context, options)["config"])
        load_policy(loaded.policy, loaded.directory)
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    click.echo(config_table(loaded))


main.add_command(simulate_command)
main.add_command(replay_command)


@main.command()
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    click.echo(json.dumps(config_schema(), indent=2))


def config_table(config: Config) -> str:
    """A config for people: where it listens, and one line a model."""
    rows = [
        ("model", "group", "backend", "aliases", "hooks"),
        *(
            (
                model.name,
                model.group,
                model.base_url,
                ", ".join(model.aliases) or "-",
                " ".join(hook for hook in get_args(HookName) if model.script(hook)),
            )
            for model in config.models.values()
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    head = [
        f"config     {config.path}",
        f"listens on {config.host}:{config.port}",
        f"state in   {config.state_dir}",
        f"policy     {config.policy.name}",
        "",
    ]
    return "\n".join([*head, *table])


def run_server(options: ServeOptions) -> int:
    """Serve until stopped; returns the exit code."""
    logs.configure(options.log_format, verbose=options.verbose)
    try:
        config = find_config(options.config)
        server = server_config(
            options.host if options.host is not None else config.host,
            options.port if options.port is not None else config.port,
        )
        raise_descriptor_limit()
        calm_collector()
        with state_lock(config.state_dir, config.path):
            # Here and not in Hypercorn, where an address in use would be a traceback.
            sockets = listen(server)
            return trio.run(serve_config, config, server, sockets)
    except (ConfigError, LockHeld) as error:
        print_mistake(error)
        return EXIT_CONFIG
    except OSError as error:
        print_mistake(error)
        return EXIT_CANNOT_LISTEN


def raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; hooks get the limit back that there was."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS: "unlimited" is more than it takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_collector() -> None:
    """Make the garbage collector look less often, and not at what stays for good.

    Nearly everything here is freed by its reference count. With Python's own thresholds, thousands
    of waiting requests are walked through again and again: 9,800 of them took 2.5 times as long to
    serve (`bench.switch`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


async def serve_config(config: Config, server: ServerConfig, sockets: Sockets) -> int:
    """Serve until a signal comes or a switcher dies; returns the exit code."""
    died = trio.Event()
    service = build_service(config, on_switcher_death=died.set)
    rest = HypercornSide(service.app, server)
    serve_connection: Callable[[trio.SocketStream], Awaitable[None]] = partial(rest.serve, data=b"")
    lane: FastLane | None = None
    if hasattr(select, "epoll"):  # on other systems than Linux, all goes through Hypercorn
        lane = FastLane(service.proxy, rest.serve, stall_s=config.limits.client_stall_secs)
        serve_connection = lane.serve
    async with rest.lifespan(), trio.open_nursery() as background:
        if lane is not None:
            background.start_soon(lane.run)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accept = partial(trio.serve_listeners, handler_nursery=connections)
                accepting.start_soon(accept, serve_connection, listeners(sockets))
                log.info("serving", config=str(config.path), models=service.board.registered_models)
                await _wait_first(_wait_signal, died.wait)
                accepting.cancel_scope.cancel()
            # No new connections; those in line get their 503, those in flight the grace.
            service.board.stop()
            if lane is not None:
                lane.stop()
            await rest.stop()
            grace_ends_at = trio.current_time() + GRACE_S
            connections.cancel_scope.deadline = grace_ends_at
        with trio.move_on_at(grace_ends_at):
            await service.board.wait_ended()  # a hook that runs may use what is left of the grace
        background.cancel_scope.cancel()
    return EXIT_SWITCHER_DIED if died.is_set() else 0


async def _wait_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name, grace_secs=GRACE_S)
            return


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
        raise OSError(f"cannot listen on {config.bind[0]}: {error.strerror}") from error
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        sock.listen(config.backlog)
    return sockets


def listeners(sockets: Sockets) -> list[trio.SocketListener]:
    """Trio's listeners on these; says where they listen."""
    for sock in sockets.insecure_sockets:
        log.info("listening", url="http://" + repr_socket_addr(sock.family, sock.getsockname()))
    return [
        trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        for sock in sockets.insecure_sockets
    ]


def server_config(host: str, port: int) -> ServerConfig:
    """Hypercorn's settings, each with the reason why its default does not do."""
    config = ServerConfig()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.graceful_timeout = GRACE_S  # the default cuts streams after 3 s
    config.keep_alive_timeout = 75  # as nginx; 5 s make clients reconnect between questions
    config.keep_alive_max_requests = sys.maxsize  # nothing here needs fresh connections
    config.h11_max_incomplete_size = 64 * 1024  # long cookies and tokens
    config.backlog = 1024  # 100 is few for a burst
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


if __name__ == "__main__":
    main()
