"""The config as it is used, without its secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llmux.config import Config
from llmux.config.keys import MASK, KeyRing


def masked_config(config: Config) -> dict[str, Any]:
    """The config as JSON would have it; keys and the values of headers for backends are masked.

    URLs hold no secrets: the config takes none that do. Hooks are shown as they are: whoever may
    see this may read the file, too.
    """
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_plain)
    for model in plain["models"].values():
        model["headers"] = dict.fromkeys(model["headers"], MASK)
    return plain


def _plain(value: object) -> object:
    if isinstance(value, KeyRing):
        return [MASK] * len(value)
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value).__name__)
