"""Every Prometheus series of llmux, in seconds, with one registry per app."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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

Counts = Mapping[str, tuple[int, int]]
"""By model: requests queued, requests in flight."""


class Metrics:
    """The registry and the series in it; label values are only ever configured names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmux_requests",
            "Requests answered",
            ["model", "status", "waited"],
            registry=self.registry,
        )
        self.request_duration = self._histogram(
            "llmux_request_duration_seconds",
            "From the request's arrival to the first byte of its response",
            ["model", "status"],
        )
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

    @lru_cache(maxsize=4096)  # noqa: B019 - as many as there are series; lives as long as they do
    def request_series(self, model: str, status: int, waited: bool) -> tuple[Counter, Histogram]:
        """The count and the duration of such requests; `labels` is a microsecond for each."""
        count = self.requests.labels(model, str(status), "true" if waited else "false")
        return count, self.request_duration.labels(model, str(status))

    def watch_counts(self, read: Callable[[], Counts]) -> None:
        """Export queue depths and in-flight counts, read from the source when scraped.

        Read, not counted along: so they are exact by construction and cost requests nothing.
        """
        self.registry.register(_LiveCounts(read))

    def render(self) -> bytes:
        """All series in the Prometheus text format."""
        return generate_latest(self.registry)


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
        for model, (queued, flying) in self._read().items():
            depth.add_metric([model], queued)
            in_flight.add_metric([model], flying)
        yield depth
        yield in_flight
