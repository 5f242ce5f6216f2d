"""Look for the programs and files that recipes are given, before a hook does."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from llmux.config.recipes import Recipe

_BUILTINS = frozenset({
    ".", ":", "[", "case", "cd", "do", "eval", "exec", "export", "for", "if", "set", "source",
    "test", "trap", "ulimit", "umask", "until", "while",
})  # fmt: skip


def missing_programs(
    recipe: Recipe, variables: Mapping[str, str], environ: Mapping[str, str], directory: Path
) -> Iterator[tuple[str, str]]:
    """Yield the parameters whose program is not there, each with the program.

    Args:
        recipe: The recipe.
        variables: The variables of a model that uses it.
        environ: The environment of llmux.
        directory: Working directory of hooks.
    """
    for name, parameter in recipe.parameters.items():
        if not parameter.program:
            continue
        text = _text_of(recipe, name, variables, environ)
        if "/" in text and shutil.which(directory / text):
            continue  # a path, perhaps with spaces
        program = _program_of(text)
        place = str(directory / program) if "/" in program else program
        if program and shutil.which(place, path=environ.get("PATH")) is None:
            yield name, program


def missing_files(
    recipe: Recipe, variables: Mapping[str, str], environ: Mapping[str, str], directory: Path
) -> Iterator[tuple[str, str]]:
    """Yield the parameters whose file is not there, and why; see `missing_programs`."""
    for name, parameter in recipe.parameters.items():
        text = _text_of(recipe, name, variables, environ) if parameter.file else ""
        path = directory / text
        if not text or path.is_file():
            continue
        if path.exists():
            yield name, f"{text} is not a file"
        elif text.startswith("~"):
            yield name, f"there is no {text}: `~` is not expanded here"
        else:
            yield name, f"there is no file {text}" + ("" if text[0] == "/" else f" in {directory}")


def _text_of(
    recipe: Recipe, name: str, variables: Mapping[str, str], environ: Mapping[str, str]
) -> str:
    variable, default = recipe.variable_of(name), recipe.parameters[name].default
    return variables.get(variable) or environ.get(variable) or str(default or "")


def _program_of(text: str) -> str:
    """Return the first word of a command, if it is a program for sure; else an empty text."""
    with suppress(ValueError):
        for word in shlex.split(text):
            if re.fullmatch(r"\w+=.*", word):
                continue
            is_plain = re.fullmatch(r"[\w.,+@%:/-]+", word) and word not in _BUILTINS
            return word if is_plain else ""
    return ""
