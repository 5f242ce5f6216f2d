"""Series as text: what prometheus_client would write, bounded, and shared by all who scrape."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from llmux.api.public import PIECE_BYTES
from llmux.observe.metrics import FRESH_S, MOST_PAIRS, MOST_STATUSES, Metrics, ModelGauges
from llmux.observe.series import SECONDS_BUCKETS, Family
from llmux.observe.series import Histogram as OwnHistogram
from llmux.observe.series import Value as OwnValue
from tests.lanes import running_lane

NAMES = [f"model-{number}" for number in range(20)]


def series(text: bytes, name: str) -> dict[tuple[str, ...], float]:
    """The values of one name, by the values of its labels (sorted by label)."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name
    }


def test_the_text_is_prometheus_own() -> None:
    theirs = CollectorRegistry()
    counter = Counter("c", "Counts", ["b", "a"], registry=theirs)
    gauge = Gauge("g", "Is", ["m"], registry=theirs)
    plain = Gauge("p", "Has no labels", registry=theirs)
    histogram = Histogram("h", "Takes", ["to"], buckets=SECONDS_BUCKETS, registry=theirs)
    own_counter = Family(OwnValue, "c", "counter", "Counts", ["b", "a"])
    own_gauge = Family(OwnValue, "g", "gauge", "Is", ["m"])
    own_plain = Family(OwnValue, "p", "gauge", "Has no labels", [])
    own_histogram = Family(OwnHistogram, "h", "histogram", "Takes", ["to"])
    for value in (0, 1, 0.1, 1e6, 12345678.5, float("inf"), -3, 1 / 3):
        name = f'{value} "100%" \\ \n ü'
        gauge.labels(name).set(value)
        own_gauge.labels(name).set(value)
        counter.labels(name, "x").inc()
        own_counter.labels(name, "x").inc()
        if value >= 0:
            histogram.labels("%s").observe(value)
            own_histogram.labels("%s").observe(value)
            own_histogram.text()  # what is kept of it must not be given again
    plain.set(7)
    own_plain.labels().set(7)
    families = (own_counter, own_gauge, own_plain, own_histogram)
    assert "".join(family.text() for family in families) == generate_latest(theirs).decode()

    ours = CollectorRegistry()
    for family in families:
        ours.register(family)
    assert generate_latest(ours) == generate_latest(theirs)


def test_a_registry_has_what_is_rendered() -> None:
    metrics = Metrics()
    metrics.watch_counts(lambda: {"a": ModelGauges(1, 2, "g", "awake", 3)})
    metrics.watch_site(is_healthy=lambda: True, is_cordoned=lambda: False, queue_limit=lambda: 7)
    metrics.requests.count("a", 200, waited=True, first_byte_s=1)
    metrics.switch_duration.labels("idle", "a").observe(1)

    def own(text: bytes) -> list[str]:
        return sorted(line for line in text.decode().splitlines() if "process_" not in line)

    assert own(metrics.render()) == own(generate_latest(metrics.registry))


def test_pairs_are_bounded_and_go_on_where_they_were() -> None:
    metrics = Metrics()
    pairs = list(permutations(NAMES, 2))
    for number, (source, target) in enumerate(pairs):
        for _ in range(3):
            metrics.switches.labels(source, target, "success").inc()
        metrics.switches.labels(source, target, "failure").inc()
        metrics.switch_duration.labels(source, target).observe(number)
        metrics.drain_duration.labels(source, target).observe(number)
        metrics.switch_cost.labels(source, target).set(number)
    text = metrics.render()
    assert set(series(text, "llmux_switch_cost_ema_seconds")) == set(pairs[-MOST_PAIRS:])
    for name in ("llmux_switch_duration_seconds", "llmux_switch_drain_duration_seconds"):
        assert len(series(text, f"{name}_count")) == MOST_PAIRS
    assert len(series(text, "llmux_switch_total")) == 2 * MOST_PAIRS
    assert len(text) < 1 << 20

    source, target = pairs[0]
    metrics.switches.labels(source, target, "success").inc()
    text = metrics.render()
    totals = series(text, "llmux_switch_total")
    assert (totals[source, "success", target], totals[source, "failure", target]) == (4, 1)
    assert series(text, "llmux_switch_duration_seconds_count")[source, target] == 1
    assert len(series(text, "llmux_switch_cost_ema_seconds")) == MOST_PAIRS


def test_all_pairs_of_ten_models_are_exported() -> None:
    metrics = Metrics()
    pairs = [*permutations(NAMES[:10], 2), *(("idle", name) for name in NAMES[:10])]
    for pair in pairs:
        metrics.switch_cost.labels(*pair).set(1)
    assert set(series(metrics.render(), "llmux_switch_cost_ema_seconds")) == set(pairs)


def test_a_backend_cannot_make_series_by_its_statuses() -> None:
    metrics = Metrics()
    for status in range(100, 1000):
        for waited in (True, False):
            metrics.requests.count("a", status, waited=waited, first_byte_s=1)
    metrics.requests.count("b", 999, waited=False, first_byte_s=1)
    totals = series(metrics.render(), "llmux_requests_total")
    of_a = {status for model, status, _ in totals if model == "a"}
    assert len(of_a) <= MOST_STATUSES + 6
    assert {"1xx", "2xx", "3xx", "4xx", "5xx", "xxx"} <= of_a
    assert sum(count for (model, *_), count in totals.items() if model == "a") == 2 * 900
    assert totals["a", "xxx", "true"] == 400
    assert totals["b", "999", "false"] == 1  # of another model


def test_what_was_rendered_is_given_to_all_for_a_second() -> None:
    now = 0.0
    metrics = Metrics(clock=lambda: now)
    first = metrics.scrape()
    metrics.requests.count("a", 200, waited=False, first_byte_s=1)
    now = FRESH_S - 0.001
    assert metrics.scrape() is first  # not a copy
    now = FRESH_S
    assert series(metrics.scrape(), "llmux_requests_total") == {("a", "200", "false"): 1}


async def test_metrics_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.observe.metrics.FRESH_S", 60.0)  # GET and HEAD see the same text
    async with running_lane("asgi", tmp_path) as site, site.client() as client:
        metrics = site.service.metrics
        for source, target in permutations(NAMES, 2):
            metrics.switch_duration.labels(source, target).observe(1)
        answer = await client.get("/metrics")
        assert answer.headers["content-length"] == str(len(answer.content))
        assert len(answer.content) > 2 * PIECE_BYTES
        assert series(answer.content, "llmux_switch_duration_seconds_count")
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == answer.headers["content-length"]
