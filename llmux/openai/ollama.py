"""llmux's own answers to Ollama's clients: the lists of models, and one model; pure functions.

llmux knows names and states. All other fields are there, since clients expect them, with a value
that stands for "unknown" in Ollama's own answers, or that their libraries take for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from llmux.openai.dialects import plain_path

VERSION = "0.14.0"
"""Version of Ollama whose answers these are. Clients refuse older ones, whatever is behind them:
VS Code's Copilot takes 0.6.4 or newer. A suffix is no choice, since Open WebUI reads integers."""

FOREVER_S = 100 * 365 * 86400
"""Time until a model expires: Ollama's client shows so long a time as "Forever"."""

SHOW = b"/api/show"

HAS_NO_SHOW = frozenset({404, 405, 501})
"""Statuses of servers other than Ollama for this path."""

MOST_SHOW_BYTES = 4096
"""Limit for the body of a request that names its model in the old way."""


def asks_to_show(target: bytes) -> bool:
    """Return whether a request wants the description of a model."""
    return plain_path(target) == SHOW


class _OldForm(msgspec.Struct):
    name: str = ""


def name_to_show(target: bytes, body: bytes) -> str:
    """Return the model that clients older than 2024 name as `name`; empty if none is named."""
    if not asks_to_show(target) or len(body) > MOST_SHOW_BYTES:
        return ""
    try:
        return msgspec.json.decode(body, type=_OldForm).name
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def version() -> bytes:
    """Return the answer of `/api/version`."""
    return msgspec.json.encode({"version": VERSION})


def tags(created: int, names: Iterable[str]) -> bytes:
    """Return the models in the form of `/api/tags`, sorted by name.

    Args:
        created: Unix time.
        names: The models.
    """
    models = [_model(name) | {"modified_at": _time(created)} for name in sorted(names)]
    return msgspec.json.encode({"models": models})


def running(now: float, names: Iterable[str]) -> bytes:
    """Return the awake models in the form of `/api/ps`, sorted by name.

    Args:
        now: Unix time.
        names: The models.
    """
    about = {"expires_at": _time(now + FOREVER_S), "size_vram": 0, "context_length": 0}
    models = [_model(name) | about for name in sorted(names)]
    return msgspec.json.encode({"models": models})


def description(name: str, created: float) -> bytes:
    """Return a model in the form of `/api/show`.

    Args:
        name: As clients know it.
        created: Unix time.
    """
    # Ollama's client asserts that the architecture is a string. Copilot shows the base name, and
    # falls back to its own default where there is no `<architecture>.context_length`.
    info = {"general.architecture": "", "general.basename": name}
    return msgspec.json.encode(
        {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(),
            "model_info": info,
            "capabilities": ["completion"],
            "modified_at": _time(created),
        }
    )


def _model(name: str) -> dict[str, Any]:
    """Describe a model of which only the name is known; clients expect all of these keys."""
    return {
        "name": name,
        "model": name,
        "size": 0,
        # Ollama's client shows the first twelve characters, and panics if there are fewer.
        "digest": hashlib.sha256(name.encode("utf-8", "replace")).hexdigest(),
        "details": _details(),
    }


def _details() -> dict[str, Any]:
    texts = ("parent_model", "format", "family", "parameter_size", "quantization_level")
    return dict.fromkeys(texts, "") | {"families": []}


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
