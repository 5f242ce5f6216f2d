"""Start `llmux serve`: turn a config into a server, and every outcome into an exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket
from typing import Protocol

import trio

from llmux.cli.options import find_config
from llmux.config import (
    Config,
    address_remarks,
    command_remarks,
    hook_remarks,
    loop_mistakes,
    memory_remarks,
    mistaken,
    recipe_remarks,
    tls_remarks,
)
from llmux.errors import ConfigError
from llmux.observe import logs
from llmux.observe.uncaught import log_uncaught
from llmux.server.connection_limits import raise_descriptor_limit
from llmux.server.control_listener import Opened, control_socket
from llmux.server.exits import EXIT_CANNOT_LISTEN, EXIT_CONFIG, print_mistake
from llmux.server.greeting import greet, greeting
from llmux.server.listening import listen, server_config
from llmux.server.memory import calm_collector, return_freed_memory
from llmux.server.run import serve_config
from llmux.server.statelock import LockHeld, state_lock

log = logs.get_logger(__name__)


@dataclass
class ServeOptions:
    """The options of `llmux` and `llmux serve`."""

    config: Path | None
    host: str | None
    port: int | None
    verbose: bool
    log_format: logs.LogFormat
    watch: bool


class Greeting(Protocol):
    """Makes the lines for people, as `greeting` does."""

    def __call__(
        self, sockets: Sequence[socket], control: Opened | None, *, has_keys: bool, scheme: str
    ) -> Iterable[str]: ...


def serve(
    options: ServeOptions, welcome: Greeting = greeting, *, ends_with_terminal: bool = False
) -> int:
    """Serve until stopped; returns the exit code.

    Args:
        options: The command line's.
        welcome: Makes what a terminal shows once requests are answered.
        ends_with_terminal: True to stop when the terminal is closed, and not to reload.
    """
    logs.configure(options.log_format, verbose=options.verbose)
    if options.log_format == "json":
        log_uncaught()
    try:
        config = find_config(options.config)
        host = options.host if options.host is not None else config.host
        port = options.port if options.port is not None else config.port
        if loops := loop_mistakes(config, host, port):
            raise mistaken(loops, config.source)
        server = server_config(host, port, config)
        raise_descriptor_limit()
        calm_collector()
        return_freed_memory()
        with state_lock(config.state_dir, config.path):
            # Here and not in Hypercorn, where an address in use would be a traceback.
            sockets = listen(server)
            _warn(config, host)
            bound: int = sockets.insecure_sockets[0].getsockname()[1]
            with control_socket(config) as control:
                serving = partial(
                    serve_config,
                    config,
                    server,
                    sockets,
                    watch=options.watch,
                    control=control,
                    on_serving=partial(
                        _greet, options, welcome, config, sockets.insecure_sockets, control
                    ),
                    ends_with_terminal=ends_with_terminal,
                    vet=partial(loop_mistakes, host=host, port=bound),
                )
                return trio.run(serving)
    except (ConfigError, LockHeld) as error:
        print_mistake(error)
        return EXIT_CONFIG
    except OSError as error:
        print_mistake(error)
        return EXIT_CANNOT_LISTEN


def _warn(config: Config, host: str) -> None:
    for remark in [*hook_remarks(config), *command_remarks(config)]:
        log.warning("hook_unusable", remark=remark)
    suspects = [
        *recipe_remarks(config),
        *memory_remarks(config),
        *address_remarks(config, host),
        *tls_remarks(config),
    ]
    for remark in suspects:
        log.warning("config_suspect", remark=remark)


def _greet(
    options: ServeOptions,
    welcome: Greeting,
    config: Config,
    sockets: Sequence[socket],
    control: Opened | None,
) -> None:
    """Tell people where llmux is; a log for programs stays free of it."""
    if options.log_format == "text":
        has_keys = config.answers_other_machines
        scheme = "http" if config.tls is None else "https"
        greet(welcome(sockets, control, has_keys=has_keys, scheme=scheme))
