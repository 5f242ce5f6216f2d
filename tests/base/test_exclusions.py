"""Listed sets as limits: exactly the subsets of the listed sets are allowed."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.base.exclusions import Limit, limits_of, maximal

SETS = st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, unique=True), max_size=7)


def sets(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(map(tuple, text.split()))


@pytest.mark.parametrize(
    ("listed", "limits"),
    [
        ("abc", []),
        ("a b c", [("abc", 1)]),
        ("ab bc", [("ac", 1)]),
        ("ab bc ca", [("abc", 2)]),
        ("ab ac ad bc bd cd", [("abcd", 2)]),
        ("ae be ce de", [("abcd", 1)]),
        ("ac ad bc bd", [("ab", 1), ("cd", 1)]),
        ("ab cd", [("ac", 1), ("ad", 1), ("bc", 1), ("bd", 1)]),
        ("abx", []),
    ],
)
def test_limits(listed: str, limits: list[tuple[str, int]]) -> None:
    assert [*limits_of(sets(listed))] == [Limit(tuple(names), most) for names, most in limits]


def test_any_three_of_many() -> None:
    names = tuple("abcdefghijklmnop")
    assert limits_of(tuple(combinations(names, 3))) == (Limit(names, 3),)


@given(SETS)
def test_exactly_the_subsets_of_the_listed_sets_are_allowed(listed: list[list[str]]) -> None:
    limits = limits_of(tuple(map(tuple, listed)))
    names = sorted({name for each in listed for name in each})
    for size in range(1, len(names) + 1):
        for chosen in map(set, combinations(names, size)):
            is_listed = any(chosen <= {*each} for each in listed)
            assert is_listed == all(len(chosen & {*e.names}) <= e.most for e in limits), chosen


@given(SETS)
def test_maximal_sets(listed: list[list[str]]) -> None:
    found = maximal(listed)
    assert all(any({*each} <= large for large in found) for each in listed)
    assert not any(one <= other for one in found for other in found if one is not other)


def test_sets_that_would_need_too_many_limits_are_refused() -> None:
    # Of each of 12 pairs, one at least is missing: 2^12 least sets have one of each pair.
    pairs = [(f"a{i}", f"b{i}") for i in range(12)]
    everything = {name for pair in pairs for name in pair}
    listed = tuple(tuple(sorted(everything - {*pair})) for pair in pairs)
    with pytest.raises(ValueError, match="overlap in too many ways"):
        limits_of(listed)
    with pytest.raises(ValueError, match="overlap in too many ways"):  # 81 pairs are apart
        limits_of(sets("abcdefghi jklmnopqr"))
    with pytest.raises(ValueError, match="lists more than 1,000 sets"):
        limits_of((("a",),) * 1001)
