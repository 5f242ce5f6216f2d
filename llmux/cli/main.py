"""The command line: `llmux serve` and what helps with its config and its policy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, NoReturn, TypeVar

import click

from llmux import __version__
from llmux.cli.options import config_option, with_options_before
from llmux.server import signals

Command = TypeVar("Command", bound=Callable[..., Any])


HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of the command line, which all commands inherit."""

TERMINAL = (
    "cancel", "cordon", "logs", "mode", "pin", "reload", "requests", "sleep", "status", "switch",
    "top", "uncordon", "unpin", "wake",
)  # fmt: skip
"""Commands that talk to a running llmux."""


class Commands(click.Group):
    """A group of commands whose modules are imported on first use only.

    The server, and all that it is made of, would take half a second of each `llmux status` and of
    each Tab in a shell; reading configs half of the time of `llmux --version`.
    """

    elsewhere: ClassVar = {
        "check": "llmux.cli.check:check_command",
        "completion": "llmux.cli.terminal.completion:completion_command",
        "demo": "llmux.cli.demo:demo_command",
        "doctor": "llmux.cli.doctor.command:doctor_command",
        "examples": "llmux.cli.examples:examples_command",
        "import": "llmux.cli.importing.command:import_command",
        "init": "llmux.cli.init:init_command",
        "pick": "llmux.cli.pick:pick_command",
        "replay": "llmux.cli.replay:replay_command",
        "schema": "llmux.cli.check:schema_command",
        "simulate": "llmux.cli.simulate:simulate_command",
        "validate": "llmux.cli.validate:validate_command",
        **{name: f"llmux.cli.terminal.commands:{name}_command" for name in TERMINAL},
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with; say how to name a config instead."""
        if self.get_command(ctx, args[0]) is None and Path(args[0]).is_file():
            ctx.fail(f"No such command {args[0]!r}. To serve this file: llmux -c {args[0]}")
        return super().resolve_command(ctx, args)


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


@click.group(cls=Commands, invoke_without_command=True, context_settings=HELP)
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
    """Serve, and end with the exit code; without a config, offer the demo."""
    signals.hold_back()  # before what takes long to import
    from llmux.cli.demo import offer_demo  # noqa: PLC0415
    from llmux.cli.serve import ServeOptions, serve  # noqa: PLC0415
    from llmux.config import default_config_path  # noqa: PLC0415
    from llmux.errors import ConfigError  # noqa: PLC0415

    if options["config"] is None:
        try:
            options["config"] = default_config_path(os.environ)
        except ConfigError as error:
            sys.exit(offer_demo(error, ServeOptions(**options)))
    sys.exit(serve(ServeOptions(**options)))
