"""The command line: `llmux serve` and what helps with its config and its policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, ClassVar, NoReturn, TypeVar, get_args

import click

from llmux import __version__
from llmux.cli.options import config_option, find_config, with_options_before
from llmux.cli.terminal.commands import COMMANDS as TERMINAL_COMMANDS
from llmux.config import Config, HookName, config_schema, hook_remarks
from llmux.errors import ConfigError
from llmux.server import signals

Command = TypeVar("Command", bound=Callable[..., Any])


class Commands(click.Group):
    """A group of commands, some of whose modules are imported on first use only.

    The server, and all that it is made of, would take half a second of each `llmux status` and of
    each Tab in a shell.
    """

    elsewhere: ClassVar = {
        "replay": "llmux.cli.simulate:replay_command",
        "simulate": "llmux.cli.simulate:simulate_command",
        "validate": "llmux.cli.validate:validate_command",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in order."""
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The one of that name, if there is one."""
        if (place := self.elsewhere.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = resolve_name(place)
        return command


def serve_options(command: Command) -> Command:
    """Add the options that `llmux` and `llmux serve` share."""
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


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(__version__, prog_name="llmux")
@serve_options
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Serve many language models from one GPU, behind one OpenAI-compatible server.

    Without a command: serve.
    """
    if context.invoked_subcommand is None:
        run_server(options)


@main.command()
@serve_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Serve the config's models until SIGTERM or SIGINT."""
    run_server(with_options_before(context, options))


def run_server(options: dict[str, Any]) -> NoReturn:
    """Serve, and end with the exit code."""
    signals.hold_back()  # before what takes long to import
    from llmux.cli.serve import ServeOptions, serve  # noqa: PLC0415

    sys.exit(serve(ServeOptions(**options)))


@main.command()
@config_option
@click.pass_context
def check(context: click.Context, /, **options: Any) -> None:
    """Check a config and show what it says; exit code 2 if it cannot be used.

    Warns of hooks whose files are missing or cannot be run here.
    """
    from llmux.policy import load_policy  # noqa: PLC0415
    from llmux.server.exits import EXIT_CONFIG, print_mistake  # noqa: PLC0415

    try:
        loaded = find_config(with_options_before(context, options)["config"])
        load_policy(loaded.policy, loaded.directory)
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    click.echo(config_table(loaded))
    for remark in hook_remarks(loaded):
        click.echo(f"warning: {remark}", err=True)


for terminal_command in TERMINAL_COMMANDS:
    main.add_command(terminal_command)


@main.command()
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    click.echo(json.dumps(config_schema(), indent=2))


def _control_of(config: Config) -> str:
    """Return the address of the control API's own listener, or an empty string without one."""
    if config.control is None:
        return ""
    if (path := config.control_socket) is not None:
        return f"unix:{path}"
    return f"{config.control.host or '127.0.0.1'}:{config.control.port}"


def config_table(config: Config) -> str:
    """Show a config to people: where it listens, and one line for each model."""
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
        *([f"control on {where}"] if (where := _control_of(config)) else []),
        f"state in   {config.state_dir}",
        f"policy     {config.policy.name}",
        f"keys       {len(config.api_keys)} for models, {len(config.control_keys)} for control",
        "",
    ]
    return "\n".join([*head, *table])
