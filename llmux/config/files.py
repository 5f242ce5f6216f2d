"""Decode YAML and JSON files: YAML 1.2 scalars, duplicate keys noted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from llmux.base.plainfiles import read_regular
from llmux.config.bounds import MOST_BYTES, MOST_NODES, MOST_VALUES
from llmux.config.section import Keys
from llmux.errors import ConfigError

MOST_DIGITS = 400
"""Longest integer: a float has at most 309 digits before the point (IEEE 754)."""


def _integer(text: str, base: int = 10) -> int:
    # Python's own limit for decimals has a message about Python, and none applies to hexadecimals.
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits: {text[:20]}...")
    return int(text, base)


class Object(dict[Any, Any]):
    """A decoded mapping, with the keys that the file gives more than once."""

    duplicates: tuple[str, ...] = ()

    def with_keys(self, keys: Iterable[str]) -> Object:
        self.duplicates = tuple(key for key, times in Counter(keys).items() if times > 1)
        return self


def duplicates(data: object) -> Iterator[Keys]:
    """Yield the paths of duplicate keys; those below a YAML anchor once, where it is met first."""
    seen: set[int] = set()
    waiting: list[tuple[Keys, Any]] = [((), data)]
    for keys, value in waiting:  # a growing list, for nesting may be deeper than Python's stack
        if id(value) in seen or not isinstance(value, dict | list):
            continue
        seen.add(id(value))
        yield from ((*keys, key) for key in getattr(value, "duplicates", ()))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [((*keys, key), item) for key, item in items]


def is_yaml(path: Path) -> bool:
    """Return whether a file is YAML by its name; all others are JSON."""
    return path.suffix.lower() in {".yaml", ".yml"}


def read_text(path: Path) -> str:
    """Return the text of a file; raises ConfigError."""
    data = b""
    try:
        data = read_regular(path, MOST_BYTES)
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        start = error.start
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from None
    column = start - data.rfind(b"\n", 0, start)  # in bytes: there are no characters
    line = data.count(b"\n", 0, start) + 1
    message = f"not UTF-8 text at byte {start}"
    raise ConfigError([f"{path}: {message}"], [f"{path}:{line}:{column}: {message}"])


def decode(path: Path) -> Any:
    """Read and decode a file: `read_text`, then `decode_text`."""
    return decode_text(path, read_text(path))


def decode_text(path: Path, text: str) -> Any:
    """Decode the text of a file.

    Returns:
        The data; None for an empty file.

    Raises:
        ConfigError: It cannot be decoded.
    """
    place = offset = None
    try:
        decode = _decode_yaml if is_yaml(path) else _decode_json
        return decode(text) if text.strip() else None
    except json.JSONDecodeError as error:
        place, message = (error.lineno, error.colno), error.msg
    except yaml.MarkedYAMLError as error:
        if mark := error.problem_mark or error.context_mark:
            place = mark.line + 1, mark.column + 1
        problem = str(error.problem or error.context)
        # A name at its end may be a key that was not quoted and begins like an alias or a tag.
        problem = re.sub(r""" ('[^'<][^']+'|"[^"]+")$""", "", problem)
        message = f"{problem}{_advice(problem)}"
    except RecursionError:
        message = "nested too deeply"
    except (yaml.YAMLError, ValueError) as error:
        message = str(error).partition("\n")[0]
        odd = next((each for each in _ODD.finditer(text) if each[1]), None)
        offset = getattr(error, "position", odd.start() if odd else None)
    raise _undecodable(path, message, place, None if offset is None else position(text, offset))


def _undecodable(
    path: Path, message: str, told: tuple[int, int] | None, found: tuple[int, int] | None
) -> ConfigError:
    """Return the error for a text: the decoder told the place, or it was found afterwards."""
    mistake = (
        f"{path}: line {told[0]}, column {told[1]}: {message}" if told else f"{path}: {message}"
    )
    if (place := told or found) is None:
        return ConfigError([mistake])
    return ConfigError([mistake], [f"{path}:{place[0]}:{place[1]}: {message}"])


def position(text: str, offset: int) -> tuple[int, int]:
    """Return the line and the column of an offset, both from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


_ODD = re.compile(rf'"(?:[^"\\]|\\.)*+"|(-?Infinity|NaN|-?[0-9]{{{MOST_DIGITS + 1},}})')
"""What Python's JSON decoder reads and llmux refuses (in the group), and strings."""


def _advice(problem: str) -> str:
    """Return a hint for messages of PyYAML that name only its own parts."""
    if "'\\t'" in problem:
        return " (YAML is indented with spaces)"
    if "<block" in problem:
        return " (is the line indented like its neighbours?)"
    return ""


def _decode_json(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=lambda pairs: Object(pairs).with_keys(key for key, _ in pairs),
        parse_constant=_refuse_constant,
        parse_int=_integer,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_TAG = "tag:yaml.org,2002:"

# YAML 1.2.2 section 10.3.2; plain scalars that match none of them are strings.
_CORE_SCALARS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("null", r"~|null|Null|NULL|", lambda _: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]+", _integer),
    ("int", r"0o[0-7]+|0x[0-9a-fA-F]+", lambda text: _integer(text, 0)),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", float),
    (
        "float",
        r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        lambda text: float(text.replace(".", "")),
    ),
)


def core_scalar(text: str) -> Any:
    """Return the value that a plain scalar of YAML 1.2 has: a number, true, false, null or text."""
    for _, pattern, convert in _CORE_SCALARS:
        if text and re.fullmatch(pattern, text):
            with suppress(ValueError):  # too many digits
                return convert(text)
    return text


def _construct_scalar(_: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    for tag, pattern, convert in _CORE_SCALARS:
        if node.tag == _TAG + tag and re.fullmatch(pattern, str(node.value)):
            try:
                return convert(node.value)
            except ValueError as error:
                place = node.start_mark
                raise yaml.constructor.ConstructorError(None, None, str(error), place) from None
    kind = node.tag.removeprefix(_TAG)
    raise yaml.constructor.ConstructorError(None, None, f"not a YAML {kind}", node.start_mark)


def _construct_mapping(loader: YamlLoader, node: yaml.MappingNode) -> Iterator[Object]:
    mapping = Object().with_keys(loader.written_keys.get(node, ()))
    yield mapping  # before it is filled, for an anchor may contain itself
    mapping.update(loader.construct_mapping(node))


class YamlLoader(yaml.SafeLoader):
    """Safe loader with YAML 1.2's core schema and merge keys, which notes duplicate keys."""

    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012 - as PyYAML declares it
        None: [  # whatever the first character
            *((_TAG + tag, re.compile(rf"(?:{pattern})\Z")) for tag, pattern, _ in _CORE_SCALARS),
            (_TAG + "merge", re.compile(r"<<\Z")),
        ]
    }
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **{_TAG + tag: _construct_scalar for tag in ("null", "bool", "int", "float")},
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        _TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
        _TAG + "map": _construct_mapping,
        None: yaml.SafeLoader.construct_undefined,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.written_keys: dict[yaml.Node, list[str]] = {}
        self._nodes = 0
        self._merged_keys = 0
        self._merging: set[yaml.Node] = set()

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Fail once the file has more nodes than a config needs."""
        self._nodes += 1
        if self._nodes > MOST_NODES:
            message = f"the file has more than {MOST_NODES} keys and values"
            raise yaml.composer.ComposerError(None, None, message, self.get_mark())
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Note the keys as written: construction mixes in those of merged mappings."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.written_keys[node] = keys
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Add the keys of merged mappings (`<<`), each once; the mapping's own keys win.

        PyYAML's method adds a key each time that it is met: merging one mapping twice, fourteen
        levels deep, made 16,384 of each and took 30 s.
        """
        if node in self._merging:
            raise _bad_merge("the mapping merges itself", node)
        self._merging.add(node)
        merged: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        own: list[tuple[yaml.Node, yaml.Node]] = []
        for key, value in node.value:
            if key.tag != _TAG + "merge":
                own.append((key, value))
                continue
            for source in _merge_sources(value):
                self.flatten_mapping(source)
                self._merged_keys += len(source.value)
                if self._merged_keys > MOST_VALUES:
                    raise _bad_merge(f"the file merges more than {MOST_VALUES} keys", key)
                merged |= {_identity(pair[0]): pair for pair in source.value}
        self._merging.discard(node)
        node.value = [*merged.values(), *own]


def _merge_sources(value: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Yield the mappings that a merge key names, the one that wins last (of a list, the first)."""
    for source in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
        if not isinstance(source, yaml.MappingNode):
            raise _bad_merge(
                "expected a mapping or list of mappings for merging, "
                f"but found {getattr(source, 'id', 'something else')}",
                source,
            )
        yield source


def _identity(key: yaml.Node) -> Any:
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key


def _bad_merge(message: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _decode_yaml(text: str) -> Any:
    loader = YamlLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
