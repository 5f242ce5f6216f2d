"""Types of what a foreign config holds; each check returns its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmux.errors import ConfigError


def mapping(value: object, where: str) -> Mapping[str, Any]:
    """Return a mapping with texts as keys; empty for null. Raises ConfigError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError([f"{where}: expected a mapping, got {value!r:.60}"])
    return {str(key): item for key, item in value.items()}


def texts(value: object, where: str) -> list[str]:
    """Return a list of texts; empty for null. Raises ConfigError."""
    if value is None:
        return []
    if not isinstance(value, list) or any(isinstance(item, list | Mapping) for item in value):
        raise ConfigError([f"{where}: expected a list of texts, got {value!r:.60}"])
    return [str(item) for item in value]


def text(value: object, where: str, default: str = "") -> str:
    """Return a text; a default for null. Raises ConfigError."""
    if value is None:
        return default
    if isinstance(value, list | Mapping):
        raise ConfigError([f"{where}: expected a text, got {value!r:.60}"])
    return str(value)


def number(value: object, where: str, default: int) -> int:
    """Return a whole number; a default for null. Raises ConfigError."""
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError([f"{where}: expected a whole number, got {value!r:.60}"])
    return value


def names(value: object, where: str) -> list[str]:
    """Return the fields in a text with commas, without `model`. Raises ConfigError."""
    found = [name.strip() for name in text(value, where).split(",")]
    return [name for name in found if name and name != "model"]
