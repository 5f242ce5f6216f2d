"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmux.config import Config

config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="The config file. Default: $LLMUX_CONFIG, ./llmux.yaml or ./config.yaml.",
)


cacert_option = click.option(
    "--cacert",
    type=click.Path(path_type=Path),
    help="Certificates to trust for an https URL, in PEM. Default: $LLMUX_CACERT, the config's "
    "tls.cert on this machine, else the system's.",
)


def with_options_before(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Options given before the command count where the command itself does not say otherwise."""
    given = click.core.ParameterSource.COMMANDLINE
    before = context.find_root().params
    return {
        name: value if context.get_parameter_source(name) is given else before.get(name, value)
        for name, value in options.items()
    }


def find_config(path: Path | None) -> Config:
    """Load the config at `path`, else the default one; raises ConfigError."""
    from llmux.config import default_config_path, load_config  # noqa: PLC0415 - 70 ms

    return load_config(path or default_config_path(os.environ))
