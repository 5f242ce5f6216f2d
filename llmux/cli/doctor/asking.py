"""Look up what a running llmux has answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmux.cli.doctor.facts import Running
from llmux.observe.schemas import RequestInfo


def requests_of(running: Running, model: str, *phases: str) -> list[RequestInfo]:
    """Return the requests of a model that are in one of these phases, oldest first."""
    found = running.requests
    return [
        each
        for each in (found.requests if found is not None else ())
        if each.model == model and each.phase in phases
    ]


def setting(running: Running, *keys: str) -> float | None:
    """Return a number of the config in use; None if it is not there, or null."""
    value: Any = running.settings
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None
