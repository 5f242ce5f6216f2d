"""Command line of the stand-in: `serve`, and the helper programs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from llmux.standin.options import HOST, Options
from llmux.standin.param_types import FILE, PORT, SECONDS
from llmux.standin.pidfile import hold
from llmux.standin.probe import call_command, wait_command
from llmux.standin.stop import stop_command


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
    from llmux.standin.running import run  # noqa: PLC0415 - Trio: hooks call the others often

    with hold(pidfile) if pidfile else nullcontext():
        run(Options(**options), owner)


for command in (stop_command, wait_command, call_command):
    main.add_command(command)
