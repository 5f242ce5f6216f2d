"""`llmux init`: write a config, and with `--hooks` its recipe's scripts, for people to edit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

from llmux.config import modeline
from llmux.config.recipes import find_recipe, recipe_names, recipes_folder

CONFIG = "llmux.yaml"

LEFT_OUT = frozenset({".gitignore", "init.yaml", "llmux.yaml"})
"""Files of a recipe that a copy of its scripts does not need."""


@click.command("init")
@click.argument("recipe", required=False)
@click.argument("directory", type=click.Path(path_type=Path), default=".")
@click.option("--hooks", is_flag=True, help="Copy the recipe's scripts, too, and use the copies.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def init_command(recipe: str | None, directory: Path, *, hooks: bool, force: bool) -> None:
    """Write llmux.yaml for a kind of server (RECIPE) into DIRECTORY.

    Without RECIPE: list them.
    """
    if recipe is None:
        click.echo(recipe_list())
        return
    _check_known(recipe)
    folder = recipes_folder() / recipe
    texts = {directory / CONFIG: config_text(recipe, with_hooks=hooks)}
    copies = _copies(folder, directory / "hooks" / recipe) if hooks else {}
    if not force and (there := [path for path in (*texts, *copies) if path.exists()]):
        raise click.UsageError(f"{there[0]} is there already: --force overwrites it")
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for path, source in copies.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
    except OSError as error:
        raise click.ClickException(f"cannot write: {error}") from None
    click.echo(_advice(recipe, directory, [*texts, *({path.parent for path in copies})]))


def _check_known(recipe: str) -> None:
    if "/" in recipe:
        raise click.UsageError(f"{recipe!r} is a path: name a recipe; `llmux init` lists them")
    try:
        find_recipe(recipe, Path())
    except ValueError as error:
        raise click.UsageError(f"{error} (`llmux init` lists them)") from None


def recipe_list() -> str:
    """Return the recipes, one a line, and what to type next."""
    names = recipe_names()
    width = max(map(len, names))
    lines = [f"{name.ljust(width)}  {find_recipe(name, Path()).file.description}" for name in names]
    return "\n".join([*lines, "", "llmux init RECIPE [DIRECTORY] writes a config to edit."])


def config_text(recipe: str, *, with_hooks: bool) -> str:
    """Return the config that `init` writes: that of the recipe's folder, or for copied scripts."""
    text = (recipes_folder() / recipe / "init.yaml").read_text(encoding="utf-8")
    if with_hooks:
        text = re.sub(rf"(?m)^( *recipe: ){re.escape(recipe)}\b", rf"\1./hooks/{recipe}", text)
    return f"{modeline()}\n{text}"


def _copies(folder: Path, target: Path) -> dict[Path, Path]:
    sources = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {target / path.name: path for path in sources if path.name not in LEFT_OUT}


def _advice(recipe: str, directory: Path, written: list[Path]) -> str:
    here = directory / CONFIG
    option = "" if directory == Path() else f" -c {here}"
    return "\n".join(
        [
            *(f"wrote {path}" for path in written),
            "",
            f"Put your models into {here}, then:",
            f"  llmux check{option}    # mistakes, and programs that are not there",
            f"  llmux{option}          # serves on http://127.0.0.1:3000",
            "",
            f"What {recipe} takes in `with:`: {recipes_folder() / recipe / 'README.md'}",
        ]
    )
