"""Make a config of decoded data, and report all mistakes in it at once.

`_Reader` walks the types of the sections and the data side by side, and notes every mistake with
its path.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import platformdirs

from llmux.config.bounds import MOST_MISTAKES, misfit
from llmux.config.durations import duration_s
from llmux.config.environment import Environment, FromVariables, resolved, variables_of
from llmux.config.files import decode_text, duplicates, is_yaml, read_text
from llmux.config.foreign import of_llama_swap
from llmux.config.keys import KeyRing, read_keys
from llmux.config.memory_shortages import memory_shortages
from llmux.config.places import Source, placed
from llmux.config.section import MOST_TEXT, Keys, Section, attributes, file_keys, show_keys
from llmux.config.shape import KEY_LISTS, Config, doubled_keys, port_shortage
from llmux.config.sizes import size_bytes
from llmux.config.values import A_SHARE, IN_BYTES, check_not_blank
from llmux.errors import ConfigError

S = TypeVar("S", bound=Section)

_fields = functools.cache(msgspec.structs.fields)  # it takes a millisecond


def load_config(path: Path) -> Config:
    """Read and check a config file.

    Args:
        path: `.yaml` and `.yml` files are YAML, all others JSON.

    Raises:
        ConfigError: The file cannot be read or is no config, with all mistakes found.
    """
    text = read_text(path)
    data = decode_text(path, text)
    if data is None:
        raise ConfigError([f"{path}: the file is empty"])
    source = Source(str(path), text, is_yaml=is_yaml(path))
    return parse_config(data, path=path, source=source)


def parse_config(
    data: object,
    *,
    path: Path | None = None,
    directory: Path | None = None,
    source: Source | None = None,
) -> Config:
    """Check a decoded config.

    Args:
        data: Output of a YAML or JSON decoder.
        path: File that it came from, if any; it is not read.
        directory: Working directory of hooks. Default: the file's folder, else the current one.
        source: Text that it comes from, for the places of mistakes.

    Raises:
        ConfigError: With all mistakes found.
    """
    directory = (directory or (path.parent if path else Path())).absolute()
    reader = _Reader("config" if path is None else str(path), directory, source)
    if (found := misfit(data)) is not None:
        reader.note(*found)
        raise reader.error()
    if (found := of_llama_swap(data)) is not None:
        reader.note(*found)
        raise reader.error()
    for keys in duplicates(data):
        # Below a list of keys, any text may be a secret by mistake, so the path ends there.
        reader.note(keys[:1] if keys[0] in KEY_LISTS else keys, "duplicate key")
    data = reader.with_variables(data)
    config = reader.read_section(
        Config,
        data,
        (),
        path=path and path.absolute(),
        directory=directory,
        state_dir=default_state_dir(path or directory),
        source=source,
        hidden=reader.environment.secrets,
    )
    for check in (port_shortage, doubled_keys):
        if config is not None and (found := check(config)) is not None:
            reader.note(*found)
    for shortage in memory_shortages(config) if config is not None else ():
        reader.note(*shortage)
    if config is None or reader.mistakes:
        raise reader.error()
    return config


def load_section(section: type[S], path: Path) -> S:
    """Read and check a file that holds one section: the config of another program than the server.

    Args:
        section: Type of the section.
        path: `.yaml` and `.yml` files are YAML, all others JSON.

    Raises:
        ConfigError: The file cannot be read, or has mistakes, with all of them.
    """
    text = read_text(path)
    data = decode_text(path, text)
    if data is None:
        raise ConfigError([f"{path}: the file is empty"])
    source = Source(str(path), text, is_yaml=is_yaml(path))
    reader = _Reader(str(path), path.parent.absolute(), source)
    if (found := misfit(data)) is not None:
        reader.note(*found)
        raise reader.error()
    for keys in duplicates(data):
        reader.note(keys, "duplicate key")
    result = reader.read_section(section, reader.with_variables(data), ())
    if result is None or reader.mistakes:
        raise reader.error()
    return result


def default_state_dir(path: Path) -> Path:
    """Return a folder of the config's own, below the platform's place for state.

    A service of systemd with `StateDirectory=` has it below that folder (systemd.exec(5)), since
    its user may have no other place to write to.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    of_service = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    root = Path(of_service or platformdirs.user_state_path("llmux", appauthor=False)).absolute()
    return root / f"{path.stem}-{digest[:8]}"


class _Reader:
    """Turns decoded data into sections, and collects mistakes on the way.

    After the first mistake it builds no section any more, but checks the rest.
    """

    def __init__(self, label: str, directory: Path, source: Source | None) -> None:
        self._label = label
        self._directory = directory
        self._source = source
        self.environment = Environment(os.environ)
        self.mistakes: list[str] = []
        self._lines: list[str] = []  # the same with their places
        self._not_shown = 0

    def with_variables(self, data: object) -> object:
        """Return the data with references to environment variables replaced; notes mistakes."""
        data = self.environment.replaced(data)
        for keys, message in self.environment.mistakes:
            self.note(keys, message)
        return data

    def read_section(self, section: type[S], value: object, keys: Keys, **filled: Any) -> S | None:
        """Build a section; return None once there is any mistake.

        Args:
            section: Type of the section.
            value: Its value in the file, a mapping if all is well.
            keys: Its path in the file.
            **filled: Fields that the loader fills in; the file's values win.
        """
        if not isinstance(value, dict):
            self.note(keys, _mismatch("object", value))
            return None
        completed = section.completed(value, self._directory)
        for below, message in completed.mistakes:
            self.note((*keys, *below), message)
        inner, filled = dict(completed.given), {**filled, **completed.filled}
        kinds, names = file_keys(section), attributes(section)
        for key, item in completed.given.items():
            if key in kinds:
                found = filled[names[key]] = self._read(kinds[key], item, (*keys, key))
                if isinstance(item, FromVariables) and not item.is_missing:
                    # For `conflicts`, of outer sections, too. None also stands for a mistake.
                    inner[key] = resolved(item) if found is None else found
                    if key in value:
                        value[key] = inner[key]
            elif keys or not str(key).startswith("x-"):
                self.note((*keys, key), _unknown(key, kinds))
        for field in _fields(section):
            if field.required and field.name not in filled:
                self.note((*keys, field.encode_name), "required key is missing")
        for below, message in section.conflicts(inner):
            self.note((*keys, *below), message)
        return None if self.mistakes else section(**filled)

    def _read(self, kind: Any, value: object, keys: Keys) -> Any:
        kind = _choose(kind, value)
        if value is None and types.NoneType in get_args(kind):
            return None
        bare, checks = _unwrap(kind)
        origin = ""
        if isinstance(value, FromVariables):
            if value.is_missing:
                return None
            origin = f" (from {', '.join(sorted(value.names))})" if value.names else ""
            value = _typed(bare, value)
            if value is None and types.NoneType in get_args(kind):
                return None
        try:
            result = self._read_bare(bare, kind, value, keys)
            for check in checks if result is not None else ():
                check(result)
        except ValueError as error:
            self.note(keys, _plain(error) + origin)
            return None
        return result

    def _read_bare(self, bare: Any, kind: Any, value: object, keys: Keys) -> Any:
        origin = get_origin(bare) or bare
        if origin is dict:
            key_kind, item_kind = get_args(bare)
            if not isinstance(value, dict) and (words := _words_of(kind)):
                raise ValueError(_mismatch(f"object or {words}", value))
            return self._read_mapping(key_kind, item_kind, value, keys)
        if origin is tuple:
            return self._read_list(get_args(bare)[0], value, keys)
        if origin is KeyRing:
            return self._read_key_ring(value, keys)
        if origin is Path:
            return _resolve(self._directory, _scalar(str, value))
        if inspect.isclass(origin) and issubclass(origin, Section):
            return self.read_section(origin, value, keys)
        return _leaf(bare, kind, value)

    def _read_mapping(self, key_kind: Any, item_kind: Any, value: object, keys: Keys) -> Any:
        """Read a mapping with the user's own keys; each section below gets its key as its name."""
        if not isinstance(value, dict):
            self.note(keys, _mismatch("object", value))
            return None
        result = {}
        for key, item in value.items():
            here = (*keys, key)
            if isinstance(key, str):
                self._read(key_kind, key, here)
            else:
                self.note(here, "the key must be a string: put it in quotes")
            if get_origin(item_kind) is None and issubclass(item_kind, Section):
                result[key] = self.read_section(item_kind, item, here, name=key)
            else:
                result[key] = self._read(item_kind, item, here)
        return result

    def _read_list(self, item_kind: Any, value: object, keys: Keys) -> Any:
        if not isinstance(value, list | tuple):
            self.note(keys, _mismatch("array", value))
            return None
        return tuple(self._read(item_kind, item, (*keys, i)) for i, item in enumerate(value))

    def _read_key_ring(self, value: object, keys: Keys) -> KeyRing | None:
        if not isinstance(value, list | tuple):
            self.note(keys, _mismatch("array", value))
            return None
        found: list[bytes] = []
        for index, item in enumerate(value):
            if isinstance(item, FromVariables) and item.is_missing:
                continue
            try:
                found += read_keys(item, self._directory)
            except ValueError as error:
                self.note((*keys, index), str(error))
        if self.mistakes:
            return None
        variables = (item.get("env") for item in value if isinstance(item, dict))
        return KeyRing(found, [*filter(None, variables), *variables_of(value)])

    def note(self, keys: Keys, message: str) -> None:
        """Note a mistake and its path; both may quote the file, and are cut."""
        if len(self.mistakes) == MOST_MISTAKES:
            self._not_shown += 1
            return
        message = self.environment.masked(message)
        where = show_keys(keys) or self._label
        self.mistakes.append(f"{where}: {_cut(message)}")
        if self._source is not None:
            self._lines.append(placed(keys, _cut(message), self._source))

    def error(self) -> ConfigError:
        """Return the error with a line for each mistake, and one for those over `MOST_MISTAKES`."""
        more = [f"{self._label}: {self._not_shown} mistakes more"] if self._not_shown else []
        lines = self._lines or self.mistakes
        return ConfigError([*self.mistakes, *more], [*lines, *more])


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


def _choose(kind: Any, value: object) -> Any:
    """Choose from a union: a literal that has the value, a section or not; else the union."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    choices = get_args(kind)
    for choice in choices:
        if get_origin(choice) is Literal and value in get_args(choice):
            return choice
    is_section = [inspect.isclass(each) and issubclass(each, Section) for each in choices]
    fitting = [
        each
        for each, is_one in zip(choices, is_section, strict=True)
        if each is not types.NoneType and is_one == isinstance(value, dict)
    ]
    return fitting[0] if any(is_section) and fitting else kind


def _words_of(kind: Any) -> str:
    """Return the literals of a union, as they are written in a message."""
    literals = (get_args(each) for each in get_args(kind) if get_origin(each) is Literal)
    return " or ".join(repr(word) for words in literals for word in words)


def _unwrap(kind: Any) -> tuple[Any, list[Callable[[Any], None]]]:
    """Strip `Annotated` and `| None` off a type; return the rest, and the checks found."""
    if get_origin(kind) is Annotated:
        inner, *extras = get_args(kind)
        bare, checks = _unwrap(inner)
        return bare, [*checks, *(extra for extra in extras if callable(extra))]
    if get_origin(kind) in (Union, types.UnionType):
        return _unwrap(next(arg for arg in get_args(kind) if arg is not types.NoneType))
    return kind, []


def _typed(bare: Any, value: FromVariables) -> Any:
    """Return a text from variables as the type that its key wants, if it has that form."""
    found = resolved(value)
    if bare is Any or found is None:
        return found
    kinds: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,)}
    takes = kinds.get(bare, ())
    return found if isinstance(found, takes) else str(value)


def _leaf(bare: Any, kind: Any, value: object) -> Any:
    if bare is Any:
        return _free(value)
    if get_origin(bare) is Literal:
        return _one_of(get_args(bare), value)
    marks = getattr(kind, "__metadata__", ())
    if bare is float and isinstance(value, str) and A_SHARE not in marks:  # all others are seconds
        value = duration_s(value)
    if isinstance(value, str) and IN_BYTES in marks:
        value = size_bytes(value)
    return _scalar(kind, value)


def _free(value: object) -> Any:
    """Return the value of a key without a type, which has to be JSON for the control API."""
    found = resolved(value)
    try:
        json.dumps(found, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError:
        raise ValueError("must not hold half a surrogate pair") from None
    return found


def _one_of(choices: Sequence[str], value: object) -> object:
    if value not in choices:
        named = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"expected {named}, got {value!r}")
    return value


def _scalar(kind: Any, value: object) -> Any:
    result = msgspec.convert(value, kind)
    if isinstance(result, float) and not math.isfinite(result):
        raise ValueError("must be a finite number")
    # Every text ends in an environment variable, a path, a header or JSON.
    if isinstance(result, str) and re.search("[\0\ud800-\udfff]", result):
        raise ValueError("must not hold NUL or half a surrogate pair")
    return result


def _resolve(directory: Path, text: str) -> Path:
    check_not_blank(text)
    try:
        return (directory / Path(text).expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # an unknown ~user, a loop of links
        raise ValueError(f"not a usable path: {error}") from None


def _plain(error: ValueError) -> str:
    """Reword a message: "Expected `int | null`, got `str`" becomes "expected int, got str"."""
    if not isinstance(error, msgspec.ValidationError):
        return str(error)
    text = str(error).replace("`", "").replace(" | null", "")
    return text[0].lower() + text[1:]


def _mismatch(expected: str, value: object) -> str:
    names = {
        "FromVariables": "str",
        "dict": "object",
        "Object": "object",
        "list": "array",
        "NoneType": "null",
    }
    got = type(value).__name__
    return f"expected {expected}, got {names.get(got, got)}"


def _unknown(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key)[:MOST_TEXT], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return f"unknown key, {hint}"
