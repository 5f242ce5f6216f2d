"""Request filters of models and aliases: fields that are put into JSON bodies, or removed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from llmux.config.section import Keys, Section
from llmux.config.values import Alias, FieldPath

PROTECTED = {
    "model": "llmux itself writes the model's name: use upstream_model",
    "stream": "the client decides whether it gets a stream",
}
"""Fields that no filter may change, and why."""


class AliasConfig(Section, frozen=True, kw_only=True):
    """An alias with request filters of its own, which win against those of its model.

    Attributes:
        name: The alias.
        set: Fields to put into the JSON bodies of requests that lack them.
        force: Fields to put into the JSON bodies of requests, in place of the client's.
        drop: Fields to remove from the JSON bodies of requests.
    """

    name: Alias
    set: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it
    force: dict[str, Any] = {}  # noqa: RUF012
    drop: tuple[FieldPath, ...] = ()

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """Check the filters."""
        yield from filter_conflicts(given)


def filter_conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
    """Check the keys set, force and drop of a section against each other.

    Yields:
        Path below the section, and message.
    """
    sources = {key: given[key] for key in ("set", "force") if isinstance(given.get(key), dict)}
    for source, values in sources.items():
        for key in values:
            if (why := PROTECTED.get(str(key).casefold())) is not None:
                yield (source, key), why
        yield from _value_conflicts((source,), values, is_top=True)
    if len(sources) == 2:
        yield from _both((), sources["set"], sources["force"])
    paths = given.get("drop")
    for index, path in enumerate(paths if isinstance(paths, list | tuple) else ()):
        if isinstance(path, str) and (why := PROTECTED.get(path.partition(".")[0].casefold())):
            yield ("drop", index), why


def _value_conflicts(
    keys: Keys, value: object, *, is_top: bool = False
) -> Iterator[tuple[Keys, str]]:
    """Demand values that JSON has."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) and not is_top:  # the loader checks those of the top
                yield (*keys, key), "the key must be a string: put it in quotes"
            yield from _value_conflicts((*keys, key), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _value_conflicts((*keys, index), item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield keys, "must be a finite number"


def _both(
    keys: Keys, one: Mapping[Any, Any], other: Mapping[Any, Any]
) -> Iterator[tuple[Keys, str]]:
    for key in (key for key in one if key in other):
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            yield from _both((*keys, key), one[key], other[key])
        else:
            yield ("force", *keys, key), "is also in 'set': give one of them"
