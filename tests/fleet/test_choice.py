"""The order of hosts: by what they expect, by what was sent since, by age, and by what is known."""

from __future__ import annotations

from typing import Any

import pytest

from llmux.fleet import HostView, choose
from llmux.fleet.choice import STALE_S, USELESS_S
from llmux.observe.schemas.outlook import HostState, ModelOutlook, Outlook

NOW = 1000.0
LATENCY_S, COST_S = 2.0, 4.0


def model(*, awake: bool = False, **values: Any) -> ModelOutlook:
    known: dict[str, Any] = {
        "wait_secs": 0.0 if awake else COST_S,
        "refused": None,
        "awake": awake,
        "running": 0,
        "waiting": 0,
        "max_in_flight": 8,
        "arrivals_per_sec": 0.5,
        "latency_secs": LATENCY_S,
        "cost_secs": 0.0 if awake else COST_S,
    }
    return ModelOutlook(**{**known, **values})


def host(
    endpoint: str,
    *,
    age_s: float = 0.5,
    state: HostState = "ready",
    sent: dict[str, int] | None = None,
    **models: ModelOutlook,
) -> HostView:
    outlook = Outlook(at=0.0, boot="1", state=state, models=models)
    return HostView(endpoint=endpoint, outlook=outlook, seen_at=NOW - age_s, sent=sent or {})


def order(*hosts: HostView, asked: str = "m", only: set[str] | None = None) -> list[str]:
    found = choose(hosts, asked, now=NOW, only=only)
    assert found == choose(hosts[::-1], asked, now=NOW, only=only), "depends on the hosts' order"
    return found


def test_the_shortest_wait_is_first() -> None:
    waits = [host(name, m=model(wait_secs=s)) for name, s in [("a", 9.0), ("b", 3.0), ("c", 5.0)]]
    assert order(*waits) == ["b", "c", "a"]


def test_an_awake_model_goes_before_one_to_be_woken() -> None:
    assert order(host("a", m=model()), host("b", m=model(awake=True))) == ["b", "a"]


def test_a_faster_host_goes_first() -> None:
    fast, slow = model(awake=True, latency_secs=1.0), model(awake=True, latency_secs=3.0)
    assert order(host("a", m=slow), host("b", m=fast)) == ["b", "a"]


def test_a_latency_that_is_not_measured_is_as_good_as_the_best() -> None:
    new, slow = model(awake=True, latency_secs=None), model(awake=True, latency_secs=3.0)
    assert order(host("a", m=slow), host("b", m=new)) == ["b", "a"]


@pytest.mark.parametrize("state", ["cordoned", "stopping", "dead"])
def test_hosts_that_take_no_requests_are_left_out(state: HostState) -> None:
    assert order(host("a", state=state, m=model()), host("b", m=model())) == ["b"]


def test_hosts_that_refuse_the_model_are_left_out() -> None:
    assert order(host("a", m=model(refused="pinned")), host("b", m=model())) == ["b"]


def test_a_model_that_nobody_has() -> None:
    assert order(host("a", other=model()), host("b")) == []


def test_an_alias_is_as_good_as_the_name() -> None:
    there = model(aliases=["short"])
    assert order(host("a", m=there), host("b", other=model()), asked="short") == ["a"]


def test_only_some_hosts_may_be_chosen() -> None:
    hosts = [host(name, m=model(awake=name == "a")) for name in "abc"]
    assert set(order(*hosts, only={"b", "c", "elsewhere"})) == {"b", "c"}
    assert order(*hosts, only=set()) == []


# ---- What was sent since ----


def test_requests_sent_since_fill_the_slots() -> None:
    sent = {"m": 9}
    a = host("a", m=model(awake=True, running=4), sent=sent)
    b = host("b", m=model(awake=True, running=6))
    assert order(a, b) == ["b", "a"]
    assert order(host("a", m=model(awake=True, running=4)), b) == ["a", "b"]


def test_a_host_that_was_just_sent_a_request_for_the_model_will_wake_it() -> None:
    busy = model(awake=True)
    a = host("a", m=model(), other=busy, sent={"m": 1})
    b = host("b", m=model(), other=busy)
    assert order(a, b) == ["a", "b"]


def test_a_host_that_was_just_sent_a_request_for_another_model_is_left_alone() -> None:
    a = host("a", m=model(), other=model(), sent={"other": 1})
    b = host("b", m=model(), other=model())
    assert order(a, b) == ["b", "a"]


# ---- What it costs others ----


def test_an_empty_host_goes_before_one_with_another_model_awake() -> None:
    a = host("a", m=model(), other=model(awake=True))
    assert order(a, host("b", m=model(), other=model())) == ["b", "a"]


def test_the_model_with_the_fewest_requests_is_evicted() -> None:
    a = host("a", m=model(), other=model(awake=True, arrivals_per_sec=2.0))
    b = host("b", m=model(), other=model(awake=True, arrivals_per_sec=0.1))
    assert order(a, b) == ["b", "a"]


def test_a_short_queue_is_better_than_an_eviction() -> None:
    queued = host("a", m=model(awake=True, wait_secs=COST_S + 1))
    evicts = host("b", m=model(), other=model(awake=True))
    assert order(queued, evicts) == ["a", "b"]
    long = host("a", m=model(awake=True, wait_secs=10 * COST_S))
    assert order(long, evicts) == ["b", "a"]


def test_of_two_copies_the_one_that_nobody_waits_to_leave() -> None:
    wanted = host("a", m=model(awake=True), other=model(waiting=3))
    assert order(wanted, host("b", m=model(awake=True), other=model())) == ["b", "a"]


# ---- What is not known ----


def test_what_was_never_measured_is_not_for_nothing() -> None:
    """A host that has woken nothing yet expects no wait, and would take all requests."""
    new = host("a", m=model(wait_secs=0.0, cost_secs=None))
    assert order(new, host("b", m=model(awake=True, wait_secs=0.5))) == ["b", "a"]


def test_an_unknown_wait_counts_as_a_switch() -> None:
    unknown = host("a", m=model(wait_secs=None))
    assert order(unknown, host("b", m=model(wait_secs=COST_S + 1))) == ["a", "b"]
    assert order(unknown, host("b", m=model(wait_secs=COST_S - 1))) == ["b", "a"]


def test_an_old_view_counts_less() -> None:
    def first(age_s: float) -> str:
        return order(host("a", age_s=age_s, m=model(wait_secs=0.1)), host("b", m=model(wait_secs=2)))[0]  # fmt: skip

    assert first(STALE_S) == "a"
    assert first((STALE_S + USELESS_S) / 2) == "b"


def test_views_that_are_too_old_come_last_even_if_they_refuse() -> None:
    old = host("a", age_s=USELESS_S + 1, state="cordoned", m=model(awake=True))
    assert order(old, host("b", m=model(wait_secs=1e6))) == ["b", "a"]
    assert order(host("a", age_s=USELESS_S + 1), host("b", m=model())) == ["b"]


def test_without_views_each_model_has_a_home() -> None:
    hosts = [HostView(endpoint=f"10.0.0.{n}:3000", outlook=None) for n in range(4)]
    orders = {name: order(*hosts, asked=name) for name in "abcdefghijkl"}
    assert all(sorted(found) == [h.endpoint for h in hosts] for found in orders.values())
    firsts = [found[0] for found in orders.values()]
    assert all(firsts.count(each.endpoint) >= 1 for each in hosts)
    assert orders["a"] == [f"10.0.0.{n}:3000" for n in HOME_OF_A]


HOME_OF_A = [3, 2, 1, 0]
"""Saved: it may not change between processes or releases, since several pickers must agree."""


def test_hosts_never_seen_come_after_those_seen() -> None:
    never = HostView(endpoint="a", outlook=None)
    assert order(never, host("b", m=model(wait_secs=500.0))) == ["b", "a"]
