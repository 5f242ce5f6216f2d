"""Recipes: ready hooks for a kind of server, which a model names in place of hooks of its own.

A recipe is a folder with a `recipe.yaml` and scripts: one of llmux's own (`hooks/` in the
repository, `recipes/` in the installed package), or one that a config names by its path.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from llmux.config.files import decode
from llmux.errors import ConfigError

HookName = Literal["wake", "sleep", "alive", "prefetch", "verify_asleep", "memory", "stop"]

FILE = "recipe.yaml"

FOLDER_VARIABLE = "LLMUX_RECIPE_DIR"
"""Folder of the recipe, for its hooks."""

PREFIX = "LLMUX_WITH_"
"""Prefix of the variable of a parameter, unless the recipe names another."""

Kind = Literal["text", "path", "words", "command", "integer", "boolean"]
"""Type of a parameter. text: passed on as it is. path: of a URL, with its slash at the beginning.
words: options of a command line, read as the shell reads them, or a list of them. command: one for
the shell, or a list of words."""


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key of `with`.

    Attributes:
        doc: What it means, a sentence.
        type: Type of its value.
        required: True if it must be given.
        default: Its value if it is not given. With a `variable`, the scripts' own default.
        choices: Its allowed values; empty for any.
        also: Texts that are allowed besides those of its type.
        minimum: Least integer.
        below: Hook whose time limit must be longer than this number of seconds.
        program: True if its first word is a program.
        file: True if it is the path of a file, relative to the config's folder.
        variable: Environment variable that the hooks get it in. One that the recipe names is only
            set if the parameter is given, so that llmux's own environment is its default.
        sets: Key of the model that gets the same value unless the config gives that key.
    """

    doc: str
    type: Kind = "text"
    required: bool = False
    default: str | int | bool | None = None
    choices: tuple[str | int, ...] = ()
    also: tuple[str, ...] = ()
    minimum: int = 0
    below: HookName | None = None
    program: bool = False
    file: bool = False
    variable: str | None = None
    sets: Literal["upstream_model"] | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of a `recipe.yaml`.

    Attributes:
        description: What it is for, a line.
        port: free: llmux may choose it. given: it is part of something that exists, and must be
            given. A number: the usual one.
        hooks: The hooks' commands, by name.
        hook_timeouts: Their time limits in seconds.
        model: Other keys of a model.
        parameters: Keys of `with`, by name.
        keeps_asleep: What its server keeps of each GPU while it sleeps; empty for nothing.
    """

    description: str
    port: Literal["free", "given"] | int = "free"
    hooks: dict[HookName, str]
    hook_timeouts: dict[str, float] = {}
    model: dict[str, Any] = {}
    parameters: dict[str, Parameter] = {}
    keeps_asleep: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe: its folder, and what its file says."""

    name: str
    folder: Path
    file: _File

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self.file.parameters

    def variable_of(self, name: str) -> str:
        """Return the environment variable of a parameter."""
        return self.parameters[name].variable or PREFIX + re.sub(r"\W", "_", name).upper()


# ---- Finding them ----


def recipes_folder() -> Path:
    """Return the folder of llmux's own recipes: in the installed package, or in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "hooks"


def recipe_names() -> list[str]:
    """Return the names of llmux's own recipes."""
    return sorted(path.parent.name for path in recipes_folder().glob(f"*/{FILE}"))


def find_recipe(name: str, directory: Path) -> Recipe:
    """Return a recipe.

    Args:
        name: Name of one of llmux's own, or path of a folder: with a slash in it.
        directory: Folder of the config, for relative paths.

    Raises:
        ValueError: There is no such recipe, or its file is none; the message says what is wrong.
    """
    if "/" in name:
        return _read(name, (directory / Path(name).expanduser()).resolve())
    return _own_recipe(name)


@functools.cache
def _own_recipe(name: str) -> Recipe:
    known = recipe_names()
    if name not in known:
        raise ValueError(f"no recipe {name[:100]!r}, {hint(name, known)}")
    return _read(name, recipes_folder() / name)


def _read(name: str, folder: Path) -> Recipe:
    path = folder / FILE
    try:
        file = msgspec.convert(decode(path), _File)
    except ConfigError as error:
        raise ValueError(f"no recipe {name[:100]!r}: {error.mistakes[0]}") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {error}") from None
    return Recipe(name, folder, file)


def hint(name: str, known: list[str]) -> str:
    """Return what an unknown name may have been meant for, to follow a comma."""
    near = [each for each in known if name and name.lower() in each]
    near += difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(sorted(known))}" if known else "there are none"
