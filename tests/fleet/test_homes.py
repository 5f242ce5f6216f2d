"""Homes of models: spread, stable, and only where a model is."""

from __future__ import annotations

import pytest

from llmux.fleet import Demand, homes


def demand(per_second: float, *, cost_s: float = 5.0) -> Demand:
    return Demand(per_second=per_second, latency_s=2.0, cost_s=cost_s, slots=8)


def hosts(count: int, models: str) -> dict[str, str]:
    return {f"h{number}": models for number in range(count)}


def test_as_many_hosts_as_models() -> None:
    found = homes({name: demand(1.0) for name in "abc"}, hosts(3, "abc"))
    assert sorted(found.values()) == ["h0", "h1", "h2"]


def test_a_busy_model_stays_alone() -> None:
    found = homes({"hot": demand(3.0), **{n: demand(0.1) for n in "abcd"}}, hosts(3, ["hot", *"abcd"]))  # type: ignore[arg-type]  # fmt: skip
    assert [home for name, home in found.items() if name != "hot"].count(found["hot"]) == 0


def test_a_model_is_only_where_it_is_configured() -> None:
    found = homes({"a": demand(1.0), "b": demand(2.0), "c": demand(1.0)}, {"h0": "a", "h1": "ab"})
    assert found == {"a": "h0", "b": "h1"}


def test_they_depend_on_nothing_but_rates_and_names() -> None:
    demands = {name: demand(rate) for name, rate in zip("abcdef", (5, 3, 2, 2, 1, 1), strict=True)}
    found = homes(demands, hosts(3, "abcdef"))
    again = dict(reversed(demands.items()))
    assert homes(again, dict(reversed(hosts(3, "abcdef").items()))) == found
    assert set(found.values()) == {"h0", "h1", "h2"}


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_little_more_of_everything_moves_nothing(factor: float) -> None:
    rates = dict(zip("abcdef", (3.0, 1.5, 1.0, 0.75, 0.6, 0.5), strict=True))
    before = homes({name: demand(rate) for name, rate in rates.items()}, hosts(3, "abcdef"))
    after = homes({name: demand(factor * rate) for name, rate in rates.items()}, hosts(3, "abcdef"))
    assert before == after


def test_those_that_are_cheap_to_switch_share() -> None:
    demands = {"a": demand(1.0, cost_s=60), "b": demand(1.0, cost_s=1), "c": demand(1.0, cost_s=1)}
    found = homes(demands, hosts(2, "abc"))
    assert found["b"] == found["c"] != found["a"]


def test_none() -> None:
    assert homes({}, hosts(2, "")) == {}
    assert homes({"a": demand(1.0)}, {}) == {}
