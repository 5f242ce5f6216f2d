"""What switches cost."""

from __future__ import annotations

import pytest

from llmux.costs import SwitchCosts


def test_the_first_observation_is_exact_and_later_ones_weigh_0_3() -> None:
    costs = SwitchCosts()
    assert costs.estimate("a", "b") is None
    assert costs.record("a", "b", 10) == 10
    assert costs.record("a", "b", 20) == pytest.approx(13)
    assert costs.estimate("a", "b") == pytest.approx(13)


def test_each_direction_and_cold_starts_stand_apart() -> None:
    costs = SwitchCosts()
    costs.record("a", "b", 10)
    costs.record("b", "a", 4)
    costs.record(None, "a", 60)
    costs.record("a", "c", 5)
    assert costs.estimates_from("a") == {"b": 10, "c": 5}
    assert costs.estimates_from("b") == {"a": 4}
    assert costs.estimates_from(None) == {"a": 60}
    assert costs.estimates_from("c") == {}
