"""What switches cost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.decision import SHARES, SITUATIONS, decision_in
from llmux.policy.costs import SwitchCosts


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


names = st.sampled_from("abcd")


@given(
    st.lists(
        st.one_of(names, st.tuples(st.one_of(st.none(), names), names, st.floats(0, 1000))),
        max_size=40,
    )
)
def test_the_means_are_those_of_the_pairs_that_are_known(
    events: list[str | tuple[str | None, str, float]],
) -> None:
    """An event is a switch, or a model that is forgotten."""
    costs, pairs = SwitchCosts(), dict[tuple[str | None, str], float]()
    for event in events:
        if isinstance(event, str):
            costs.forget(event)
            pairs = {pair: cost for pair, cost in pairs.items() if event not in pair}
        else:
            pairs[event[:2]] = costs.record(*event)
    for target in "abcd":
        into = [cost for (_, end), cost in pairs.items() if end == target]
        known = into or [*pairs.values()]
        mean = sum(known) / len(known) if known else 0.0
        assert costs.typical(target) == pytest.approx(mean, rel=1e-9, abs=1e-9)
        for source in (None, *"abcd"):
            assert costs.estimate(source, target) == pairs.get((source, target))
    assert sum(len(costs.estimates_from(source)) for source in (None, *"abcd")) == len(pairs)


def steps(call: Callable[[], object]) -> int:
    """How many bytecodes a call takes."""
    count = 0

    def trace(frame: Any, event: str, _argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    # CPython 3.12 reports opcodes only if a frame asks for them before tracing starts.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("share", SHARES)
def test_a_decision_takes_longer_with_more_models_but_not_with_more_pairs(
    situation: str, share: float
) -> None:
    few, many = (steps(decision_in(situation, models, share, waiting=240)) for models in (20, 80))
    assert 3 < many / few < 5  # of pairs there are 16 times as many
