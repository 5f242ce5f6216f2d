"""Look for the programs that recipes are told to run, before a hook does."""

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
        variable = recipe.variable_of(name)
        text = variables.get(variable) or environ.get(variable) or str(parameter.default or "")
        if "/" in text and shutil.which(directory / text):
            continue  # a path, perhaps with spaces
        program = _program_of(text)
        place = str(directory / program) if "/" in program else program
        if program and shutil.which(place, path=environ.get("PATH")) is None:
            yield name, program


def _program_of(text: str) -> str:
    """Return the first word of a command, if it is a program for sure; else an empty text."""
    with suppress(ValueError):
        for word in shlex.split(text):
            if re.fullmatch(r"\w+=.*", word):
                continue
            is_plain = re.fullmatch(r"[\w.,+@%:/-]+", word) and word not in _BUILTINS
            return word if is_plain else ""
    return ""
