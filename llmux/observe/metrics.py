"""Every Prometheus series of llmux, in seconds, with one registry per app."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar, get_args

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from llmux import __version__
from llmux.config import HookName, ModelConfig
from llmux.observe.series import SECONDS_BUCKETS, Family, Histogram, Latest, LiveGauges, Row, Value

__all__ = ["SECONDS_BUCKETS"]

# The `_created` companions double the number of series and nothing here reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]

IDLE = "idle"
"""The `from` label of a switch that starts with nothing awake."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STATES = ("asleep", "waking", "awake", "draining", "sleeping", "failed")
"""Every value of the label `state`; see `llmux.switching.model.Phase`."""

TOKEN_KINDS = ("prompt", "completion", "cached")
"""Every value of the label `kind`."""

MOST_PAIRS = 100
"""Pairs of `from` and `to` that are exported, those that switched last: all pairs of ten models. A
pair has 45 series, and their number grows with the square of the models'."""

MOST_STATUSES = 30
"""Statuses of a model that are labelled as they are. Backends choose them, and a status has 23
series. What comes later is labelled by its class."""

FRESH_S = 1.0
"""So long one text is given to all who scrape."""

Source = TypeVar("Source", Family[Value], Family[Histogram], LiveGauges)


class ModelGauges(NamedTuple):
    """A model at this instant.

    Attributes:
        queued: Requests that wait for it.
        in_flight: Requests in flight.
        group: Its group.
        state: One of `STATES`.
        oldest_wait_s: For how long the first of those has waited that would have it awake.
    """

    queued: int
    in_flight: int
    group: str
    state: str
    oldest_wait_s: float


Counts = Mapping[str, ModelGauges]
"""By model."""


class Metrics:
    """The registry and the series in it; label values are only ever configured names."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._rendered = b""
        self._rendered_at = -FRESH_S
        self._own: list[Family[Value] | Family[Histogram] | LiveGauges] = []
        self._process = CollectorRegistry()
        for registry in (self.registry, self._process):
            ProcessCollector(registry=registry)
        self.requests = RequestCounts()
        self._add(self.requests.answered)
        self._add(self.requests.duration)
        self._live(("llmux_build_info", "Always 1", ("version",)), lambda: [((__version__,), 1)])
        self.tokens = self._counter(
            "llmux_tokens", "Tokens, as answers have told of them", ["model", "kind"]
        )
        self.first_token = self._histogram(
            "llmux_time_to_first_token_seconds",
            "From a request's arrival to the first byte of its streamed, successful answer",
            ["model"],
        )
        self.queue_wait = self._histogram(
            "llmux_request_queue_wait_seconds", "Time that requests waited in line", ["model"]
        )
        self.active_duration = self._histogram(
            "llmux_model_active_duration_seconds",
            "How long a model stayed awake before it was drained",
            ["model"],
        )
        pairs = Latest[tuple[str, ...]](MOST_PAIRS)
        self.switches = self._counter(
            "llmux_switch", "Switches ended", ["from", "to", "result"], pairs
        )
        self.switch_duration = self._histogram(
            "llmux_switch_duration_seconds", "Whole switches, drain included", ["from", "to"], pairs
        )
        self.drain_duration = self._histogram(
            "llmux_switch_drain_duration_seconds",
            "Time that switches waited for requests in flight",
            ["from", "to"],
            pairs,
        )
        self.switch_cost = self._add(
            Family(
                Value,
                "llmux_switch_cost_ema_seconds",
                "gauge",
                "Estimated hook time of a switch (moving average, smoothing 0.3)",
                ["from", "to"],
                latest=pairs,
            )
        )
        self.hook_duration = self._histogram(
            "llmux_hook_duration_seconds", "Run time of hooks", ["model", "hook"]
        )
        self.hook_failures = self._counter(
            "llmux_hook_failures", "Hooks that failed", ["model", "hook"]
        )

    def _add(self, source: Source) -> Source:
        self.registry.register(source)
        self._own.append(source)
        return source

    def _histogram(
        self,
        name: str,
        text: str,
        labels: Iterable[str],
        latest: Latest[tuple[str, ...]] | None = None,
    ) -> Family[Histogram]:
        return self._add(Family(Histogram, name, "histogram", text, labels, latest=latest))

    def _counter(
        self,
        name: str,
        text: str,
        labels: Iterable[str],
        latest: Latest[tuple[str, ...]] | None = None,
    ) -> Family[Value]:
        return self._add(Family(Value, name, "counter", text, labels, latest=latest))

    def _live(
        self, about: tuple[str, str, tuple[str, ...]], read: Callable[[], Iterable[Row]]
    ) -> None:
        self._add(LiveGauges([about], lambda: [read()]))

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Export a model's counters from zero on: Prometheus sees no increase in a new series."""
        if model is None:  # its series stay: counters must not go back
            return
        for kind in TOKEN_KINDS:
            self.tokens.labels(name, kind)
        for hook in get_args(HookName):
            if model.script(hook) is not None:
                self.hook_failures.labels(name, hook)

    def watch_counts(self, read: Callable[[], Counts]) -> None:
        """Export what models do at this instant, read from the source when scraped.

        Read, not counted along: so they are exact by construction and cost requests nothing.
        """
        self._add(LiveGauges(_LIVE, lambda: _live_rows(read())))

    def watch_site(self, *, is_healthy: Callable[[], bool], queue_limit: Callable[[], int]) -> None:
        """Export what concerns no single model, read from the source when scraped."""
        self._live(
            ("llmux_healthy", "1 while every group can switch; else /health is 503", ()),
            lambda: [((), float(is_healthy()))],
        )
        self._live(
            ("llmux_request_queue_limit", "How many requests may wait for one model", ()),
            lambda: [((), float(queue_limit()))],
        )

    def render(self) -> bytes:
        """All series in the Prometheus text format."""
        own = "".join([family.text() for family in self._own])
        return own.encode() + generate_latest(self._process)

    def scrape(self) -> bytes:
        """The same, at most `FRESH_S` old: one text, and one object, for all who ask meanwhile."""
        now = self._clock()
        if now - self._rendered_at >= FRESH_S:
            self._rendered, self._rendered_at = self.render(), now
        return self._rendered


class RequestCounts:
    """How many requests were answered, and when.

    Attributes:
        answered: How many.
        duration: From the arrival of each to the first byte of its response's body.
    """

    def __init__(self) -> None:
        self.answered = Family(
            Value,
            "llmux_requests",
            "counter",
            "Requests answered",
            ["model", "status", "waited"],
        )
        self.duration = Family(
            Histogram,
            "llmux_request_duration_seconds",
            "histogram",
            "From the request's arrival to the first byte of its response's body",
            ["model", "status"],
        )
        self._counts: dict[tuple[str, int, bool], Value] = {}
        self._durations: dict[tuple[str, int, bool], Histogram] = {}
        self._statuses = defaultdict[str, set[int]](set)

    def count(self, model: str, status: int, *, waited: bool, first_byte_s: float | None) -> None:
        """Count a request.

        Args:
            model: The one that it was for; empty if none.
            status: As answered.
            waited: Whether it stood in line.
            first_byte_s: When its response's body began, seconds from its arrival; None if it never
                did.
        """
        key = model, status, waited
        try:
            self._counts[key].value += 1
        except KeyError:
            label = "true" if waited else "false"
            self._counts[key] = self.answered.labels(model, self._label(model, status), label)
            self._counts[key].inc()
        if first_byte_s is not None:
            try:
                self._durations[key].observe(first_byte_s)
            except KeyError:
                duration = self.duration.labels(model, self._label(model, status))
                self._durations[key] = duration
                duration.observe(first_byte_s)

    def _label(self, model: str, status: int) -> str:
        """The status, or once a model has had many of them its class."""
        known = self._statuses[model]
        if status in known or len(known) < MOST_STATUSES:
            known.add(status)
            return str(status)
        return f"{status // 100}xx" if 100 <= status < 600 else "xxx"


_LIVE = (
    ("llmux_request_queue_depth", "Requests waiting for a model", ("model",)),
    ("llmux_model_in_flight", "Requests in flight on a model", ("model",)),
    (
        "llmux_request_oldest_wait_seconds",
        "How long the first in line has waited until now; 0 if nobody does",
        ("model",),
    ),
    (
        "llmux_model_state",
        "1 for the state that a model is in, 0 for the others",
        ("model", "group", "state"),
    ),
)


def _live_rows(counts: Counts) -> tuple[list[Row], ...]:
    return (
        [((model,), now.queued) for model, now in counts.items()],
        [((model,), now.in_flight) for model, now in counts.items()],
        [((model,), now.oldest_wait_s) for model, now in counts.items()],
        [
            ((model, now.group, state), float(state == now.state))
            for model, now in counts.items()
            for state in STATES
        ],
    )
