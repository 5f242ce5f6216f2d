"""Command line of the stand-in: `serve`, and the helper programs."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import trio

from llmux.standin.options import HOST, Options
from llmux.standin.param_types import FILE, PORT, SECONDS
from llmux.standin.pidfile import hold, holder
from llmux.standin.probe import call_command, wait_command
from llmux.standin.server import Standin, serve
from llmux.standin.stop import stop_command

OWNER_PERIOD_S = 1.0
"""Interval of looks at the process that a stand-in ends with."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A stand-in for a model server, and what hooks need to drive one (or a real vLLM)."""


@main.command("serve")
@click.option("--port", type=PORT, required=True)
@click.option("--host", default=HOST, help="The address to listen on.")
@click.option("--model", required=True, help="The name that it answers with.")
@click.option("--rate", type=click.FloatRange(min=0), default=0, help="Tokens/s; 0: no pauses.")
@click.option("--tokens", type=click.IntRange(min=1), default=32, help="Length of an answer.")
@click.option("--wake-secs", "wake_s", type=SECONDS, default=0, help="How long /wake_up takes.")
@click.option("--sleep-secs", "sleep_s", type=SECONDS, default=0, help="How long /sleep takes.")
@click.option("--asleep", is_flag=True, help="Start asleep.")
@click.option("--pidfile", type=FILE, help="File for the process id, for `stop`.")
@click.option("--while-held", "owner", type=FILE, help="Pid file of a process to end with.")
def serve_command(pidfile: Path | None, owner: Path | None, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT."""
    with hold(pidfile) if pidfile else nullcontext():
        try:
            trio.run(_serve_until_signal, Options(**options), owner)
        except* OSError as errors:
            raise click.ClickException(str(errors.exceptions[0])) from None


async def _serve_until_signal(options: Options, owner: Path | None) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            standin: Standin = await nursery.start(serve, options)
            click.echo(f"stand-in for {options.model} on {standin.url}")
            if owner is not None:
                nursery.start_soon(_end_with, owner, nursery.cancel_scope)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _end_with(owner: Path, everything: trio.CancelScope) -> None:
    """End once no process holds this pid file, however its holder ended."""
    while holder(owner) is not None:  # noqa: ASYNC110 - a lock sends no event
        await trio.sleep(OWNER_PERIOD_S)
    everything.cancel()


for command in (stop_command, wait_command, call_command):
    main.add_command(command)
