"""Complete a model with its recipe, and check the values that it gives by `with`.

Values of `with` are checked here and reach the hooks as environment variables, so that no text of
the config becomes part of a command.
"""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from llmux.config.environment import resolved
from llmux.config.recipes import FOLDER_VARIABLE, Kind, Parameter, Recipe, find_recipe, hint
from llmux.config.section import Completed, Keys

MOST_BYTES = 100_000
"""Longest value: Linux allows 128 KiB for one environment variable (MAX_ARG_STRLEN)."""

MOST_LOOKED_AT = 20
"""Number of lines of a command that are looked at for options on lines of their own."""

KIND_NAMES = {
    "text": "text",
    "path": "a path that begins with '/'",
    "words": "options as the shell reads them, or a list",
    "command": "a command for the shell, or a list of words",
    "integer": "an integer",
    "boolean": "true or false",
}


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
    values = _Values(recipe, resolved(given.get("with")))
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
            return  # its type is a mistake that is reported anyway
        unknown = (key for key in given if key not in self.recipe.parameters)
        self.mistakes += [(("with", key), self._unknown(key)) for key in unknown]
        for name, parameter in self.recipe.parameters.items():
            try:
                self._take(name, parameter, given.get(name))
            except ValueError as error:
                self.mistakes.append((("with", name), str(error)))

    def _unknown(self, key: object) -> str:
        known = list(self.recipe.parameters)
        return f"the recipe {self.recipe.name!r} has no such parameter, {hint(str(key), known)}"

    def _take(self, name: str, parameter: Parameter, value: object) -> None:
        if value is None and parameter.required:
            doc = parameter.doc.partition(". ")[0]
            doc = doc[:1].lower() + doc[1:]
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
    text = _text_of(value) if value in parameter.also else _CONVERTERS[parameter.type](value)
    if text is None:
        expected = " or ".join((KIND_NAMES[parameter.type], *map(repr, parameter.also)))
        raise ValueError(f"expected {expected}, got {_shown(value)}")
    if parameter.choices and text not in map(str, parameter.choices):
        raise ValueError(
            f"expected {' or '.join(map(str, parameter.choices))}, got {_shown(value)}"
        )
    if (
        parameter.type == "integer"
        and value not in parameter.also
        and int(text) < parameter.minimum
    ):
        raise ValueError(f"must be at least {parameter.minimum}")
    if parameter.required and not text.strip():
        raise ValueError("must not be blank")
    _check_text(text)
    if parameter.type in ("words", "command"):
        _check_words(text)
    return text


def _shown(value: object) -> str:
    return repr(value)[:100]


def _text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _path_of(value: object) -> str | None:
    return value if isinstance(value, str) and value.startswith("/") else None


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
    "path": _path_of,
    "words": _words_of,
    "command": _words_of,
    "integer": _integer_of,
    "boolean": _boolean_of,
}


@functools.lru_cache
def _check_text(text: str) -> None:
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise ValueError(f"must have at most {MOST_BYTES} bytes, for it becomes a variable")
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("must not hold NUL or half a surrogate pair")


@functools.lru_cache  # aliases of YAML may give many models the same long text
def _check_words(text: str) -> None:
    """Refuse what the shell would read otherwise than meant: open quotes, one option a line."""
    try:
        shlex.split(text, comments=True)
    except ValueError as error:
        raise ValueError(f"the shell cannot read it: {error}") from None
    lines = text.split("\n")
    options = (n for n, line in enumerate(lines) if n and line.lstrip().startswith("-"))
    for index in itertools.islice(options, MOST_LOOKED_AT):
        if _is_whole("\n".join(lines[:index])):
            word = lines[index].split()[0]
            raise ValueError(
                f"a line of it begins with {word!r}, which the shell would run as a command: "
                "write it with '>-', which joins lines, in place of '|'"
            )


def _is_whole(text: str) -> bool:
    """Return whether a command may end here: no quote is open, and the line does not go on."""
    try:
        return bool(shlex.split(text, comments=True)) and not text.endswith(("\\", "|", "&"))
    except ValueError:
        return False
