"""Look for unusable hook files, and missing files of recipes, before a hook runs.

These are remarks, not mistakes: a file may appear later, or exist only on the machine that serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import get_args

from llmux.config.places import placed
from llmux.config.recipe_programs import missing_files, missing_programs
from llmux.config.recipes import HookName, Recipe, find_recipe
from llmux.config.section import Keys
from llmux.config.shape import Config

PLAIN_PATH = re.compile(r"\s*(?:\w+=[\w./:-]*\s+)*([\w.-]*/[\w./-]+)(?=\s|;|$)")
"""A script that begins with a plain path, with or without variables before it."""

Look = Callable[[Recipe, Mapping[str, str], Mapping[str, str], Path], Iterator[tuple[str, str]]]
"""Looks for what a recipe is given: yields parameters, each with what is not there."""

FIRST_LINE_BYTES = 256  # Linux reads no more of it (BINPRM_BUF_SIZE)


def hook_remarks(config: Config) -> list[str]:
    """Return one line for each hook that cannot be run, or whose program or file is not there."""
    return [*script_remarks(config), *program_remarks(config), *file_remarks(config)]


def script_remarks(config: Config) -> Iterator[str]:
    """Yield one line for each hook whose file cannot be run."""
    for name, model in config.models.items():
        for hook in get_args(HookName):
            if (script := model.script(hook)) is not None:
                for remark in _remarks(script, config.directory):
                    yield placed(("models", name, hook), remark, config.source)


def program_remarks(config: Config) -> Iterator[str]:
    """Yield one line for each program of a recipe that is not found."""
    for keys, program in _missing(config, missing_programs):
        remark = f"there is no {program}" + ("" if "/" in program else " on the PATH")
        yield placed(keys, remark, config.source)


def file_remarks(config: Config) -> Iterator[str]:
    """Yield one line for each file of a recipe, such as a model's, that is not there."""
    for keys, remark in _missing(config, missing_files):
        yield placed(keys, remark, config.source)


def _missing(config: Config, look: Look) -> Iterator[tuple[Keys, str]]:
    for model in config.models.values():
        if model.recipe is None:
            continue
        with suppress(OSError, ValueError):  # a folder of the user's may have gone since
            recipe = find_recipe(model.recipe, config.directory)
            for parameter, what in look(recipe, model.variables, os.environ, config.directory):
                yield ("models", model.name, "with", parameter), what


def _remarks(script: str, directory: Path) -> Iterator[str]:
    named = PLAIN_PATH.match(script)
    if named is None:
        return
    path = named[1]
    file = directory / path
    try:
        if not file.exists():
            yield f"there is no {path}" + (
                "" if path[0] == "/" else f" in {directory}, where hooks run"
            )
        elif not file.is_file():
            yield f"{path} is not a file"
        elif not os.access(file, os.X_OK):
            yield f"{path} is not executable: chmod +x {file}"
        elif _has_windows_line_ends(file):
            yield f"{path} has Windows line ends (CRLF), with which it does not run"
    except OSError:
        return  # a folder that llmux may not read: the run of the hook will tell


def _has_windows_line_ends(file: Path) -> bool:
    """Return whether the first line names an interpreter with a carriage return at its end."""
    with file.open("rb") as script:
        first = script.readline(FIRST_LINE_BYTES)
    return first.startswith(b"#!") and first.endswith(b"\r\n")
