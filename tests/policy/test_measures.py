"""What is measured: rates, latencies, drains, absences, costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.policy.estimates import ARRIVALS, Measures, Rate
from llmux.policy.latencies import Latencies


def latencies(*notes: tuple[int, float]) -> Latencies:
    found = Latencies()
    for in_flight, seconds in notes:
        found.note(in_flight, seconds)
    return found


# ---- Latencies ----


def test_no_latency_is_known_at_first() -> None:
    assert Latencies().estimate(1) is None


def test_between_buckets_latency_is_interpolated_and_beyond_them_it_is_the_nearest() -> None:
    found = latencies((2, 10.0), (8, 40.0))
    assert [found.estimate(count) for count in (1, 2, 5, 8, 99)] == [10, 10, 25, 40, 40]


def test_a_bucket_is_a_power_of_two_and_keeps_the_mean_of_both_numbers() -> None:
    found = latencies((4, 10.0), (6, 20.0), (7, 30.0), (3, 1.0))
    # The means are 1 s at 3 requests, and 20 s at 17/3.
    seen = [found.estimate(count) for count in (3, 4, 5, 6)]
    assert seen == [1, pytest.approx(8.125), pytest.approx(15.25), pytest.approx(20)]


def test_the_first_ten_are_a_plain_mean_and_then_the_newest_weighs_a_tenth() -> None:
    found = latencies(*((1, float(number)) for number in range(10)))
    assert found.estimate(1) == pytest.approx(4.5)
    found.note(1, 104.5)
    assert found.estimate(1) == pytest.approx(14.5)
    found.note(1, 14.5)
    assert found.estimate(1) == pytest.approx(14.5)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 100)), min_size=1, max_size=40),
    st.integers(1, 400),
)
def test_an_estimate_lies_among_what_was_seen(notes: list[tuple[int, float]], count: int) -> None:
    estimate = latencies(*notes).estimate(count)
    assert estimate is not None
    seen = [seconds for _, seconds in notes]
    assert min(seen) - 1e-9 <= estimate <= max(seen) + 1e-9


# ---- Rates ----


def test_a_rate_needs_two_times_and_falls_while_nothing_happens() -> None:
    rate = Rate()
    assert rate.per_second(5) == 0
    rate.note(10)
    assert rate.per_second(10) == rate.per_second(99) == 0
    rate.note(12)
    assert rate.per_second(12) == 1
    assert rate.per_second(20) == pytest.approx(0.2)


def test_a_rate_looks_back_only_so_far() -> None:
    rate = Rate()
    rate.note(0)
    for number in range(ARRIVALS):
        rate.note(1000 + number / 4)
    assert rate.per_second(1004) == pytest.approx(4)


def test_a_rate_of_things_in_one_moment_is_a_number() -> None:
    rate = Rate()
    rate.note(5)
    rate.note(5)
    assert 0 < rate.per_second(5) < float("inf")


# ---- Measures ----


def test_nothing_is_known_at_first() -> None:
    measures = Measures()
    assert measures.cost_s("a", "b") == measures.cost_s(None, "b") == 0
    assert measures.drain_s("a") == 0
    assert measures.absence_s("a") is None
    assert measures.latency_s("a", 1) is None
    assert measures.arrivals_per_s("a", 5) == 0


def test_an_unseen_cost_is_the_mean_into_the_target_or_else_of_all() -> None:
    measures = Measures()
    measures.costs.record("a", "b", 10)
    assert measures.cost_s("a", "b") == 10
    measures.costs.record("c", "b", 20)
    measures.costs.record("b", "c", 60)
    assert measures.cost_s("a", "b") == 10
    assert measures.cost_s("d", "b") == measures.cost_s(None, "b") == 15
    assert measures.cost_s("a", "c") == 60
    assert measures.cost_s("b", "a") == 30
    assert repr(measures).startswith("<Measures <SwitchCosts {'b': {'a': 10")


def test_drains_are_smoothed_by_0_3() -> None:
    measures = Measures()
    measures.note_drained("a", 1, 10)
    assert measures.drain_s("a") == 10
    measures.note_drained("a", 1, 20)
    assert measures.drain_s("a") == pytest.approx(13)
    assert measures.drain_s("b") == 0


def test_the_longest_of_the_last_16_drains_of_any_model_is_remembered() -> None:
    measures = Measures()
    assert measures.longest_drain_s() == 0
    measures.note_drained("a", 1, 30)
    for _ in range(15):
        measures.note_drained("b", 1, 5)
    assert measures.longest_drain_s() == 30
    measures.note_drained("b", 1, 4)
    assert measures.longest_drain_s() == 5


def test_a_drain_ahead_is_twice_the_usual_for_as_many_but_no_longer_than_the_longest() -> None:
    measures = Measures()
    assert measures.drain_ahead_s("a", 1) == 0  # nothing is known
    measures.note_drained("a", 1, 5)
    measures.note_drained("a", 2, 10)
    measures.note_drained("b", 9, 30)
    assert [measures.drain_ahead_s("a", count) for count in (0, 1, 2, 3, 4)] == [0, 10, 20, 30, 30]
    assert measures.drain_ahead_s("c", 1) == 30


def test_an_absence_lasts_from_closing_to_opening() -> None:
    measures = Measures()
    measures.note_open("a", 5, None)  # the first time: it was not away
    assert measures.absence_s("a") is None
    measures.note_closed("a", 10)
    assert measures.absence_s("a") is None
    measures.note_open("a", 30, 12)
    measures.note_open("a", 99, 40)
    assert measures.absence_s("a") == 20
    measures.note_closed("a", 100)
    measures.note_open("a", 110, 101)
    assert measures.absence_s("a") == pytest.approx(17)


def test_each_model_has_its_own() -> None:
    measures = Measures()
    for now in (1, 2):
        measures.note_arrival("a", now)
    measures.note_served("a", 2, 3.0)
    assert measures.arrivals_per_s("a", 2) == 2
    assert measures.arrivals_per_s("b", 2) == 0
    assert measures.latency_s("a", 1) == 3
    assert measures.latency_s("b", 1) is None


def test_a_model_that_is_forgotten_was_never_seen() -> None:
    measures = Measures()
    for source, target in (("a", "b"), (None, "a"), ("b", "a"), ("c", "b")):
        measures.costs.record(source, target, 10)
    for name in "ab":
        measures.note_arrival(name, 1)
        measures.note_served(name, 1, 1)
        measures.note_drained(name, 1, 5)
        measures.note_closed(name, 1)
        measures.note_open(name, 2, 1)
        measures.note_closed(name, 3)
    for _ in range(2):
        measures.forget("a")
        known = repr(vars(measures))
        assert "'a'" not in known
        assert known.count("'b'") == 8  # once in each, and where a switch led to it in two
        assert measures.longest_drain_s() == 5  # of the group
