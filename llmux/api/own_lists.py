"""Ollama's model lists, and the page at the root; pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

FOREVER_S = 100 * 365 * 86400
"""Time until a model expires: Ollama's client shows so long a time as "Forever"."""

PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}


def root_page(more: str) -> str:
    """Return the page at the root; `more` is HTML."""
    return f"<!doctype html><title>llmux</title><p>llmux is running{more}\n"


def ollama_tags(created: int, names: Iterable[str]) -> bytes:
    """Return the models in the form of Ollama's `/api/tags`, sorted by name.

    Args:
        created: Unix time.
        names: The models.
    """
    models = [_model(name) | {"modified_at": _time(created)} for name in sorted(names)]
    return msgspec.json.encode({"models": models})


def ollama_running(now: float, names: Iterable[str]) -> bytes:
    """Return the awake models in the form of Ollama's `/api/ps`, sorted by name.

    Args:
        now: Unix time.
        names: The models.
    """
    about = {"expires_at": _time(now + FOREVER_S), "size_vram": 0}
    models = [_model(name) | about for name in sorted(names)]
    return msgspec.json.encode({"models": models})


def _model(name: str) -> dict[str, Any]:
    """Describe a model of which only the name is known; clients expect all of these keys."""
    return {
        "name": name,
        "model": name,
        "size": 0,
        # Ollama's client shows the first twelve characters, and panics if there are fewer.
        "digest": hashlib.sha256(name.encode("utf-8", "replace")).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "",
            "family": "",
            "families": [],
            "parameter_size": "",
            "quantization_level": "",
        },
    }


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
