"""Turns of models that share a resource, where only so many may be at work at once."""

from __future__ import annotations

import math

import pytest

from llmux.simulate.backends import Job
from llmux.switching.core import ModelState, Phase, Traits
from llmux.switching.lines import Line, Occupancy
from llmux.switching.turns import Turns

NOW = 100.0


class Group:
    """Models on two resources: a and b on x, c on both, d on y."""

    def __init__(self, most: float = 1, latency_s: float = 0.0) -> None:
        on_x, on_y = frozenset({"x"}), frozenset({"y"})
        touches = {"a": on_x, "b": on_x, "c": on_x | on_y, "d": on_y}
        self.models = {name: self._awake(name) for name in touches}
        self.turns = Turns(self.models.values(), touches, most, lambda _model: latency_s)

    @staticmethod
    def _awake(name: str) -> ModelState:
        line: Line[Job] = Line()
        model = ModelState(name, line, Occupancy(), Traits(max_in_flight=3))
        model.move_to(Phase.AWAKE, 0.0)
        return model

    def line(self, name: str, *arrivals: float) -> None:
        for at in arrivals:
            self.models[name].waiters.add(Job(name, at, 1.0))

    def work(self, name: str, count: int = 1, *, since: float = NOW - 10) -> None:
        self.turns.note_admitted(self.models[name], since)
        self.models[name].in_flight.in_use = count

    def may(self, name: str, arrived_at: float = NOW) -> bool:
        return self.turns.may_admit(self.models[name], arrived_at, NOW)

    def next(self) -> str | None:
        found = self.turns.next(NOW)
        return None if found is None else found.name


def test_without_a_cap_all_are_let_in() -> None:
    group = Group(math.inf)
    group.work("a")
    group.line("b", 50)
    assert not group.turns.are_limited
    assert group.may("a")
    assert group.may("b")


def test_as_many_as_the_cap_are_at_work_on_each_resource() -> None:
    group = Group(2)
    group.work("a")
    assert group.may("b")
    group.work("b")
    assert not group.may("c")
    assert group.may("a")
    assert group.may("d")  # it shares nothing with these two


def test_a_model_on_two_resources_needs_a_turn_on_both() -> None:
    group = Group()
    group.work("d")
    assert not group.may("c")
    assert group.may("a")


def test_the_oldest_request_has_the_next_turn() -> None:
    group = Group()
    group.line("a", 60)
    group.line("b", 50)
    assert group.next() == "b"
    group.line("c", 40)
    group.work("d")  # c has no turn there, and nobody takes that on x from it
    assert group.next() is None


def test_a_turn_serves_those_who_were_in_line_when_it_began() -> None:
    group = Group()
    group.line("a", 70, 95)
    group.line("b", 60)
    group.work("a", since=90)
    assert group.next() == "a"
    assert group.may("a", 90)
    assert not group.may("a", 91)


@pytest.mark.parametrize(("latency_s", "may"), [(0.0, False), (5.0, False), (6.0, True)])
def test_a_turn_goes_on_until_others_have_waited_for_one_latency(
    latency_s: float, may: bool
) -> None:
    group = Group(latency_s=latency_s)
    group.work("a", since=90)
    group.line("b", 95)
    assert group.may("a") is may


def test_a_model_at_work_admits_while_nobody_waits_for_its_resources() -> None:
    group = Group()
    group.work("a", since=90)
    group.work("d", since=90)
    assert group.may("a")
    group.line("d", 91)  # is at work, and waits for slots
    assert group.may("a")


def test_slots_limit_turns() -> None:
    group = Group()
    group.line("a", 50, 51)
    group.work("a", 3)
    assert group.next() is None


def test_models_that_sleep_or_drain_have_no_turn_but_are_at_work_while_they_drain() -> None:
    group = Group()
    group.work("a")
    group.models["a"].move_to(Phase.DRAINING, NOW)
    group.line("b", 50)
    assert group.next() is None
    group.models["a"].move_to(Phase.SLEEPING, NOW)
    assert group.next() == "b"
    group.models["b"].move_to(Phase.DRAINING, NOW)
    assert group.next() is None
    assert group.may("c")  # b waits for no turn any more
