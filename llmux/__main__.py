"""The command line: `llmux serve` and what helps with its config and its policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import trio

from llmux import __version__, logs
from llmux.app import (
    EXIT_CONFIG,
    find_config,
    print_mistake,
)
from llmux.config import Config, HookName, config_schema
from llmux.errors import ConfigError
from llmux.policy import load_policy
from llmux.server import (
    calm_collector,
    listen,
    raise_descriptor_limit,
    return_freed_memory,
    serve_config,
    server_config,
)
from llmux.simulate.commands import replay_command, simulate_command
from llmux.statelock import LockHeld, state_lock
from llmux.uncaught import log_uncaught
from llmux.validate_command import run_validation, validate_options

EXIT_CANNOT_LISTEN = 1

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
    watch: bool


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
        click.option("--watch", is_flag=True, help="Reload the config when its file changes."),
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


@main.command()
@config_option
@validate_options
@click.pass_context
def validate(context: click.Context, /, config: Path | None, **options: Any) -> None:
    """Try MODEL's hooks: does it come back from sleep as it was?

    Wakes it, asks it twice, puts it to sleep, wakes it, asks again, and compares. If the first two
    answers are equal, the third must be equal, too; if not, it may be twice as far from the nearer
    of them as they are from each other, by the share of words that are not the same. Embeddings
    are compared by their cosine. Empty answers, errors and one piece over and over (!!!!!!) fail.
    WARN fails nothing: alive says yes while asleep, or answers differ too much to tell.

    Stop llmux before: this takes the config's lock. Models of the same group that llmux has left
    awake are put to sleep first, and MODEL is left asleep. Exit code 1 if a check fails, 2 if there
    was nothing to check: a bad config, no such model, or llmux is running.
    """
    try:
        loaded = find_config(with_options_before(context, {"config": config})["config"])
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    sys.exit(run_validation(loaded, **options))


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
        f"keys       {len(config.api_keys)} for models, {len(config.control_keys)} for control",
        "",
    ]
    return "\n".join([*head, *table])


def run_server(options: ServeOptions) -> int:
    """Serve until stopped; returns the exit code."""
    logs.configure(options.log_format, verbose=options.verbose)
    if options.log_format == "json":
        log_uncaught()
    try:
        config = find_config(options.config)
        server = server_config(
            options.host if options.host is not None else config.host,
            options.port if options.port is not None else config.port,
            config,
        )
        raise_descriptor_limit()
        calm_collector()
        return_freed_memory()
        with state_lock(config.state_dir, config.path):
            # Here and not in Hypercorn, where an address in use would be a traceback.
            sockets = listen(server)
            serving = partial(serve_config, config, server, sockets, watch=options.watch)
            return trio.run(serving)
    except (ConfigError, LockHeld) as error:
        print_mistake(error)
        return EXIT_CONFIG
    except OSError as error:
        print_mistake(error)
        return EXIT_CANNOT_LISTEN


if __name__ == "__main__":
    main()
