"""llama-swap's matrix: expressions for the sets of models that may be awake together.

a & b           both
a | b           either
(a | b) & c     a with c, or b with c
+name           the expression of another set
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from llmux.cli.importing.checks import mapping
from llmux.errors import ConfigError

ModelSet = frozenset[str]

MOST_SETS = 10_000
"""Limit for the sets that one expression stands for."""

_TOKEN = re.compile(r"\s*(?:([&|()])|\+([\w.-]+)|([\w.-]+))")


def read_matrix(matrix: Mapping[str, object], models: Mapping[str, object]) -> list[ModelSet]:
    """Return the sets of models that may be awake together.

    Raises:
        ConfigError: An expression cannot be read, or names what is not there.
    """
    named = mapping(matrix.get("vars"), "matrix.vars")
    sets = mapping(matrix.get("sets"), "matrix.sets")

    def model(name: str) -> str:
        found = str(named.get(name, name))
        if found not in models:
            raise ConfigError([f"matrix: {name!r} is neither a model nor one of the vars"])
        return found

    expanded: dict[str, list[ModelSet]] = {}

    def expand(name: str, within: tuple[str, ...] = ()) -> list[ModelSet]:
        if name in within:
            raise ConfigError([f"matrix.sets.{name}: it contains itself"])
        if name not in sets:
            raise ConfigError([f"matrix: there is no set {name!r}"])
        if name not in expanded:
            reader = _Reader(
                str(sets[name]),
                f"matrix.sets.{name}",
                model,
                lambda inner: expand(inner, (*within, name)),
            )
            expanded[name] = reader.read()
        return expanded[name]

    return [found for name in sets for found in expand(name)]


class _Reader:
    """Recursive descent over one expression; `&` binds more closely than `|`."""

    def __init__(
        self,
        text: str,
        where: str,
        model: Callable[[str], str],
        named_set: Callable[[str], list[ModelSet]],
    ) -> None:
        self._where = where
        self._model = model
        self._named_set = named_set
        self._tokens = self._split(text)

    def _split(self, text: str) -> list[tuple[str, str]]:
        tokens, at, text = [], 0, text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ConfigError([f"{self._where}: cannot read {text[at:].strip()!r}"])
            operator, reference, name = match.groups()
            kind = "operator" if operator else "reference" if reference else "name"
            tokens.append((kind, operator or reference or name))
            at = match.end()
        return tokens

    def read(self) -> list[ModelSet]:
        found = self._either()
        if self._tokens:
            raise ConfigError([f"{self._where}: {self._tokens[0][1]!r} is not expected there"])
        return found

    def _take(self, operator: str) -> bool:
        is_next = bool(self._tokens) and self._tokens[0] == ("operator", operator)
        if is_next:
            del self._tokens[0]
        return is_next

    def _either(self) -> list[ModelSet]:
        found = self._both()
        while self._take("|"):
            found = [*found, *self._both()]
        return found

    def _both(self) -> list[ModelSet]:
        found = self._one()
        while self._take("&"):
            others = self._one()
            if len(found) * len(others) > MOST_SETS:
                raise ConfigError([f"{self._where}: stands for more than {MOST_SETS:,} sets"])
            found = [left | right for left in found for right in others]
        return found

    def _one(self) -> list[ModelSet]:
        if self._take("("):
            found = self._either()
            if not self._take(")"):
                raise ConfigError([f"{self._where}: a bracket is not closed"])
            return found
        if not self._tokens or self._tokens[0][0] == "operator":
            raise ConfigError([f"{self._where}: a model or a set is missing"])
        kind, name = self._tokens.pop(0)
        return self._named_set(name) if kind == "reference" else [frozenset({self._model(name)})]
