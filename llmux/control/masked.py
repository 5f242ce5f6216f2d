"""The config as it is used, without its secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from llmux.config import Config
from llmux.keys import MASK, KeyRing

SECRET_KEYS = frozenset({"headers"})
"""Mappings of the config whose values are secret: headers for backends carry their keys."""


def masked_config(config: Config) -> dict[str, Any]:
    """The config as JSON would have it; keys, header values and passwords in URLs are masked.

    Hooks are shown as they are: whoever may see this may read the file, too.
    """
    plain: dict[str, Any] = _masked(msgspec.to_builtins(config, enc_hook=_plain))
    return plain


def _plain(value: object) -> object:
    if isinstance(value, KeyRing):
        return [MASK] * len(value)
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: dict.fromkeys(item, MASK) if key in SECRET_KEYS else _masked(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    if isinstance(value, str) and "://" in value and "@" in value and "\n" not in value:
        return without_password(value)
    return value


def without_password(url: str) -> str:
    """A URL whose password is masked."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{MASK}@{host}"))
