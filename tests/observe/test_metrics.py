"""The names and labels that dashboards use."""

from __future__ import annotations

import time

from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from llmux.observe.metrics import SECONDS_BUCKETS, STATES, Metrics, ModelGauges
from llmux.observe.outlook_series import OutlookGauges
from llmux.observe.schemas import HeldMemory, PromisedMemory, ResourceMemory
from llmux.switching.model import Phase

# What dashboards and alerts may rely on.
SERIES = {
    "llmux_requests": ("counter", {"model", "status", "waited"}),
    "llmux_request_duration_seconds": ("histogram", {"model", "status"}),
    "llmux_request_queue_wait_seconds": ("histogram", {"model"}),
    "llmux_request_queue_depth": ("gauge", {"model"}),
    "llmux_model_in_flight": ("gauge", {"model"}),
    "llmux_model_active_duration_seconds": ("histogram", {"model"}),
    "llmux_switch": ("counter", {"from", "to", "result"}),
    "llmux_switch_duration_seconds": ("histogram", {"from", "to"}),
    "llmux_switch_drain_duration_seconds": ("histogram", {"from", "to"}),
    "llmux_switch_cost_ema_seconds": ("gauge", {"from", "to"}),
    "llmux_hook_duration_seconds": ("histogram", {"model", "hook"}),
    "llmux_hook_failures": ("counter", {"model", "hook"}),
}

# The others; a new one goes here.
MORE = {
    "llmux_build_info": ("gauge", {"version"}),
    "llmux_model_state": ("gauge", {"model", "group", "state"}),
    "llmux_model_failing": ("gauge", {"model"}),
    "llmux_request_oldest_wait_seconds": ("gauge", {"model"}),
    "llmux_healthy": ("gauge", set()),
    "llmux_cordoned": ("gauge", set()),
    "llmux_request_queue_limit": ("gauge", set()),
    "llmux_expected_wait_seconds": ("gauge", {"model"}),
    "llmux_requests_waiting": ("gauge", set()),
    "llmux_requests_running": ("gauge", set()),
    "llmux_models_info": (
        "gauge",
        {"running_lora_adapters", "waiting_lora_adapters", "max_lora"},
    ),
    "llmux_tls_certificate_expiry_timestamp_seconds": ("gauge", set()),
    "llmux_memory_bytes": ("gauge", {"group", "resource"}),
    "llmux_memory_held_bytes": ("gauge", {"group", "resource", "model", "state"}),
    "llmux_memory_promised_bytes": ("gauge", {"group", "resource", "model"}),
    "llmux_tokens": ("counter", {"model", "kind"}),
    "llmux_time_to_first_token_seconds": ("histogram", {"model"}),
}

NOW = ModelGauges(queued=1, in_flight=2, group="g", state="awake", oldest_wait_s=3)


OUTLOOK = OutlookGauges(
    waits_s={"a": 0.0, "b": 7.5, "c": None, "d": 9.0},
    waiting=3,
    running=2,
    awake=["a", "x"],
    wanted=["b", "d"],
    most_awake=2,
)

MEMORY = ResourceMemory(
    resource="gpu0",
    amount=80 << 30,
    free=20 << 30,
    held=[HeldMemory(model="a", bytes=60 << 30, holding="awake")],
    promised=[PromisedMemory(model="b", bytes=40 << 30, evicts=["a"])],
)


def test_every_series_of_the_contract_and_no_other() -> None:
    metrics = Metrics()
    metrics.watch_counts(lambda: {"a": NOW})
    metrics.watch_site(is_healthy=lambda: True, is_cordoned=lambda: False, queue_limit=lambda: 7)
    metrics.watch_outlook(lambda: OUTLOOK)
    metrics.watch_certificate(lambda: 1.0)
    metrics.watch_memory(lambda: {"g": [MEMORY]})
    metrics.requests.count("a", 200, waited=True, first_byte_s=1)
    metrics.tokens.labels("a", "prompt").inc()
    metrics.first_token.labels("a").observe(1)
    metrics.queue_wait.labels("a").observe(1)
    metrics.active_duration.labels("a").observe(1)
    metrics.switches.labels("idle", "a", "success").inc()
    metrics.switch_duration.labels("idle", "a").observe(1)
    metrics.drain_duration.labels("idle", "a").observe(1)
    metrics.switch_cost.labels("idle", "a").set(1)
    metrics.hook_duration.labels("a", "wake").observe(1)
    metrics.hook_failures.labels("a", "wake").inc()

    families = [
        family
        for family in text_string_to_metric_families(metrics.render().decode())
        if not family.name.startswith("process_")  # what there is depends on the system
    ]
    empty = [family.name for family in families if not family.samples]
    assert not empty, f"record something in {empty}, as above"
    found = {
        family.name: (family.type, set(family.samples[-1].labels) - {"le"}) for family in families
    }
    known = SERIES | MORE
    new, gone = found.keys() - known.keys(), known.keys() - found.keys()
    assert not new, f"add to MORE: {new}"
    assert not gone, f"users may rely on {gone}"
    assert found == known
    assert max(SECONDS_BUCKETS) == 3600


def test_what_endpoint_pickers_read() -> None:
    metrics = Metrics()
    metrics.watch_outlook(lambda: OUTLOOK)
    lines = metrics.render().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("llmux_"))
    waits = {name: value for name, value in found.items() if "expected_wait" in name}
    assert waits == {
        'llmux_expected_wait_seconds{model="a"}': "0.0",
        'llmux_expected_wait_seconds{model="b"}': "7.5",
        'llmux_expected_wait_seconds{model="d"}': "9.0",
    }  # nothing of c, whose wait is unknown
    assert (found["llmux_requests_waiting"], found["llmux_requests_running"]) == ("3.0", "2.0")
    labels = 'max_lora="2",running_lora_adapters="a,x",waiting_lora_adapters="b,d"'
    at = next(float(value) for name, value in found.items() if name.startswith("llmux_models_info"))
    assert f"llmux_models_info{{{labels}}}" in found
    assert abs(at - time.time()) < 3600


def test_counts_are_read_when_scraped() -> None:
    metrics = Metrics()
    counts = {"a": NOW}
    metrics.watch_counts(lambda: counts)
    counts["a"] = NOW._replace(queued=3, in_flight=4, state="draining", oldest_wait_s=5)
    assert 'llmux_model_failing{model="a"} 0.0' in metrics.render().decode()
    counts["a"] = counts["a"]._replace(is_failing=True)
    text = metrics.render().decode()
    assert 'llmux_model_failing{model="a"} 1.0' in text
    assert 'llmux_request_queue_depth{model="a"} 3.0' in text
    assert 'llmux_model_in_flight{model="a"} 4.0' in text
    assert 'llmux_request_oldest_wait_seconds{model="a"} 5.0' in text
    assert 'llmux_model_state{group="g",model="a",state="draining"} 1.0' in text
    assert 'llmux_model_state{group="g",model="a",state="awake"} 0.0' in text


def test_memory_is_read_when_scraped() -> None:
    metrics = Metrics()
    memory = {"g": [MEMORY]}
    metrics.watch_memory(lambda: memory)

    def found() -> dict[str, tuple[dict[str, str], float]]:
        families = text_string_to_metric_families(metrics.render().decode())
        samples = (each for family in families for each in family.samples)
        return {s.name: (s.labels, s.value) for s in samples if s.name.startswith("llmux_memory_")}

    where = {"group": "g", "resource": "gpu0"}
    assert found() == {
        "llmux_memory_bytes": (where, 80 << 30),
        "llmux_memory_held_bytes": ({**where, "model": "a", "state": "awake"}, 60 << 30),
        "llmux_memory_promised_bytes": ({**where, "model": "b"}, 40 << 30),
    }
    memory.clear()  # a reload: one model is awake at a time
    assert not found()


def test_a_model_state_is_one_of_those_that_are_exported() -> None:
    assert tuple(phase.value for phase in Phase) == STATES


def test_requests_are_counted_as_prometheus_would() -> None:
    metrics = Metrics()
    own = Histogram("own", "The same", buckets=SECONDS_BUCKETS, registry=None)
    for seconds in (0, 0.005, 0.0051, 1, 3600, 3601):
        metrics.requests.count("a", 200, waited=False, first_byte_s=seconds)
        own.observe(seconds)
    metrics.requests.count("a", 499, waited=True, first_byte_s=None)
    found = {
        (sample.name.removeprefix("llmux_request_duration_seconds"), sample.labels.get("le")): (
            sample.value
        )
        for family in text_string_to_metric_families(metrics.render().decode())
        if family.name == "llmux_request_duration_seconds"
        for sample in family.samples
    }
    (family,) = own.collect()
    assert found == {
        (sample.name.removeprefix("own"), sample.labels.get("le")): sample.value
        for sample in family.samples
    }
    text = metrics.render().decode()
    assert 'llmux_requests_total{model="a",status="200",waited="false"} 6.0' in text
    assert 'llmux_requests_total{model="a",status="499",waited="true"} 1.0' in text


def test_each_app_has_a_registry_of_its_own() -> None:
    assert Metrics().registry is not Metrics().registry
