"""All Prometheus series of llmux, with one registry per app; times are in seconds."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar, get_args

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from llmux import __version__
from llmux.config import HookName, ModelConfig
from llmux.observe import outlook_series
from llmux.observe.outlook_series import OutlookGauges
from llmux.observe.schemas import Gpu, ResourceMemory
from llmux.observe.series import SECONDS_BUCKETS, Family, Histogram, Latest, LiveGauges, Row, Value

__all__ = ["SECONDS_BUCKETS"]

# The additional `_created` series would double the number of series, and nothing here uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]

IDLE = "idle"
"""The `from` label of a switch that starts with no model awake."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STATES = ("asleep", "waking", "awake", "draining", "sleeping", "failed")
"""All values of the label `state`; see `llmux.switching.model.Phase`."""

TOKEN_KINDS = ("prompt", "completion", "cached")
"""Every value of the label `kind`."""

MOST_PAIRS = 100
"""Limit of the exported pairs of `from` and `to`; the most recently used ones are kept. Each pair
has 45 series, and the number of pairs grows with the square of the number of models; 100 is enough
for all pairs of ten models."""

MOST_STATUSES = 30
"""Limit of the different statuses of a model. Backends choose them, and each has 23 series. Further
ones are labelled by their class, such as `5xx`."""

FRESH_S = 1.0
"""Time for which one rendered text is served to all scrapers."""

Source = TypeVar("Source", Family[Value], Family[Histogram], LiveGauges)


class ModelGauges(NamedTuple):
    """The current state of a model.

    Attributes:
        queued: Requests that wait for it.
        in_flight: Requests in flight.
        group: Its group.
        state: One of `STATES`.
        oldest_wait_s: Age of the oldest request that needs this model, in seconds; 0 if none.
        is_failing: True if its wake keeps failing (`policy.wake_failures`).
    """

    queued: int
    in_flight: int
    group: str
    state: str
    oldest_wait_s: float
    is_failing: bool = False


Counts = Mapping[str, ModelGauges]
"""By model."""


class Metrics:
    """The registry and its series.

    Label values come from the config, never from clients, so that clients cannot add series.
    """

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
            "llmux_tokens", "Tokens, as reported in responses", ["model", "kind"]
        )
        self.first_token = self._histogram(
            "llmux_time_to_first_token_seconds",
            "Time from a request's arrival to the first byte of its successful, streamed response",
            ["model"],
        )
        self.queue_wait = self._histogram(
            "llmux_request_queue_wait_seconds", "Time that requests waited in line", ["model"]
        )
        self.active_duration = self._histogram(
            "llmux_model_active_duration_seconds",
            "Time that a model stayed awake before it was drained",
            ["model"],
        )
        pairs = Latest[tuple[str, ...]](MOST_PAIRS)
        self.switches = self._counter(
            "llmux_switch", "Switches ended", ["from", "to", "result"], pairs
        )
        self.switch_duration = self._histogram(
            "llmux_switch_duration_seconds",
            "Duration of whole switches, including the drain",
            ["from", "to"],
            pairs,
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
        """Export the current state of the models.

        It is read from the source at each scrape, rather than counted at each change. So it is
        exact by construction and costs requests nothing.
        """
        self._add(LiveGauges(_LIVE, lambda: _live_rows(read())))

    def watch_site(
        self,
        *,
        is_healthy: Callable[[], bool],
        is_cordoned: Callable[[], bool],
        queue_limit: Callable[[], int],
    ) -> None:
        """Export gauges that are not about a single model, read from the source at each scrape."""
        self._live(
            ("llmux_healthy", "1 if every group can switch, else 0 (and /health is 503)", ()),
            lambda: [((), float(is_healthy()))],
        )
        self._live(
            ("llmux_cordoned", "1 if new requests are refused (llmux cordon), else 0", ()),
            lambda: [((), float(is_cordoned()))],
        )
        self._live(
            ("llmux_request_queue_limit", "Limit of the requests that wait for one model", ()),
            lambda: [((), float(queue_limit()))],
        )

    def watch_outlook(self, read: Callable[[], OutlookGauges]) -> None:
        """Export what `read` returns at each scrape, for what chooses among several hosts."""
        self._add(LiveGauges(outlook_series.SERIES, lambda: outlook_series.rows_of(read())))

    def watch_gpus(self, read: Callable[[], Iterable[Gpu]]) -> None:
        """Export what `read` returns at each scrape; numbers that are unknown are left out."""
        self._add(LiveGauges(_GPUS, lambda: _gpu_rows(list(read()))))

    def watch_memory(self, read: Callable[[], Mapping[str, Sequence[ResourceMemory]]]) -> None:
        """Export what `read` returns at each scrape: by group, the memory that its models share."""
        self._add(LiveGauges(_MEMORY, lambda: _memory_rows(read())))

    def watch_certificate(self, ends_at: Callable[[], float]) -> None:
        """Export when the certificate in use expires (Unix time); nothing if that is unknown."""
        about = "When the certificate that llmux serves expires (Unix time)"
        self._live(
            ("llmux_tls_certificate_expiry_timestamp_seconds", about, ()),
            lambda: [((), at)] if math.isfinite(at := ends_at()) else [],
        )

    def render(self) -> bytes:
        """Return all series in the Prometheus text format."""
        own = "".join([family.text() for family in self._own])
        return own.encode() + generate_latest(self._process)

    def scrape(self) -> bytes:
        """Like `render`, but at most `FRESH_S` old: all scrapers meanwhile share one text."""
        now = self._clock()
        if now - self._rendered_at >= FRESH_S:
            self._rendered, self._rendered_at = self.render(), now
        return self._rendered


class RequestCounts:
    """Counts answered requests, and the time until they were answered.

    Attributes:
        answered: Number of requests.
        duration: Time from a request's arrival to the first byte of its response's body.
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
            "Time from a request's arrival to the first byte of its response's body",
            ["model", "status"],
        )
        self._counts: dict[tuple[str, int, bool], Value] = {}
        self._durations: dict[tuple[str, int, bool], Histogram] = {}
        self._statuses = defaultdict[str, set[int]](set)

    def count(self, model: str, status: int, *, waited: bool, first_byte_s: float | None) -> None:
        """Count a request.

        Args:
            model: The requested model; empty if none.
            status: The status of the response.
            waited: True if it waited in line.
            first_byte_s: Seconds from its arrival to the first byte of its response's body; None
                if there was none.
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
        """Return the status, or its class once the model has had too many different ones."""
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
        "Time that the oldest waiting request has waited so far; 0 if none waits",
        ("model",),
    ),
    (
        "llmux_model_failing",
        "1 if the model's wake keeps failing (policy.wake_failures), else 0",
        ("model",),
    ),
    (
        "llmux_model_state",
        "1 for the state that a model is in, 0 for the others",
        ("model", "group", "state"),
    ),
)


_GPUS = (
    ("llmux_gpu_memory_used_bytes", "Memory in use, as nvidia-smi reports it", ("gpu", "name")),
    ("llmux_gpu_memory_total_bytes", "Memory of the GPU", ("gpu", "name")),
    ("llmux_gpu_utilization_ratio", "Share of time in which it computed", ("gpu", "name")),
)


_MEMORY = (
    (
        "llmux_memory_bytes",
        "Memory that the models of a group share (resources)",
        ("group", "resource"),
    ),
    (
        "llmux_memory_held_bytes",
        "Memory that a model holds, by its needs: awake, waking, falling (asleep), asleep",
        ("group", "resource", "model", "state"),
    ),
    (
        "llmux_memory_promised_bytes",
        "Memory that a running switch will take once its evictions have given back enough",
        ("group", "resource", "model"),
    ),
)


def _memory_rows(memory: Mapping[str, Sequence[ResourceMemory]]) -> tuple[list[Row], ...]:
    found = [(group, each) for group, resources in memory.items() for each in resources]
    return (
        [((group, each.resource), float(each.amount)) for group, each in found],
        [
            ((group, each.resource, held.model, held.holding), float(held.bytes))
            for group, each in found
            for held in each.held
        ],
        [
            ((group, each.resource, promised.model), float(promised.bytes))
            for group, each in found
            for promised in each.promised
        ],
    )


def _gpu_rows(gpus: Sequence[Gpu]) -> list[list[Row]]:
    columns = [
        [(gpu.memory_used_bytes, gpu.memory_total_bytes, gpu.utilization)[column] for gpu in gpus]
        for column in range(len(_GPUS))
    ]
    return [
        [
            ((str(gpu.index), gpu.name), float(number))
            for gpu, number in zip(gpus, numbers, strict=True)
            if number is not None
        ]
        for numbers in columns
    ]


def _live_rows(counts: Counts) -> tuple[list[Row], ...]:
    return (
        [((model,), now.queued) for model, now in counts.items()],
        [((model,), now.in_flight) for model, now in counts.items()],
        [((model,), now.oldest_wait_s) for model, now in counts.items()],
        [((model,), float(now.is_failing)) for model, now in counts.items()],
        [
            ((model, now.group, state), float(state == now.state))
            for model, now in counts.items()
            for state in STATES
        ],
    )
