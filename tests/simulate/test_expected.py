"""What is expected of requests: how long new ones take, how long those in flight, and the rates."""

from __future__ import annotations

import math
from itertools import islice
from statistics import mean

import pytest

from llmux.policy.estimates import Measures
from llmux.simulate.expected import ENOUGH, Works, expected_arrivals


def measured(*durations_s: float) -> Measures:
    measures = Measures()
    measures.note_served("a", 1, mean(durations_s))  # the first says nothing of how much they vary
    for seconds in durations_s:
        measures.note_served("a", 1, seconds)
    return measures


def test_until_enough_is_known_requests_take_as_long_as_usual() -> None:
    works = Works(measured(*[2.0, 6.0] * (ENOUGH // 2 - 1)), ["a", "unseen"])
    assert {works.new_s("a") for _ in range(20)} == {4.0}
    assert works.left_s("a", 2) == pytest.approx([4 * math.log(4 / 3), 4 * math.log(4)])
    assert (works.new_s("unseen"), works.left_s("unseen", 1)) == (0.0, [0.0])


def test_requests_that_all_take_equally_long_end_evenly_spaced() -> None:
    works = Works(measured(*[4.0] * 20), ["a"])
    assert works.new_s("a") == pytest.approx(4)
    assert works.left_s("a", 4) == pytest.approx([0.5, 1.5, 2.5, 3.5])
    assert works.left_s("a", 0) == []


def test_durations_vary_as_the_latest_did() -> None:
    works = Works(measured(*[1.0, 7.0] * 16), ["a"])
    drawn = [works.new_s("a") for _ in range(1000)]
    assert mean(drawn) == pytest.approx(works.usual_s("a"), rel=0.1)
    assert len({round(each, 1) for each in drawn}) > 1
    assert min(drawn) < 2 < 6 < max(drawn)
    # At a random moment, a long one is the likelier: E[x^2] / 2 E[x], that is 50 / 16.
    left = works.left_s("a", 1000)
    assert left == sorted(left)
    assert mean(left) == pytest.approx(50 / 16, rel=0.15)


def test_requests_arrive_at_the_present_rates() -> None:
    measures = measured(*[4.0] * 20)
    for index in range(16):
        measures.note_arrival("a", index / 2)
    measures.note_arrival("once", 8)
    works = Works(measures, ["a", "once"])
    found = list(islice(expected_arrivals(["a", "once"], measures, works, 8), 1000))
    assert {each.model for each in found} == {"a"}
    assert found == sorted(found)
    assert 1000 / (found[-1].at - 8) == pytest.approx(2, rel=0.15)
