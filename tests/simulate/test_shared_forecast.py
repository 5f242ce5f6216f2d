"""Forecasts where models share memory: running switches, and who has to leave."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from llmux.config import PolicyConfig
from llmux.policy import LineFirst, load_policy
from llmux.policy.estimates import Measures
from llmux.policy.placing import Placing
from llmux.policy.room import Memory, Needs
from llmux.simulate.backends import Job, Sharing
from llmux.simulate.forecast import MOST_EVENTS, scene_of
from llmux.simulate.hosts import Host
from llmux.simulate.shared_forecast import (
    Rules,
    SharedRollout,
    SharedScene,
    rollout_of,
    shared_forecast_s,
    shared_scene_of,
)
from llmux.switching.core import NO_TRAITS, ModelState, Phase, Traits
from llmux.switching.ledger import Ledger, Plan

NOW = 1000.0
SIZES = {"a": 60, "b": 60, "c": 20, "d": 10}
WAKE_S, SLEEP_S = 8.0, 2.0
HALF_LEFT_S = 4 * math.log(2)  # of a request of 4 s


def measured() -> Measures:
    measures = Measures()
    for name in SIZES:
        measures.note_woken(name, WAKE_S)
        measures.note_slept(name, SLEEP_S)
        measures.note_served(name, 1, 4.0)
    return measures


class Place:
    """A group with 80 of memory, of which a test moves the models."""

    def __init__(self, **traits: Traits) -> None:
        needs = {name: Needs.of((size,)) for name, size in SIZES.items()}
        self.ledger = Ledger(Memory(("gpu",), (80,), needs))
        self.measures = measured()
        self.rules = Rules(touches=dict.fromkeys(SIZES, frozenset({"gpu"})))
        self.models = {
            name: Host(index, name, Sharing(lambda _: 1.0), traits.get(name, NO_TRAITS))
            for index, name in enumerate(SIZES)
        }

    def __getitem__(self, name: str) -> Host:
        return self.models[name]

    def awake(self, name: str, in_flight: int = 0, *, since: float = NOW - 50) -> Host:
        self.ledger.wake(self.ledger.plan(name, ()))
        self.ledger.woke(name)
        self[name].move_to(Phase.AWAKE, since)
        self[name].in_flight.in_use = in_flight
        return self[name]

    def line(self, name: str, *ages: float) -> None:
        for age in ages:
            self[name].waiters.add(Job(name, NOW - age, 0))

    def switch(self, target: str, *evict: str, began: float = NOW) -> Plan:
        for name in evict:
            self[name].move_to(Phase.DRAINING, began)
        return self.ledger.plan(target, evict)

    def scene(self, policy: str = "fifo", now: float = NOW) -> SharedScene:
        inner = Placing(load_policy(PolicyConfig(name=policy)))
        asks = LineFirst(inner, PolicyConfig(), self.measures)
        return shared_scene_of(
            self.models.values(), self.ledger, asks, self.measures, now=now, rules=self.rules
        )

    def wait_s(self, name: str, policy: str = "fifo", now: float = NOW) -> float | None:
        return shared_forecast_s(self.scene(policy, now), name)


@pytest.fixture
def place() -> Place:
    return Place()


def test_a_model_that_is_awake(place: Place) -> None:
    place.awake("a", 3)
    assert place.wait_s("a") == 0


def test_a_model_that_fits_costs_its_wake(place: Place) -> None:
    place.awake("a", 3)
    assert place.wait_s("c") == WAKE_S


def test_others_wait_for_what_has_to_leave(place: Place) -> None:
    place.awake("a", 1)
    place.awake("c", 8)
    assert place.wait_s("b") == pytest.approx(HALF_LEFT_S + SLEEP_S + WAKE_S)


def test_an_idle_model_leaves_first(place: Place) -> None:
    place.awake("a", 5)
    place.awake("c")
    assert place.wait_s("d") == SLEEP_S + WAKE_S


def test_a_running_switch_goes_on(place: Place) -> None:
    place.awake("a", 1)
    place.switch("b", "a")
    assert place.wait_s("b") == pytest.approx(HALF_LEFT_S + SLEEP_S + WAKE_S)
    # c fits beside b already.
    assert place.wait_s("c") == WAKE_S


def test_what_is_left_of_each_hook(place: Place) -> None:
    place.awake("a")
    plan = place.switch("b", "a")
    place.ledger.sleep("a")
    place["a"].move_to(Phase.SLEEPING, NOW)
    assert place.wait_s("b", now=NOW + 1.5) == pytest.approx(0.5 + WAKE_S)
    assert place.wait_s("b", now=NOW + 9) == pytest.approx(0.2 + WAKE_S)  # late, so soon
    place.ledger.slept("a")
    place["a"].move_to(Phase.ASLEEP, NOW + 2)
    place.ledger.wake(plan)
    place["b"].move_to(Phase.WAKING, NOW + 2)
    assert place.wait_s("b", now=NOW + 5) == WAKE_S - 3
    # Its lane is taken until then.
    assert place.wait_s("c", now=NOW + 5) == WAKE_S - 3 + WAKE_S
    place.rules = Rules(touches=place.rules.touches, overlapping_hooks=True)
    assert place.wait_s("c", now=NOW + 5) == WAKE_S


def test_what_a_switch_was_promised_goes_to_nobody_else(place: Place) -> None:
    place.awake("a", 1)
    place.switch("b", "a")
    place.awake("c", 1)
    # d would fit into what a leaves, but that is b's: c has to leave, whose hook comes after b's.
    earlier_s = HALF_LEFT_S + SLEEP_S + WAKE_S
    assert place.wait_s("d") == pytest.approx(earlier_s + SLEEP_S + WAKE_S)


def test_a_line_for_slots_is_let_in_before_its_model_leaves() -> None:
    place = Place(a=Traits(max_in_flight=1))
    place.awake("a", 1)
    place.line("a", 3, 2)
    place.ledger.plan("b", ("a",))  # claimed, and awake still
    in_line_s = HALF_LEFT_S + 4 + 4
    assert place.wait_s("b") == pytest.approx(in_line_s + SLEEP_S + WAKE_S)
    # Who comes now comes too late.
    there_and_back_s = 2 * (SLEEP_S + WAKE_S)
    assert place.wait_s("a") == pytest.approx(in_line_s + there_and_back_s)


def test_a_model_that_falls_asleep_for_no_other_is_waited_for(place: Place) -> None:
    place.awake("a", 1)
    place["a"].move_to(Phase.DRAINING, NOW)
    assert place.wait_s("a") == pytest.approx(HALF_LEFT_S + SLEEP_S + WAKE_S)
    place["a"].in_flight.in_use = 0
    place["a"].move_to(Phase.SLEEPING, NOW)
    place.ledger.sleep("a")
    assert place.wait_s("a", now=NOW + 1) == SLEEP_S - 1 + WAKE_S


def test_frozen_requests_are_waited_for_by_nobody() -> None:
    place = Place(a=Traits(preserves_in_flight=True))
    place["a"].move_to(Phase.AWAKE, NOW - 60)
    place["a"].in_flight.in_use = 2
    place["a"].move_to(Phase.SLEEPING, NOW - 9)
    place["a"].move_to(Phase.ASLEEP, NOW - 8)
    place.awake("b")
    assert place.wait_s("a") == SLEEP_S + WAKE_S


def test_a_failed_model_is_not_tried_before_its_time(place: Place) -> None:
    place["c"].retry_at = NOW + 20
    assert place.wait_s("c") == pytest.approx(20 + WAKE_S)


def test_a_kept_model_makes_no_room(place: Place) -> None:
    place.awake("a")
    place.rules = Rules(keep={"a"})
    assert place.wait_s("b") is None


def test_a_turn_is_waited_for(place: Place) -> None:
    place.awake("a", 1)
    place.awake("c")
    place.rules = Rules(touches=place.rules.touches, busy=1)
    assert place.wait_s("c") == pytest.approx(HALF_LEFT_S)


def test_a_forecast_changes_nothing(place: Place) -> None:
    place.awake("a", 2)
    place.switch("b", "a")
    place.line("b", 4)

    def state() -> Any:
        lines = [(m.phase, m.waiters.count, m.in_flight.in_use) for m in place.models.values()]
        plans = [(plan.target, plan.evict) for plan in place.ledger.plans]
        return lines, plans, place.ledger.free, place.measures.longest_drain_s()

    before = state()
    assert place.wait_s("b", "adaptive")
    assert state() == before


def test_a_long_forecast_says_at_least_how_long(place: Place) -> None:
    for index in range(16):
        place.measures.note_arrival("a", NOW - 0.016 + index / 1000)
    place.awake("a", 100)
    rollout = SharedRollout(place.scene("exhaustive"), "b")
    slices = sum(1 for _ in rollout.slices())
    assert slices * 25 >= MOST_EVENTS
    assert rollout.wait_s is not None
    assert 0.3 < rollout.wait_s < 6


def test_both_kinds_of_groups_are_foretold(place: Place) -> None:
    place.awake("a")
    assert isinstance(rollout_of(place.scene(), "b"), SharedRollout)
    asks = LineFirst(load_policy(PolicyConfig(name="fifo")), PolicyConfig(), place.measures)
    models: Iterable[ModelState] = [place["a"], place["b"]]
    one = rollout_of(scene_of(models, asks, place.measures, now=NOW, target=None), "b")
    assert not isinstance(one, SharedRollout)
