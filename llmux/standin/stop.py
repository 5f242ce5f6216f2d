"""`stop`: end the server that holds a pid file."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import click

from llmux.standin.param_types import FILE, SECONDS
from llmux.standin.pidfile import holder
from llmux.standin.polling import poll

KILL_S = 5.0
"""Time for the kernel to end a process after SIGKILL, which may wait for a disk or a GPU."""


@click.command("stop")
@click.option("--pidfile", type=FILE, required=True)
@click.option("--timeout", "patience_s", type=SECONDS, default=10, help="SIGKILL comes after it.")
def stop_command(pidfile: Path, patience_s: float) -> None:
    """Stop the server that holds the pid file, if there is one."""
    for number, bound_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILL_S)):
        found = holder(pidfile)
        if found is not None:
            with suppress(ProcessLookupError):
                os.kill(found, number)
        if poll(lambda: holder(pidfile), bound_s) is None:
            return
    raise click.ClickException(f"the process that holds {pidfile} cannot be stopped")
