"""Every Prometheus series of llmux, in seconds, with one registry per app."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from llmux import __version__

# The `_created` companions double the number of series and nothing here reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]

IDLE = "idle"
"""The `from` label of a switch that starts with nothing awake."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a proxied cache hit (5 ms) to an hour: vLLM's cold starts take minutes, and a request may
# wait for several of them.
SECONDS_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600,
)  # fmt: skip

STATES = ("asleep", "waking", "awake", "draining", "sleeping", "failed")
"""Every value of the label `state`; where models are in their lives (`llmux.model.Phase`)."""


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

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestCounts()
        self.registry.register(self.requests)
        ProcessCollector(registry=self.registry)
        build = Gauge("llmux_build_info", "Always 1", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        self.queue_wait = self._histogram(
            "llmux_request_queue_wait_seconds", "Time that requests waited in line", ["model"]
        )
        self.active_duration = self._histogram(
            "llmux_model_active_duration_seconds",
            "How long a model stayed awake before it was drained",
            ["model"],
        )
        self.switches = Counter(
            "llmux_switch", "Switches ended", ["from", "to", "result"], registry=self.registry
        )
        self.switch_duration = self._histogram(
            "llmux_switch_duration_seconds", "Whole switches, drain included", ["from", "to"]
        )
        self.drain_duration = self._histogram(
            "llmux_switch_drain_duration_seconds",
            "Time that switches waited for requests in flight",
            ["from", "to"],
        )
        self.switch_cost = Gauge(
            "llmux_switch_cost_ema_seconds",
            "Estimated hook time of a switch (moving average, smoothing 0.3)",
            ["from", "to"],
            registry=self.registry,
        )
        self.hook_duration = self._histogram(
            "llmux_hook_duration_seconds", "Run time of hooks", ["model", "hook"]
        )
        self.hook_failures = Counter(
            "llmux_hook_failures", "Hooks that failed", ["model", "hook"], registry=self.registry
        )

    def _histogram(self, name: str, text: str, labels: Iterable[str]) -> Histogram:
        return Histogram(name, text, tuple(labels), buckets=SECONDS_BUCKETS, registry=self.registry)

    def watch_counts(self, read: Callable[[], Counts]) -> None:
        """Export what models do at this instant, read from the source when scraped.

        Read, not counted along: so they are exact by construction and cost requests nothing.
        """
        self.registry.register(_LiveCounts(read))

    def watch_site(self, *, is_healthy: Callable[[], bool], queue_limit: Callable[[], int]) -> None:
        """Export what concerns no single model, read from the source when scraped."""
        healthy = Gauge(
            "llmux_healthy",
            "1 while every group can switch; else /health is 503",
            registry=self.registry,
        )
        healthy.set_function(is_healthy)
        limit = Gauge(
            "llmux_request_queue_limit",
            "How many requests may wait for one model",
            registry=self.registry,
        )
        limit.set_function(queue_limit)

    def render(self) -> bytes:
        """All series in the Prometheus text format."""
        return generate_latest(self.registry)


class RequestCounts(Collector):
    """How many requests were answered, and when: plain numbers, made into series when scraped.

    Every request counts here, and prometheus_client's own take four times as long, for locks that
    one thread does not need.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int, bool], int] = defaultdict(int)
        self._buckets: dict[tuple[str, int], list[int]] = defaultdict(_empty_buckets)
        self._sums_s: dict[tuple[str, int], float] = defaultdict(float)

    def count(self, model: str, status: int, *, waited: bool, first_byte_s: float | None) -> None:
        """Count a request.

        Args:
            model: The one that it was for; empty if none.
            status: As answered.
            waited: Whether it stood in line.
            first_byte_s: When its response began, seconds from its arrival; None if it never did.
        """
        self._counts[model, status, waited] += 1
        if first_byte_s is not None:
            self._buckets[model, status][bisect_left(SECONDS_BUCKETS, first_byte_s)] += 1
            self._sums_s[model, status] += first_byte_s

    def collect(self) -> Iterator[Metric]:
        """Both series; see `Collector`."""
        requests = CounterMetricFamily(
            "llmux_requests", "Requests answered", labels=["model", "status", "waited"]
        )
        for (model, status, waited), count in self._counts.items():
            requests.add_metric([model, str(status), "true" if waited else "false"], count)
        duration = HistogramMetricFamily(
            "llmux_request_duration_seconds",
            "From the request's arrival to the first byte of its response",
            labels=["model", "status"],
        )
        for key, counts in self._buckets.items():
            model, status = key
            buckets = list(zip(_BOUNDS, map(float, accumulate(counts)), strict=True))
            duration.add_metric([model, str(status)], buckets, self._sums_s[key])
        yield requests
        yield duration


_BOUNDS = [*(str(float(bound)) for bound in SECONDS_BUCKETS), "+Inf"]


def _empty_buckets() -> list[int]:
    return [0] * len(_BOUNDS)


class _LiveCounts(Collector):
    def __init__(self, read: Callable[[], Counts]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "llmux_request_queue_depth", "Requests waiting for a model", labels=["model"]
        )
        in_flight = GaugeMetricFamily(
            "llmux_model_in_flight", "Requests in flight on a model", labels=["model"]
        )
        oldest = GaugeMetricFamily(
            "llmux_request_oldest_wait_seconds",
            "How long the first in line has waited until now; 0 if nobody does",
            labels=["model"],
        )
        state = GaugeMetricFamily(
            "llmux_model_state",
            "1 for the state that a model is in, 0 for the others",
            labels=["model", "group", "state"],
        )
        for model, now in self._read().items():
            depth.add_metric([model], now.queued)
            in_flight.add_metric([model], now.in_flight)
            oldest.add_metric([model], now.oldest_wait_s)
            for each in STATES:
                state.add_metric([model, now.group, each], float(each == now.state))
        yield from (depth, in_flight, oldest, state)
