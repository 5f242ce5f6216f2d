"""Types of command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

PORT = click.IntRange(0, 65535)
FILE = click.Path(path_type=Path, dir_okay=False)
SECONDS = click.FloatRange(min=0)
