"""The picker's Prometheus series."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmux.errors import LlmuxError
from llmux.pick.picking import Pick
from llmux.pick.table import Table

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts picks and refusals, and shows the ages of the hosts' outlooks.

    Args:
        table: The hosts.
        clock: The table's clock.
    """

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._picks = Counter(
            "llmux_pick_picks", "Requests sent to a host", ["host"], registry=self._registry
        )
        self._refusals = Counter(
            "llmux_pick_refusals",
            "Requests answered with an error, by its code",
            ["code"],
            registry=self._registry,
        )
        self._registry.register(_Hosts(table, clock))

    def note(self, outcome: Pick | LlmuxError) -> None:
        """Count what was answered to a request."""
        if isinstance(outcome, Pick):
            self._picks.labels(outcome.endpoints[0]).inc()
        else:
            self._refusals.labels(outcome.code).inc()

    def scrape(self) -> bytes:
        """Return all series as text."""
        return generate_latest(self._registry)


class _Hosts(Collector):
    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        heard = GaugeMetricFamily(
            "llmux_pick_host_heard", "1 if the host is being listened to, else 0", labels=["host"]
        )
        ready = GaugeMetricFamily(
            "llmux_pick_host_ready",
            "1 if the host takes new requests, as far as is known, else 0",
            labels=["host"],
        )
        age = GaugeMetricFamily(
            "llmux_pick_host_age_seconds", "Age of the host's last outlook", labels=["host"]
        )
        now = self._clock()
        for host in self._table:
            labels = [host.address.endpoint]
            heard.add_metric(labels, float(not host.trouble))
            is_ready = host.is_fresh(now) and host.outlook and host.outlook.state == "ready"
            ready.add_metric(labels, float(bool(is_ready)))
            age.add_metric(labels, now - host.seen_at)
        yield from (heard, ready, age)
