"""`llmux check` and `llmux schema`: a config without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import click

from llmux.cli.options import config_option, find_config, with_options_before
from llmux.config import Config, HookName, config_schema, hook_remarks
from llmux.errors import ConfigError
from llmux.policy import load_policy
from llmux.server.exits import EXIT_CONFIG, print_mistake


@click.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@config_option
@click.pass_context
def check_command(context: click.Context, /, file: Path | None, **options: Any) -> None:
    """Check a config (FILE or -c FILE) and show what it says; exit code 2 if it cannot be used.

    Warns of hooks whose files are missing or cannot be run here.
    """
    if file is not None and options["config"] is not None:
        raise click.UsageError("name one config: FILE or -c FILE, not both")
    try:
        loaded = find_config(file or with_options_before(context, options)["config"])
        load_policy(loaded.policy, loaded.directory)
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    click.echo(config_table(loaded))
    for remark in hook_remarks(loaded):
        click.echo(f"warning: {remark}", err=True)


@click.command("schema")
def schema_command() -> None:
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
                ", ".join(model.alias_names) or "-",
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
