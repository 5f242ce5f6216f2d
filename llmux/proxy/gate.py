"""The optional gate: the requests queued inside active backends, as their metrics report them.

vLLM exports that number. While its own queue holds requests, its model is not drained.
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
"""Seconds between two looks at a backend's metrics, and the time limit for its answer."""

MANY = 1e9
"""Cap for reported counts, which may be absurd."""

_WAITING = re.compile(
    rb"^vllm:num_requests_waiting(?:\{.*\})?[ \t]+([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*$",
    re.MULTILINE,
)

Fetch = Callable[[], Awaitable[bytes]]
"""Fetches a backend's metrics; raises LlmuxError or BackendBroke."""


def metrics_of(backend: Backend) -> Fetch:
    """Return a function that fetches a backend's metrics."""

    async def fetch() -> bytes:
        async with backend.exchange(b"GET", b"/metrics", [], b"") as answer:
            return await answer.read()

    return fetch


async def watch_backends(models: Callable[[], Iterable[tuple[Model, Fetch]]]) -> None:
    """Keep `Model.backend_queued` of the awake models up to date, for ever.

    Args:
        models: Returns the models to watch, which a reload may change.
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
    metrics = b""  # no answer counts as an empty queue: a broken backend must not stop switching
    with trio.move_on_after(LOOK_S):
        with suppress(LlmuxError, BackendBroke):
            metrics = await fetch()
    model.backend_queued = queued_in(metrics)


def queued_in(metrics: bytes) -> int:
    """Return the queue length in metrics of Prometheus's text format; 0 if there is none."""
    return round(min(sum(float(value) for value in _WAITING.findall(metrics)), MANY))
