"""The minimal sets of models to evict."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from llmux.policy.evictions import EXACT, Evictions
from llmux.policy.room import Amounts, less, total

NAMES = "abcdefghijklmnop"


def test_nothing_is_evicted_where_nothing_is_missing() -> None:
    assert Evictions().minimal((0, -5), {"a": (1, 1)}) == ((),)


def test_there_is_no_set_where_all_are_not_enough() -> None:
    assert Evictions().minimal((3,), {"a": (1,), "b": (1,)}) == ()


def test_each_set_is_enough_and_none_holds_another() -> None:
    freed = {"chat": (60, 0), "embed": (4, 0), "small": (0, 20), "other": (20, 0)}
    assert set(Evictions().minimal((22, 0), freed)) == {("chat",), ("embed", "other")}
    assert set(Evictions().minimal((61, 20), freed)) == {
        ("chat", "embed", "small"),
        ("chat", "small", "other"),
    }


def test_what_frees_nothing_that_is_missing_stays() -> None:
    assert Evictions().minimal((10, 0), {"a": (0, 50), "b": (10, 0)}) == (("b",),)


def test_beyond_nine_models_one_set_is_chosen_in_their_order() -> None:
    freed = {name: (index + 1,) for index, name in enumerate(NAMES)}
    assert len(freed) > EXACT
    (chosen,) = Evictions().minimal((20,), dict(reversed(freed.items())))
    assert chosen == ("p", "o")
    (chosen,) = Evictions().minimal((20,), freed)
    # a to f make 21; nothing but `a` can stay after that.
    assert sorted(chosen) == ["b", "c", "d", "e", "f"]


def test_beyond_nine_models_one_that_needs_more_asleep_stays_if_another_leaves() -> None:
    freed = dict.fromkeys(NAMES, (0, 0)) | {"b": (10, -5), "f": (10, 0)}
    assert Evictions().minimal((10, 0), freed) == (("f",),)


@st.composite
def systems(draw: st.DrawFn, most: int = 7) -> tuple[Amounts, dict[str, Amounts]]:
    kinds = draw(st.integers(1, 3))
    amounts = st.tuples(*[st.integers(0, 9)] * kinds)
    freed = draw(st.dictionaries(st.sampled_from(NAMES), amounts, max_size=most))
    return draw(st.tuples(*[st.integers(-3, 20)] * kinds)), freed


@given(systems())
def test_exactly_the_minimal_sets_are_found(system: tuple[Amounts, dict[str, Amounts]]) -> None:
    missing, freed = system
    found = Evictions().minimal(missing, freed)
    enough = [
        frozenset(chosen)
        for count in range(len(freed) + 1)
        for chosen in combinations(freed, count)
        if max(less(missing, total((freed[name] for name in chosen), (0,) * len(missing)))) <= 0
    ]
    minimal = {each for each in enough if not any(other < each for other in enough)}
    assert {frozenset(each) for each in found} == minimal
    assert len(found) == len(minimal)


@given(systems(most=16))
def test_a_greedy_set_is_enough_and_minimal(system: tuple[Amounts, dict[str, Amounts]]) -> None:
    missing, freed = system
    found = Evictions().minimal(missing, freed)
    everything = less(missing, total(freed.values(), (0,) * len(missing)))
    assert bool(found) == (max(everything) <= 0)
    for chosen in found:
        still = less(missing, total((freed[name] for name in chosen), (0,) * len(missing)))
        assert max(still) <= 0
        for name in chosen:
            assert max(a + b for a, b in zip(still, freed[name], strict=True)) > 0, name
