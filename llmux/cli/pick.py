"""`llmux pick`: the endpoint picker, and a config of Envoy for it."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from llmux.cli.options import with_options_before
from llmux.errors import ConfigError
from llmux.observe import logs
from llmux.pick.config import DEFAULT, PickConfig, load_pick_config
from llmux.server.exits import EXIT_CANNOT_LISTEN, EXIT_CONFIG, print_mistake

log = logs.get_logger(__name__)


@click.group("pick", invoke_without_command=True)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="The picker's config file. Default: ./pick.yaml.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.option("-v", "--verbose", is_flag=True, help="Log at debug level.")
@click.pass_context
def pick_command(context: click.Context, /, **options: Any) -> None:
    """Tell Envoy which of several hosts should get each request.

    Listens to what each llmux expects (/control/events), and answers Envoy's external processing
    (gRPC) with the hosts for a request, best first.
    """
    if context.invoked_subcommand is None:
        options = with_options_before(context, options)
        logs.configure(options["log_format"], verbose=options["verbose"])
        sys.exit(_serve(_loaded(options["config"])))


@pick_command.command("envoy-config")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="As for llmux pick.")
@click.pass_context
def envoy_config_command(context: click.Context, /, config: Path | None) -> None:
    """Print a complete config of Envoy: `envoy -c FILE`."""
    from llmux.pick.bootstrap import bootstrap_text  # noqa: PLC0415 - only here

    above = context.parent.params["config"] if context.parent is not None else None
    try:
        click.echo(bootstrap_text(_loaded(config or above)), nl=False)
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)


def _loaded(path: Path | None) -> PickConfig:
    if path is None and not DEFAULT.is_file():
        click.echo(f"no config: there is no ./{DEFAULT}; name one with -c FILE", err=True)
        sys.exit(EXIT_CONFIG)
    try:
        return load_pick_config(path or DEFAULT)
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)


def _serve(config: PickConfig) -> int:
    missing = [name for name in ("grpc", "google.protobuf") if not _is_there(name)]
    if missing:
        click.echo("llmux pick needs gRPC: pip install 'llmux-proxy[fleet]'", err=True)
        return EXIT_CONFIG
    from llmux.pick.run import run  # noqa: PLC0415 - only with the extra

    try:
        asyncio.run(run(config, on_serving=_greet))
    except ConfigError as error:
        print_mistake(error)
        return EXIT_CONFIG
    except OSError as error:
        print_mistake(error)
        return EXIT_CANNOT_LISTEN
    return 0


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package above
        return False


def _greet(address: str, site: str) -> None:
    log.info("picking", grpc=address, url=f"http://{site}" if site else None)
