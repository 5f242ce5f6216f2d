"""Where the keys of a config file stand, for messages: `llmux.yaml:5:11: ...`.

Positions are looked up in the text when there is a message, and cost nothing otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from llmux.config.files import YamlLoader, position
from llmux.config.section import Keys, show_keys
from llmux.errors import ConfigError


class Place(NamedTuple):
    """A position in a file, counted from 1; columns are characters."""

    line: int
    column: int


class Source:
    """The text of a config file.

    Args:
        label: The file's name, as the user gave it.
        text: Its text, which has been decoded without a mistake.
        is_yaml: True for YAML, False for JSON.

    Attributes:
        label: The file's name.
    """

    def __init__(self, label: str, text: str, *, is_yaml: bool) -> None:
        self.label = label
        self._text = text
        self._open = _YamlTree if is_yaml else _JsonTree
        self._tree: _YamlTree | _JsonTree | None = None

    def __repr__(self) -> str:
        return f"<Source {self.label}>"  # its text may hold keys

    def find(self, keys: Keys) -> Place:
        """Return the place of a key, or of a list's item; of what is not there, that around it.

        A key that a YAML alias or merge key brings in has its place at the anchor.
        """
        if self._tree is None:
            self._tree = self._open(self._text)
        tree: Any = self._tree
        node = tree.root
        place: Place = tree.place_of(node)
        for key in keys:
            found = tree.child(node, key)
            if found is None:
                break
            at, node = found
            place = tree.place_of(at)
        return place


class _YamlTree:
    def __init__(self, text: str) -> None:
        self._loader = YamlLoader(text)
        self.root = self._loader.get_single_node()

    @staticmethod
    def place_of(node: yaml.Node) -> Place:
        return Place(node.start_mark.line + 1, node.start_mark.column + 1)

    def child(self, node: yaml.Node, key: object) -> tuple[yaml.Node, yaml.Node] | None:
        if isinstance(node, yaml.SequenceNode):
            is_item = isinstance(key, int) and key < len(node.value)
            return (node.value[key], node.value[key]) if is_item else None
        if not isinstance(node, yaml.MappingNode):
            return None
        self._loader.flatten_mapping(node)
        for name, value in reversed(node.value):  # of two equal keys, the last counts
            if isinstance(name, yaml.ScalarNode) and self._loader.construct_object(name) == key:
                return name, value
        return None


_BLANK = re.compile(r"[ \t\r\n]*")
_skip = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).raw_decode


class _JsonTree:
    """The same for JSON; a node is the offset of its value."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._children: dict[int, dict[Any, tuple[int, int]]] = {}
        self.root = self._next(0)

    def place_of(self, offset: int) -> Place:
        return Place(*position(self._text, offset))

    def child(self, node: int, key: object) -> tuple[int, int] | None:
        if node not in self._children:
            self._children[node] = dict(self._read(node))
        try:
            return self._children[node].get(key)
        except TypeError:  # not hashable
            return None

    def _read(self, at: int) -> Iterable[tuple[Any, tuple[int, int]]]:
        opening = self._text[at]
        if opening not in "{[":
            return
        at = self._next(at + 1)
        index = 0
        while self._text[at] not in "}]":
            start, key = at, index
            if opening == "{":
                key, at = _skip(self._text, at)
                at = self._next(self._next(at) + 1)  # past the colon
            yield key, (start, at)
            at = self._next(_skip(self._text, at)[1])
            if self._text[at] == ",":
                at = self._next(at + 1)
            index += 1

    def _next(self, at: int) -> int:
        found = _BLANK.match(self._text, at)
        assert found is not None
        return found.end()


def mistaken(found: Iterable[tuple[Keys, str]], source: Source | None) -> ConfigError:
    """Return the error for mistakes, each with its path; with a source, their places are found.

    Args:
        found: Path and message of each; an empty path is for the file as a whole.
        source: The file that the config comes from, if any.
    """
    mistakes, lines = [], []
    for keys, message in found:
        mistakes.append(f"{show_keys(keys) or 'config'}: {message}")
        lines.append(placed(keys, message, source))
    return ConfigError(mistakes, lines)


def placed(keys: Keys, message: str, source: Source | None) -> str:
    """Return a message with the path of its key, and with the key's place if there is a source."""
    shown = show_keys(keys)
    if source is None:
        return f"{shown or 'config'}: {message}"
    line, column = source.find(keys)
    where = f"{source.label}:{line}:{column}"
    return f"{where}: {shown}: {message}" if shown else f"{where}: {message}"
