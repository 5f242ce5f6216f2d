"""The optional gate: how many requests wait inside of the active backends, by their own word.

vLLM says it in its metrics. While it has requests of its own waiting, a model is not closed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import trio

from llmux.errors import BackendBroke, LlmuxError
from llmux.switching.model import Model
from llmux.upstream import Backend

LOOK_S = 1.0
"""How often a backend is asked, and how long it may take to answer."""

MANY = 1e9
"""More than that is not a number of requests."""

_WAITING = re.compile(
    rb"^vllm:num_requests_waiting(?:\{.*\})?[ \t]+([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*$",
    re.MULTILINE,
)

Fetch = Callable[[], Awaitable[bytes]]
"""Gets a backend's metrics; raises LlmuxError."""


def metrics_of(backend: Backend) -> Fetch:
    """Gets the metrics of a backend."""

    async def fetch() -> bytes:
        async with backend.exchange(b"GET", b"/metrics", [], b"") as answer:
            return await answer.read()

    return fetch


async def watch_backends(models: Callable[[], Iterable[tuple[Model, Fetch]]]) -> None:
    """Keep `backend_queued` of each model that is awake up to date, for ever.

    Args:
        models: Those that are watched now.
    """
    before: list[Model] = []
    while True:
        watched = list(models())
        now = [model for model, _ in watched]
        for model in before:
            if model not in now:  # a reload has switched the gate off
                model.backend_queued = 0
        before = now
        async with trio.open_nursery() as nursery:
            for model, fetch in watched:
                if model.is_awake:
                    nursery.start_soon(_look, model, fetch)
                else:
                    model.backend_queued = 0
        await trio.sleep(LOOK_S)


async def _look(model: Model, fetch: Fetch) -> None:
    metrics = b""  # a backend that does not say has nobody waiting
    with trio.move_on_after(LOOK_S):
        with suppress(LlmuxError, BackendBroke):
            metrics = await fetch()
    model.backend_queued = queued_in(metrics)


def queued_in(metrics: bytes) -> int:
    """How many requests wait, by metrics in Prometheus's text format; 0 if they do not say."""
    return round(min(sum(float(value) for value in _WAITING.findall(metrics)), MANY))
