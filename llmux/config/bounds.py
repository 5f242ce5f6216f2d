"""Bounds on the size of a config: with YAML aliases a few lines can stand for gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmux.config.section import Keys

MOST_BYTES = 4 << 20
"""Largest config file; Kubernetes allows 1 MiB for a ConfigMap."""

MOST_VALUES = 100_000
"""Maximum number of values in a config. Values that aliases and merge keys repeat count each time.
A model takes about a dozen, so this is enough for thousands of models."""

MOST_NODES = 60_000
"""Maximum number of keys and values written in a YAML file: PyYAML takes some 0.1 ms for each."""

MOST_DEPTH = 100
"""Deepest nesting; llmux's own keys need five levels, `policy.options` may have more."""

MOST_MISTAKES = 1000
"""Further mistakes are counted, not shown."""


def misfit(data: object) -> tuple[Keys, str] | None:
    """Return the path of a value that is too much for a config, and why; None if all is well.

    Its time is linear in the values written in the file, however often aliases repeat them.
    """
    sizes: dict[int, tuple[int, int]] = {}  # values in it, and its depth
    above: set[int] = set()
    waiting: list[tuple[Keys, Any, bool]] = [((), data, False)]
    while waiting:  # no recursion, for nesting may be deeper than Python's stack
        keys, value, is_counted = waiting.pop()
        if not isinstance(value, dict | list | tuple) or id(value) in sizes:
            continue
        if is_counted:
            above.discard(id(value))
            inner = [sizes.get(id(item), (1, 0)) for _, item in _items(value)]
            size = 1 + sum(count for count, _ in inner)
            depth = 1 + max((deep for _, deep in inner), default=0)
            if size > MOST_VALUES:
                return keys, f"stands for more than {MOST_VALUES} values (do aliases repeat it?)"
            if depth > MOST_DEPTH:
                return keys[:3], f"nested more than {MOST_DEPTH} deep"
            sizes[id(value)] = size, depth
        elif id(value) in above:
            return keys[:3], "holds itself, by an alias"
        elif len(value) > MOST_VALUES:
            return keys, f"has more than {MOST_VALUES} values"
        elif len(keys) > MOST_DEPTH:
            return keys[:3], f"nested more than {MOST_DEPTH} deep"
        else:
            above.add(id(value))
            waiting.append((keys, value, True))
            below = [
                ((*keys, key), item, False)
                for key, item in _items(value)
                if isinstance(item, dict | list | tuple)
            ]
            waiting += reversed(below)
    return None


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter(value.items() if isinstance(value, dict) else enumerate(value))
