"""Recognize configs of other programs, which would only give a list of unknown keys."""

from __future__ import annotations

from llmux.config.section import Keys

LLAMA_SWAP_KEYS = (
    "macros",
    "healthCheckTimeout",
    "startPort",
    "globalTTL",
    "logToStdout",
    "matrix",
)
"""Top-level keys of llama-swap that are not keys of llmux."""

OWN_MODEL_KEYS = ("wake", "sleep", "alive", "recipe")
"""Keys of which a model of llmux has at least one."""


def of_llama_swap(data: object) -> tuple[Keys, str] | None:
    """Return the path of a key by which a config is llama-swap's, and a message; else None."""
    models = data.get("models") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(models, dict):
        return None
    shapes = {name: model for name, model in models.items() if isinstance(model, dict)}
    if any(key in model for model in shapes.values() for key in OWN_MODEL_KEYS):
        return None
    started = (("models", name, "cmd") for name, model in shapes.items() if "cmd" in model)
    named = ((key,) for key in LLAMA_SWAP_KEYS if key in data)
    keys: Keys | None = next(started, None) or next(named, None)
    if keys is None:
        return None
    return keys, "this is a config of llama-swap: `llmux import llama-swap FILE` makes one of llmux"
