"""Find the journal that `llmux replay` reads when no file is named."""

from __future__ import annotations

from pathlib import Path

import click

from llmux.cli.options import find_config
from llmux.observe.journal import journal_files


def find_journals(config: Path | None) -> list[Path]:
    """Return the journal of a config, older part first, and print where it is.

    Args:
        config: The config, or None for the default one.

    Raises:
        ConfigError: The config cannot be used.
        click.ClickException: It has no journal.
    """
    loaded = find_config(config)
    found = journal_files(loaded.state_dir)
    if not found:
        why = (
            "llmux writes it while it serves"
            if loaded.journal
            else f"{loaded.path} says `journal: false`"
        )
        raise click.ClickException(f"no journal.jsonl in {loaded.state_dir} ({why})")
    for path in found:
        click.echo(f"journal {path}", err=True)
    return found
