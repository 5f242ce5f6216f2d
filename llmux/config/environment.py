"""`${env:NAME}` and `${env:NAME:-default}` in the values of a config.

References are replaced in the decoded data, before the types of its keys are known. `FromVariables`
marks the texts that result, so that the loader can convert them and knows which are secret.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmux.config.files import Object, core_scalar, decode
from llmux.config.keys import MASK
from llmux.config.masking import LEAST_CHARACTERS
from llmux.config.section import Keys

OPENING = "${env:"

_REFERENCE = re.compile(
    r"\$(?P<escape>\$\{env:)"
    r"|\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:\$?\{[^{}]*\}|[^{}])*))?\}"
    r"|(?P<wrong>\$\{env:[^}]*\}?)"
)

_SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
"""Parts of the names of variables that hold secrets."""


class FromVariables(str):
    """A text that came about by replacing references.

    Attributes:
        names: The variables that it was made of.
        is_whole: True if the text in the file was one reference and nothing else.
        is_missing: True if a variable is missing, of which there is a mistake already.
    """

    __slots__ = ("is_missing", "is_whole", "names")
    names: frozenset[str]
    is_whole: bool
    is_missing: bool

    @classmethod
    def made(
        cls, text: str, names: Iterable[str], *, is_whole: bool, is_missing: bool
    ) -> FromVariables:
        made = cls(text)
        made.names, made.is_whole, made.is_missing = frozenset(names), is_whole, is_missing
        return made


class Hidden(frozenset[str]):
    """Secret texts, which its `repr` does not show."""

    def __repr__(self) -> str:
        return f"Hidden({', '.join([MASK] * len(self))})"


class Environment:
    """Replaces references, and remembers the variables that were read.

    Args:
        variables: The environment.

    Attributes:
        used: Values by name, as far as they were read.
        mistakes: Path and message of each reference that cannot be replaced.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.used: dict[str, str] = {}
        self.mistakes: list[tuple[Keys, str]] = []
        self._copies: dict[int, Any] = {}  # of what aliases repeat, one

    def replaced(self, data: Any, keys: Keys = ()) -> Any:
        """Return decoded data with all references replaced; the data itself does not change.

        Keys of mappings are left alone, and so are top-level keys for anchors (`x-...`).
        """
        if isinstance(data, str):
            return self._text(data, keys) if OPENING in data else data
        if not isinstance(data, dict | list | tuple):
            return data
        if id(data) not in self._copies:
            self._copies[id(data)] = (
                self._mapping(data, keys)
                if isinstance(data, dict)
                else [self.replaced(item, (*keys, index)) for index, item in enumerate(data)]
            )
        return self._copies[id(data)]

    def _mapping(self, data: dict[Any, Any], keys: Keys) -> Object:
        copy = Object()
        copy.duplicates = getattr(data, "duplicates", ())
        for key, value in data.items():
            is_spare = not keys and str(key).startswith("x-")
            copy[key] = value if is_spare else self.replaced(value, (*keys, key))
        return copy

    def _text(self, text: str, keys: Keys) -> str:
        names: list[str] = []

        def value_of(found: re.Match[str]) -> str:
            if found["escape"]:
                return found["escape"]
            if found["wrong"]:
                self.mistakes.append((keys, "expected ${env:NAME} or ${env:NAME:-default}"))
                return ""
            name, default = found["name"], found["default"]
            value = self._variables.get(name)
            if default is not None and not value:  # as in a shell
                return _REFERENCE.sub(value_of, default)
            if value is None:
                what = f"the environment variable {name} is not set"
                self.mistakes.append((keys, f"{what} (a default: ${{env:{name}:-...}})"))
                return ""
            names.append(name)
            self.used[name] = value
            return value

        whole, known = _REFERENCE.fullmatch(text), len(self.mistakes)
        is_whole = whole is not None and whole["name"] is not None
        made = _REFERENCE.sub(value_of, text)
        is_missing = len(self.mistakes) > known
        return FromVariables.made(made, names, is_whole=is_whole, is_missing=is_missing)

    @property
    def secrets(self) -> Hidden:
        """Values of the variables whose names say that they are secret; the shortest are none."""
        return Hidden(
            value
            for name, value in self.used.items()
            if _SECRET_NAME.search(name) and len(value) >= LEAST_CHARACTERS
        )

    def masked(self, message: str) -> str:
        """Return a message with references in place of the values that it quotes."""
        for name, value in sorted(self.used.items(), key=lambda item: -len(item[1])):
            if len(value) >= LEAST_CHARACTERS:
                message = message.replace(value, f"${{env:{name}}}")
        return message


def resolved(value: Any) -> Any:
    """Return data whose keys have no types: a value that is one reference is read as YAML is."""
    if isinstance(value, FromVariables):
        found = core_scalar(str(value)) if value.is_whole else str(value)
        is_odd = isinstance(found, float) and not math.isfinite(found)  # JSON has no such number
        return str(value) if is_odd else found
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(item) for item in value]
    return value


def decode_plainly(path: Path) -> Any:
    """Decode a file and replace the references in it, without any other check.

    Raises:
        ConfigError: It cannot be read or decoded.
    """
    return resolved(Environment(os.environ).replaced(decode(path)))


def hide(value: Any, secrets: Iterable[str]) -> Any:
    """Return plain data with secret texts masked in all its texts."""
    if isinstance(value, str):
        for secret in sorted(secrets, key=len, reverse=True):
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, dict):
        return {key: hide(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide(item, secrets) for item in value]
    return value


def variables_of(values: Iterable[object]) -> Iterator[str]:
    """Yield the names of the variables that texts were made of."""
    for value in values:
        if isinstance(value, FromVariables):
            yield from value.names
