"""`llmux check` and `llmux schema`: a config without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click
import yaml
from msgspec.structs import asdict, replace

from llmux.cli.fitting import measured_needs, memory_lines
from llmux.cli.options import config_option, find_config, with_options_before
from llmux.config import (
    Config,
    HookName,
    ModelConfig,
    address_remarks,
    command_remarks,
    editor_schema,
    hook_remarks,
    loop_mistakes,
    memory_remarks,
    mistaken,
    recipe_remarks,
    tls_remarks,
)
from llmux.config.environment import hide
from llmux.config.splitting import separable
from llmux.errors import ConfigError
from llmux.http.certificates import day
from llmux.policy import load_policy
from llmux.server.exits import EXIT_CONFIG, EXIT_WARNINGS, print_mistake
from llmux.server.ports import chosen_ports

LEAST_PARTS = 2
"""Parts that share nothing from which on it is told that several llmux could serve them."""

MOST_PARTS = 6
"""Parts that are named."""


@click.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@config_option
@click.option("--strict", is_flag=True, help="Fail if there are warnings.")
@click.option("--show", is_flag=True, help="Show each model as its recipe completes it.")
@click.pass_context
def check_command(
    context: click.Context, /, file: Path | None, *, show: bool, **options: Any
) -> None:
    """Check a config (FILE or -c FILE) and show what it says.

    Warns of hooks that cannot be run here, of recipes' values and addresses that look wrong, and
    of models that are open to other machines. Exit codes: 0, the config can be used; 1, there are
    warnings, with --strict; 2, it cannot be used.
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
    if show:
        click.echo(f"\n{whole_models(loaded)}", nl=False)
    remarks = [
        *hook_remarks(loaded),
        *command_remarks(loaded),
        *recipe_remarks(loaded),
        *memory_remarks(loaded),
        *address_remarks(loaded, loaded.host),
        *tls_remarks(loaded),
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


def _certificate_of(config: Config) -> str:
    """Return what to say of the certificate behind the address; empty without TLS."""
    if config.tls is None:
        return ""
    pair = config.tls.pair
    names = ", ".join(pair.names) or ("no name" if pair.has_end else "names unknown")
    ends = f", until {day(pair.ends_at)}" if pair.has_end else ""
    return f" (TLS: {names}{ends})"


def _backend_of(model: ModelConfig, config: Config, chosen: Mapping[str, int]) -> str:
    """Return a model's URL; a port that llmux chooses as it has been chosen before, if it has."""
    if not model.chooses_port:
        return model.base_url
    port = chosen.get(model.name)
    return replace(model, port=port).base_url if port else f"a port of {config.ports}"


def whole_models(config: Config) -> str:
    """Show the models in YAML, with what their recipes give and their hooks get.

    Secrets from environment variables are masked: they are not in the file.
    """
    chosen = chosen_ports(config.state_dir)
    models = {
        model.name: {
            **({"recipe": model.recipe} if model.recipe else {}),
            "url": _backend_of(model, config, chosen),
            **{hook: script for hook in get_args(HookName) if (script := model.script(hook))},
            "hook_timeouts": asdict(model.hook_timeouts),
            **({"environment of hooks": model.variables} if model.recipe else {}),
        }
        for model in config.models.values()
    }
    shown = hide({"models": models}, config.hidden)
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=1000)


def split_lines(config: Config) -> list[str]:
    """Return a hint where several llmux, on several cores, could serve the groups; else none."""
    parts = separable(config)
    if len(parts) < LEAST_PARTS:
        return []
    shown = [" with ".join(part) for part in parts[:MOST_PARTS]]
    more = [f"{len(parts) - MOST_PARTS} more"] if len(parts) > MOST_PARTS else []
    one_core = f"groups {', '.join([*shown, *more])}: one llmux serves them on one core"
    several = "one llmux for each, behind a proxy, uses several (docs/fleet.md)"
    return ["", f"{one_core}. They share no memory and no server: {several}"]


def config_table(config: Config) -> str:
    """Show a config to people: where it listens, a line for each model, and who fits with whom."""
    chosen = chosen_ports(config.state_dir)
    rows = [
        ("model", "group", "backend", "aliases", "hooks"),
        *(
            (
                model.name,
                model.group,
                _backend_of(model, config, chosen),
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
        f"listens on {config.host}:{config.port}{_certificate_of(config)}",
        *([f"control on {where}"] if (where := _control_of(config)) else []),
        f"state in   {config.state_dir}",
        f"policy     {config.policy.name}",
        f"keys       {config.key_counts}",
        "",
    ]
    measured = measured_needs(config)
    return "\n".join([*head, *table, *memory_lines(config, measured), *split_lines(config)])
