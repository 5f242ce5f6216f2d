"""`llmux examples`: files for other programs, which the package carries."""

from __future__ import annotations

from pathlib import Path

import click

import llmux

EXAMPLES = {
    "llmux.service": ("docs/llmux.service", "a unit file for systemd"),
    "alerts.yml": ("docs/monitoring/alerts.yml", "alerts for Prometheus"),
    "grafana.json": ("docs/monitoring/grafana.json", "a dashboard for Grafana"),
}
"""By name: the path in the repository, from which the wheel has it, and what it is."""

PACKAGE = Path(llmux.__file__).parent


def find_example(name: str) -> Path:
    """Return the file: in the package, or in the repository that the package is imported from."""
    packaged = PACKAGE / "examples" / name
    return packaged if packaged.exists() else PACKAGE.parent / EXAMPLES[name][0]


@click.command("examples")
@click.argument("name", required=False, type=click.Choice(list(EXAMPLES)))
def examples_command(name: str | None) -> None:
    """Print an example: a unit file, alerts, a dashboard. Without a name: list them.

    llmux examples llmux.service > llmux.service
    """
    if name is not None:
        click.echo(find_example(name).read_text(encoding="utf-8"), nl=False)
        return
    width = max(map(len, EXAMPLES))
    for each, (_, what) in EXAMPLES.items():
        click.echo(f"{each:{width}}  {what}")
