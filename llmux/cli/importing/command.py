"""The commands `llmux import llama-swap` and `llmux import ollama`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from llmux.cli.importing.draft import Draft
from llmux.cli.importing.llama_swap import read_llama_swap
from llmux.cli.importing.ollama import DEFAULT_URL, full_url, read_ollama
from llmux.cli.importing.writing import write_draft
from llmux.errors import ConfigError

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file to write; by default the config is printed.",
)
force_option = click.option("--force", is_flag=True, help="Overwrite the file.")


@click.group("import")
def import_command() -> None:
    """Make a config from that of another server."""


@import_command.command("llama-swap")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option
@force_option
def llama_swap_command(file: Path, output: Path | None, *, force: bool) -> None:
    """Make a config from llama-swap's FILE.

    Comments in it name what llmux does in another way, or not at all.
    """
    try:
        draft = read_llama_swap(file)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    _put(draft, output, force=force)


@import_command.command("ollama")
@click.argument("url", required=False)
@output_option
@force_option
def ollama_command(url: str | None, output: Path | None, *, force: bool) -> None:
    """Make a config with the models of the Ollama at URL.

    By default that is $OLLAMA_HOST, or http://127.0.0.1:11434.
    """
    try:
        address = full_url(url or os.environ.get("OLLAMA_HOST") or DEFAULT_URL)
    except ValueError as error:
        raise click.UsageError(f"not a URL: {url!r}: {error}") from None
    _put(read_ollama(address), output, force=force)


def _put(draft: Draft, output: Path | None, *, force: bool) -> None:
    text = write_draft(draft)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{output} exists: --force overwrites it") from None
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from None
    notes = len(draft.notes) + sum(len(model.notes) for model in draft.models.values())
    told = f"; notes in its comments: {notes}" if notes else ""
    click.echo(f"Wrote {output}: {len(draft.models)} models{told}. Next: llmux check -c {output}")
