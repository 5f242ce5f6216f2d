"""The config in use, without its secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llmux.config import Config
from llmux.config.environment import hide
from llmux.config.keys import MASK, KeyRing
from llmux.config.places import Source
from llmux.http.certificates import Pair


def masked_config(config: Config) -> dict[str, Any]:
    """Return the config as plain JSON types, with keys and the values of backends' headers masked.

    URLs hold no secrets, since the config refuses those that do. Hooks are shown in full, except
    for secrets from environment variables: operators may read the file anyway.
    """
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_plain)
    del plain["source"], plain["hidden"]
    if plain["tls"] is not None:
        del plain["tls"]["pair"]
    for model in plain["models"].values():
        model["headers"] = dict.fromkeys(model["headers"], MASK)
    return hide(plain, config.hidden) if config.hidden else plain


def _plain(value: object) -> object:
    if isinstance(value, Source | Pair):
        return None
    if isinstance(value, KeyRing):
        return [MASK] * len(value)
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value).__name__)
