"""Run a stand-in as a process: until a signal, or the end of the process that it belongs to."""

from __future__ import annotations

import signal
from pathlib import Path

import click
import trio

from llmux.standin.options import Options
from llmux.standin.pidfile import holder
from llmux.standin.server import Standin, serve

OWNER_PERIOD_S = 1.0
"""Interval of looks at the process that a stand-in ends with."""


def run(options: Options, owner: Path | None) -> None:
    """Serve until SIGTERM or SIGINT, or until no process holds the pid file `owner`.

    Raises:
        click.ClickException: The address cannot be used.
    """
    try:
        trio.run(_serve_until_signal, options, owner)
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
