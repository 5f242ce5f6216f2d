"""A switch serves those first who stood in line for a slot when it was decided."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from llmux.config import PolicyConfig
from llmux.policy import (
    POLICIES,
    Decision,
    GroupView,
    LineFirst,
    LookAgain,
    ModelView,
    Stay,
    SwitchTo,
)
from llmux.policy.estimates import Measures
from llmux.simulate import Setup, Slots, one_hot, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.outcome import mean
from llmux.switching.model import Traits
from tests.fakes import Rig


class Says:
    """A policy that says what it is told to."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def decide(self, snapshot: GroupView) -> Decision:
        return self.decision


def seen(now: float, *arrivals: float, freezes: bool = False) -> GroupView:
    """Model a is awake with two in flight, and those who came then wait for a slot."""
    oldest_arrival = min(arrivals, default=None)
    a = ModelView("a", 2, len(arrivals), oldest_arrival, has_slots=True, freezes=freezes)
    return GroupView(now, "a", 0.0, {"a": a, "b": ModelView("b", 0, 1, 5.0)})


def line_first(policy: Says, measures: Measures | None = None, **config: Any) -> LineFirst:
    return LineFirst(policy, PolicyConfig(**config), measures or Measures())


def test_a_switch_waits_for_those_who_stood_in_line_when_it_was_decided() -> None:
    go = SwitchTo("b")
    policy = line_first(Says(go))
    measures = seen(10).measures
    assert policy.decide(replace(seen(10, 8, 9), measures=measures)) == Stay()
    assert policy.decide(replace(seen(14, 9, 12), measures=measures)) == Stay()
    assert policy.decide(replace(seen(15, 10), measures=measures)) == Stay()  # in that instant
    assert policy.decide(replace(seen(16, 12), measures=measures)) == go


def test_a_switch_with_nobody_in_line_waits_for_nobody() -> None:
    assert line_first(Says(SwitchTo("b"))).decide(seen(10)) == SwitchTo("b")


def test_a_switch_to_the_model_that_is_awake_is_none() -> None:
    assert line_first(Says(SwitchTo("a"))).decide(seen(10, 9)) == Stay()


def test_requests_that_are_frozen_with_their_model_are_not_served_first() -> None:
    assert line_first(Says(SwitchTo("b"))).decide(seen(10, 9, freezes=True)) == SwitchTo("b")


def test_a_policy_is_asked_again_if_nobody_waits_for_its_choice_any_more() -> None:
    says = Says(SwitchTo("b"))
    policy, measures = line_first(says), seen(10).measures
    assert policy.decide(replace(seen(10, 9), measures=measures)) == Stay()
    says.decision = LookAgain(13)
    assert policy.decide(replace(seen(12, 9), measures=measures)) == Stay()  # not asked
    alone = replace(seen(12, 11), measures=measures)
    alone = replace(alone, models=alone.models | {"b": ModelView("b")})  # type: ignore[operator]
    assert policy.decide(alone) == LookAgain(13)
    says.decision = SwitchTo(
        "b"
    )  # a new decision: requests that arrived meanwhile are served first, too
    assert policy.decide(replace(seen(13, 11), measures=measures)) == Stay()
    assert policy.decide(replace(seen(14, 13.5), measures=measures)) == SwitchTo("b")


def test_what_is_decided_is_not_kept_for_a_later_stay() -> None:
    says = Says(SwitchTo("b"))
    policy, measures = line_first(says), seen(10).measures
    assert policy.decide(replace(seen(10, 9), measures=measures)) == Stay()
    says.decision = SwitchTo("a")  # an operator was faster: b has been awake since
    views = {"a": ModelView("a", 0, 1, 9.0), "b": ModelView("b", 1)}
    assert policy.decide(GroupView(12, "b", 11.0, views, measures)) == SwitchTo("a")


@pytest.mark.parametrize(
    ("config", "then"),
    [
        ({"drain_timeout_secs": 5}, LookAgain(15)),
        ({"drain_timeout_secs": 5, "on_drain_timeout": "wait"}, Stay()),
    ],
)
def test_the_line_is_served_for_as_long_as_a_drain_may_take(
    config: dict[str, Any], then: Decision
) -> None:
    policy, measures = line_first(Says(SwitchTo("b")), **config), seen(10).measures
    assert policy.decide(replace(seen(10, 9), measures=measures)) == then
    late = policy.decide(replace(seen(15, 9), measures=measures))
    assert late == (then if then == Stay() else SwitchTo("b"))


def test_a_drain_and_an_absence_begin_with_the_line() -> None:
    measures = Measures()
    policy = line_first(Says(SwitchTo("b")), measures)
    policy.decide(replace(seen(10, 8, 9), measures=measures))
    policy.decide(replace(seen(20, 12), measures=measures))
    measures.note_closed("a", 20)
    measures.note_drained("a", 2, 6)
    assert measures.drain_s("a") == 16
    assert measures.drain_ahead_s("a", 4) == 16  # of four requests: two were in line
    measures.note_open("a", 50, 12)
    assert measures.absence_s("a") == 40
    measures.note_closed("a", 60)
    measures.note_drained("a", 1, 16)
    assert measures.drain_s("a") == 16


def test_a_line_that_was_let_in_first_belongs_to_that_drain_alone() -> None:
    measures = Measures()
    measures.note_line_first("a", 10, 4)
    measures.note_closed("a", 20)
    measures.note_reopened("a")
    measures.note_closed("a", 30)
    assert measures.note_drained("a", 1, 5) == 5
    measures.note_line_first("a", 10, 4)
    measures.note_closed("a", 60)  # and drained of nobody
    measures.note_open("a", 70, 50)
    measures.note_closed("a", 80)
    assert measures.note_drained("a", 1, 5) == 5


# ---- Simulated ----


def traffic_of(shares: Sequence[float], load: float, limit: int | None, policy: str) -> Setup:
    return Setup(
        models=[str(index) for index in range(len(shares))],
        cost=lambda _source, _target: 10.0,
        server=lambda _model: Slots(8),
        policy=partial(POLICIES[policy], PolicyConfig(name=policy)),
        max_in_flight=limit,
    )


@pytest.mark.parametrize("load", [0.5, 0.75, 0.85])
@pytest.mark.parametrize("policy", ["adaptive", "exhaustive", "fifo", "time_slice", "cost_aware"])
def test_a_line_in_llmux_costs_no_more_than_one_inside_of_the_backend(
    policy: str, load: float
) -> None:
    """As many slots as the backend has: it is the same line, at another place."""
    for shares in (zipf(4), one_hot(4)):
        waits = []
        for limit in (None, 8):
            arrivals = poisson(shares, load, exponential(8.0), 2000, random.Random(1))
            outcome = simulate(traffic_of(shares, load, limit, policy), arrivals)
            waits.append(mean(outcome.waits()))
        assert waits[1] < 1.3 * waits[0]  # served in another order: by batches of eight
        if policy in ("fifo", "time_slice", "cost_aware"):  # know nothing of those in flight
            assert waits[1] == pytest.approx(waits[0])


# ---- In the switcher ----


async def test_requests_for_slots_are_served_in_order_of_arrival_across_models(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits={"a": Traits(max_in_flight=1)})
    order: list[str] = []

    async def ask(name: str) -> None:
        await rig.ask(name[0], 10)
        order.append(name)

    async with rig.running() as requests:
        for name in ("a1", "a2", "a3", "b1", "a4"):
            requests.start_soon(ask, name)
            await trio.sleep(1)
    assert order == ["a1", "a2", "a3", "b1", "a4"]
    assert rig.hooks.calls.count(("a", "wake")) == 2
    assert rig.switcher.measures.drain_s("a") == pytest.approx(27, abs=0.1)


async def test_an_abandoned_switch_ends_no_stay_and_is_no_absence(
    autojump_clock: MockClock,
) -> None:
    rig = Rig("abc", min_active_secs=60)
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "a", 200)
        with trio.move_on_after(100):  # the drain for b begins after 60 s
            await rig.ask("b")
        requests.start_soon(rig.ask, "a")
        await trio.sleep(1)
        model = rig.switcher.models["a"]
        assert model.is_awake
        assert model.awake_since == pytest.approx(0, abs=0.1)
        began = trio.current_time()
        await rig.ask("c")
        assert trio.current_time() - began == pytest.approx(99, abs=0.1)  # for the drain alone
    assert rig.switcher.measures.absence_s("a") is None
