"""`llmux check` and `llmux schema`: a config without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import click

from llmux.cli.options import config_option, find_config, with_options_before
from llmux.config import (
    Config,
    HookName,
    address_remarks,
    command_remarks,
    editor_schema,
    hook_remarks,
    loop_mistakes,
    mistaken,
)
from llmux.errors import ConfigError
from llmux.policy import load_policy
from llmux.server.exits import EXIT_CONFIG, EXIT_WARNINGS, print_mistake


@click.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@config_option
@click.option("--strict", is_flag=True, help="Fail if there are warnings.")
@click.pass_context
def check_command(context: click.Context, /, file: Path | None, **options: Any) -> None:
    """Check a config (FILE or -c FILE) and show what it says.

    Warns of hooks that cannot be run here, of addresses that look wrong, and of models that are
    open to other machines. Exit codes: 0, the config can be used; 1, there are warnings, with
    --strict; 2, it cannot be used.
    """
    if file is not None and options["config"] is not None:
        raise click.UsageError("name one config: FILE or -c FILE, not both")
    try:
        loaded = find_config(file or with_options_before(context, options)["config"])
        if loops := loop_mistakes(loaded, loaded.host, loaded.port):
            raise mistaken(loops, loaded.source)
        load_policy(loaded.policy, loaded.directory, loaded.source)
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    click.echo(config_table(loaded))
    remarks = [
        *hook_remarks(loaded),
        *command_remarks(loaded),
        *address_remarks(loaded, loaded.host),
    ]
    for remark in remarks:
        click.echo(f"warning: {remark}", err=True)
    if remarks and options["strict"]:
        sys.exit(EXIT_WARNINGS)


@click.command("schema")
def schema_command() -> None:
    """Print the config's JSON Schema, for editors."""
    click.echo(json.dumps(editor_schema(), indent=2))


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
