"""Recipes: ready hooks for a kind of server, which a model names in place of hooks of its own.

A recipe is a folder with a `recipe.yaml` and scripts: one of llmux's own (`hooks/` in the
repository, `recipes/` in the installed package), or one that a config names by its path. What it
needs comes from the model's `with`, is checked here, and reaches the hooks as environment
variables, so that no text of the config becomes part of a command.
"""

from __future__ import annotations

import difflib
import functools
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from llmux.config.files import decode
from llmux.config.section import Completed, Keys
from llmux.errors import ConfigError

FILE = "recipe.yaml"

FOLDER_VARIABLE = "LLMUX_RECIPE_DIR"
"""Folder of the recipe, for its hooks."""

PREFIX = "LLMUX_WITH_"
"""Prefix of the variable of a parameter, unless the recipe names another."""

Kind = Literal["text", "words", "command", "integer", "boolean"]
"""Type of a parameter. text: passed on as it is. words: options of a command line, read as the
shell reads them, or a list of them. command: one for the shell, or a list of words."""

KIND_NAMES = {
    "text": "text",
    "words": "options as the shell reads them, or a list",
    "command": "a command for the shell, or a list of words",
    "integer": "an integer",
    "boolean": "true or false",
}


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key of `with`.

    Attributes:
        doc: What it means, a sentence.
        type: Type of its value.
        required: True if it must be given.
        default: Its value if it is not given. With a `variable`, the scripts' own default.
        choices: Its allowed values; empty for any.
        minimum: Least integer.
        program: True if its first word is a program.
        variable: Environment variable that the hooks get it in. One that the recipe names is only
            set if the parameter is given, so that llmux's own environment is its default.
        sets: Key of the model that gets the same value unless the config gives that key.
    """

    doc: str
    type: Kind = "text"
    required: bool = False
    default: str | int | bool | None = None
    choices: tuple[str | int, ...] = ()
    minimum: int = 0
    program: bool = False
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
    """

    description: str
    port: Literal["free", "given"] | int = "free"
    hooks: dict[Literal["wake", "sleep", "alive", "prefetch", "verify_asleep"], str]
    hook_timeouts: dict[str, float] = {}
    model: dict[str, Any] = {}
    parameters: dict[str, Parameter] = {}


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
        raise ValueError(f"no recipe {name[:100]!r}, {_hint(name, known)}")
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


def _hint(name: str, known: list[str]) -> str:
    near = [each for each in known if name and name.lower() in each]
    near += difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(sorted(known))}" if known else "there are none"


# ---- Using them ----


def complete(given: Mapping[Any, Any], directory: Path, timeouts: str) -> Completed:
    """Add to a model of the config what its recipe gives; its own keys win.

    Args:
        given: The model as the file has it.
        directory: Folder of the config.
        timeouts: The key for time limits.
    """
    name = given.get("recipe")
    if name is None:
        return _without(given)
    if not isinstance(name, str):
        return Completed(given)  # its type is a mistake that is reported anyway
    try:
        recipe = find_recipe(name, directory)
    except (OSError, RuntimeError, ValueError) as error:
        # With hooks that stand for the recipe's, so that their lack is no mistake of its own.
        stand_in = dict.fromkeys(("wake", "sleep", "alive"), "exit 1")
        return Completed({**stand_in, **given}, {}, [(("recipe",), str(error))])
    values = _Values(recipe, given.get("with"))
    hooks = cast("Mapping[str, Any]", recipe.file.hooks)
    added: dict[str, Any] = {**recipe.file.model, **hooks, **values.keys}
    if recipe.file.hook_timeouts and isinstance(own := given.get(timeouts) or {}, dict):
        given = {**given, timeouts: {**recipe.file.hook_timeouts, **own}}
    if isinstance(recipe.file.port, int) and given.get("url") is None:
        added["port"] = recipe.file.port
    whole = {**added, **given}
    variables = {FOLDER_VARIABLE: str(recipe.folder), **values.variables}
    mistakes = [*values.mistakes, *_address_mistakes(recipe, whole)]
    return Completed(whole, {"variables": variables}, mistakes)


def _address_mistakes(recipe: Recipe, model: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
    if model.get("port") is not None or model.get("url") is not None:
        return
    if recipe.file.port != "free":
        yield (), f"give 'port' or 'url': the recipe {recipe.name!r} does not choose the port"
    elif model.get("host") is not None:
        yield ("host",), "goes with 'port': llmux chooses ports of this machine only"


def _without(given: Mapping[Any, Any]) -> Completed:
    if given.get("with") is None:
        return Completed(given)
    return Completed(given, {}, [(("with",), "goes with 'recipe' only")])


@dataclass
class _Values:
    """Values of a recipe's parameters, checked.

    Attributes:
        variables: The environment variables to set.
        keys: Keys of the model that they set.
        mistakes: Path below the model, and message.
    """

    recipe: Recipe
    given: Any
    variables: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    mistakes: list[tuple[Keys, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = {} if self.given is None else self.given
        if not isinstance(given, dict):
            given = {}  # its type is reported anyway
        elif unknown := [key for key in given if key not in self.recipe.parameters]:
            self.mistakes += [(("with", key), self._unknown(key)) for key in unknown]
        for name, parameter in self.recipe.parameters.items():
            try:
                self._take(name, parameter, given.get(name))
            except ValueError as error:
                self.mistakes.append((("with", name), str(error)))

    def _unknown(self, key: object) -> str:
        hint = _hint(str(key), list(self.recipe.parameters))
        return f"the recipe {self.recipe.name!r} has no such parameter, {hint}"

    def _take(self, name: str, parameter: Parameter, value: object) -> None:
        if value is None and parameter.required:
            doc = parameter.doc.partition(". ")[0]
            doc = doc[0].lower() + doc[1:]
            raise ValueError(f"the recipe {self.recipe.name!r} needs it: {doc}")
        if value is None and parameter.variable is None:
            value = parameter.default
        text = "" if value is None else as_text(parameter, value)
        if value is not None or parameter.variable is None:
            self.variables[self.recipe.variable_of(name)] = text
        if value is not None and parameter.sets is not None:
            self.keys[parameter.sets] = text


def as_text(parameter: Parameter, value: object) -> str:
    """Return the text of a value for the environment.

    Raises:
        ValueError: It does not suit the parameter.
    """
    text = _CONVERTERS[parameter.type](value)
    if text is None:
        raise ValueError(f"expected {KIND_NAMES[parameter.type]}, got {_shown(value)}")
    if parameter.choices and text not in map(str, parameter.choices):
        raise ValueError(
            f"expected {' or '.join(map(str, parameter.choices))}, got {_shown(value)}"
        )
    if parameter.type == "integer" and int(text) < parameter.minimum:
        raise ValueError(f"must be at least {parameter.minimum}")
    if parameter.required and not text.strip():
        raise ValueError("must not be blank")
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("must not hold NUL or half a surrogate pair")
    if parameter.type in ("words", "command"):
        _check_words(text)
    return text


def _shown(value: object) -> str:
    return repr(value)[:100]


def _text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _words_of(value: object) -> str | None:
    """Return words as one text for the shell; each of a list stays one word, with ${PORT} in it."""
    if not isinstance(value, list | tuple):
        return _text_of(value)
    if not all(
        isinstance(word, str | int | float) and not isinstance(word, bool) for word in value
    ):
        return None
    return " ".join(map(_quoted, map(str, value)))


def _quoted(word: str) -> str:
    pieces = re.split(r"(\$\{PORT\})", word)
    quoted = (f'"{each}"' if each == "${PORT}" else shlex.quote(each) for each in pieces if each)
    return "".join(quoted) or "''"


def _integer_of(value: object) -> str | None:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _boolean_of(value: object) -> str | None:
    return {True: "1", False: ""}[value] if isinstance(value, bool) else None


_CONVERTERS: Mapping[Kind, Callable[[object], str | None]] = {
    "text": _text_of,
    "words": _words_of,
    "command": _words_of,
    "integer": _integer_of,
    "boolean": _boolean_of,
}


def _check_words(text: str) -> None:
    """Refuse what the shell would read otherwise than meant: open quotes, one option a line."""
    try:
        shlex.split(text, comments=True)
    except ValueError as error:
        raise ValueError(f"the shell cannot read it: {error}") from None
    lines = text.split("\n")
    for index, line in enumerate(lines):
        begins_with_option = index > 0 and line.lstrip().startswith("-")
        if begins_with_option and _is_whole("\n".join(lines[:index])):
            raise ValueError(
                f"a line of it begins with {line.split()[0]!r}, which the shell would run as a "
                "command: write it with '>-', which joins lines, in place of '|'"
            )


def _is_whole(text: str) -> bool:
    """Return whether a command may end here: no quote is open, and the line does not go on."""
    try:
        return bool(shlex.split(text, comments=True)) and not text.endswith(("\\", "|", "&"))
    except ValueError:
        return False


# ---- Programs ----

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
