"""The sums over ages, against the same sums done request by request."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.policy.ages import Ages

Request = tuple[float, float]  # arrival, weight

offsets = st.sampled_from([0.0, 1234.5, 1e6])
gaps = st.floats(0, 500)
weights = st.sampled_from([1.0, 1.0, 0.5, 5.0, 1000.0])
steps = st.lists(st.tuples(st.booleans(), gaps, weights, st.integers(0, 100)), max_size=60)


def played(
    offset: float, steps: list[tuple[bool, float, float, int]]
) -> tuple[Ages, list[Request], float]:
    """Ages after requests have come and gone, those still there, and the time."""
    ages = Ages()
    line: list[Request] = []
    now = offset
    for leaves, gap_s, weight, place in steps:
        now += gap_s
        if leaves and line:
            ages = ages.minus(*line.pop(place % len(line)))
        else:
            line.append((now, weight))
            ages = ages.plus(now, weight)
    return ages, line, now


@given(offset=offsets, steps=steps, ahead_s=st.floats(0, 1000))
def test_sums_are_those_over_the_requests(
    offset: float, steps: list[tuple[bool, float, float, int]], ahead_s: float
) -> None:
    ages, line, now = played(offset, steps)
    then = now + ahead_s
    scale = sum(weight for _, _, weight, _ in steps)  # what rounding is relative to
    length_s = then - offset
    assert ages.count == len(line)
    assert ages.weight == pytest.approx(sum(weight for _, weight in line))
    total = sum(weight * (then - at) for at, weight in line)
    squares = sum(weight * (then - at) ** 2 for at, weight in line)
    assert ages.total(then) == pytest.approx(total, abs=1e-9 + 1e-12 * scale * length_s)
    assert ages.squares(then) == pytest.approx(squares, abs=1e-9 + 1e-12 * scale * length_s**2)
    assert ages.total(then) >= 0
    assert ages.squares(then) >= 0


@given(offset=offsets, steps=steps, wanted=st.floats(1.0, 1e7))
def test_the_time_where_the_squares_reach_a_value(
    offset: float, steps: list[tuple[bool, float, float, int]], wanted: float
) -> None:
    ages, line, _ = played(offset, steps)
    if not line:
        assert ages.squares_reach(wanted) == math.inf
        return
    error = 1e-6 * sum(weight for _, _, weight, _ in steps)
    at = ages.squares_reach(wanted)
    if at == -math.inf:
        middle = sum(weight * arrived for arrived, weight in line) / ages.weight
        assert sum(weight * (middle - arrived) ** 2 for arrived, weight in line) >= wanted * 0.999
    else:
        squares = sum(weight * (at - arrived) ** 2 for arrived, weight in line)
        assert squares == pytest.approx(wanted, rel=1e-3, abs=error * 1e3)


def test_one_request() -> None:
    ages = Ages()
    ages = ages.plus(1e6)
    assert ages.total(1e6 + 3) == 3
    assert ages.squares(1e6 + 3) == 9
    assert ages.squares_reach(25) == 1e6 + 5
    assert ages.squares(1e6) == 0


def test_a_weight_counts_as_so_many_requests() -> None:
    heavy, many = Ages(), Ages()
    heavy = heavy.plus(10.0, 3.0)
    for _ in range(3):
        many = many.plus(10.0)
    assert heavy.weight == many.weight
    for question in (Ages.total, Ages.squares, Ages.squares_reach):
        assert question(heavy, 50.0) == pytest.approx(question(many, 50.0))


def test_squares_that_are_never_so_small() -> None:
    ages = Ages()
    ages = ages.plus(0.0)
    ages = ages.plus(10.0)
    assert ages.squares_reach(40.0) == -math.inf  # never below 50, at 5
    assert ages.squares_reach(50.0) == pytest.approx(5.0)


def test_nobody() -> None:
    ages = Ages()
    assert repr(ages) == "<Ages of 0>"
    assert (ages.count, ages.weight, ages.total(5), ages.squares(5)) == (0, 0, 0, 0)
    assert ages.squares_reach(1) == math.inf


def test_who_was_alone_leaves_no_rounding() -> None:
    ages = Ages()
    ages = ages.plus(0.1, 0.1)
    ages = ages.plus(0.2, 0.7)
    ages = ages.minus(0.1, 0.1)
    ages = ages.minus(0.2, 0.7)
    assert (ages.weight, ages.total(9), ages.squares(9)) == (0, 0, 0)
    ages = ages.plus(1e6)  # and counts from here
    assert ages.squares(1e6 + 1e-3) == pytest.approx(1e-6)


def test_sums_are_values() -> None:
    before = Ages().plus(10.0)
    before.plus(20.0)
    before.minus(10.0)
    assert before == Ages().plus(10.0)
    with pytest.raises(AttributeError):
        before.count = 2  # type: ignore[misc]
