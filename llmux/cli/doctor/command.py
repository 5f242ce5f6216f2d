"""`llmux doctor`: gather, judge, print."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from llmux import __version__
from llmux.cli.doctor.findings import Finding, Report, counted, lines, number, ordered
from llmux.cli.doctor.gathering import gather
from llmux.cli.doctor.here import findings_here
from llmux.cli.doctor.running import findings_running
from llmux.cli.options import cacert_option, config_option

EXIT_PROBLEMS = 1

UNCUT = 10_000
"""Width where the output is no terminal."""

EXIT_CODES = """\b
Exit codes:
  0    no problems; there may be warnings
  1    there are problems
  2    a mistake in the command line"""


@click.command("doctor", epilog=EXIT_CODES)
@config_option
@click.option(
    "--url",
    help="Where llmux is. Default: $LLMUX_URL, the config's host and port, or "
    "http://127.0.0.1:3000.",
)
@click.option("--key", help="One of llmux's control_keys or read_keys; rather use --key-file.")
@click.option(
    "--key-file", type=click.Path(path_type=Path), help="A file whose first line is the key."
)
@cacert_option
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
@click.pass_context
def doctor_command(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Say why requests hang, and what to do.

    Looks at the config, hooks, keys, state folder, disk, ports, GPUs and limits of this machine,
    and at a running llmux: its switches, lines, failing models and oldest requests. Changes
    nothing.
    """
    facts = gather(context, options)
    found = ordered([
        *findings_running(facts),
        *findings_here(facts),
        *(
            Finding("note", about, f"{about} could not be looked at", why)
            for about, why in facts.unchecked
        ),
    ])  # fmt: skip
    report = Report(
        version=__version__,
        url=facts.url,
        config=None if facts.config.path is None else str(facts.config.path),
        problems=counted(found, "problem"),
        warnings=counted(found, "warning"),
        findings=found,
    )
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        _print(report)
    sys.exit(EXIT_PROBLEMS if report.problems else 0)


def _print(report: Report) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNCUT
    for line in lines(report.findings, max(width, 40)):
        click.echo(line)
    sums = [number(report.problems, "problem"), number(report.warnings, "warning")]
    click.echo(f"\n{', '.join(sums)}")
