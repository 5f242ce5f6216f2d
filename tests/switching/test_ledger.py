"""The ledger of shared memory: never overcommitted, and no switch waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmux.policy.evictions import Evictions
from llmux.policy.room import Memory, Needs, total
from llmux.switching.ledger import Ledger, Plan


def gpu(amount: int, **needs: int) -> Ledger:
    memory = Memory(("gpu",), (amount,), {name: Needs.of((need,)) for name, need in needs.items()})
    return Ledger(memory)


def wake(ledger: Ledger, *models: str) -> None:
    for model in models:
        ledger.wake(ledger.plan(model, ()))
        ledger.woke(model)


def put_to_sleep(ledger: Ledger, model: str) -> None:
    ledger.sleep(model)
    ledger.slept(model)


def test_memory_is_taken_when_the_wake_begins_and_promised_before() -> None:
    ledger = gpu(80, chat=60, embed=20)
    plan = ledger.plan("chat", ())
    assert (ledger.free, ledger.projected()) == ((80,), (20,))
    ledger.wake(plan)
    assert (ledger.free, ledger.projected()) == ((20,), (20,))
    assert ledger.missing("embed") == (0,)


def test_a_target_that_would_not_fit_is_refused() -> None:
    ledger = gpu(80, chat=60, code=60, embed=4)
    wake(ledger, "chat", "embed")
    with pytest.raises(ValueError, match="code does not fit even without embed"):
        ledger.plan("code", ("embed",))
    assert ledger.plans == []


def test_promised_memory_goes_to_nobody_else() -> None:
    ledger = gpu(80, a=40, b=40, big=80, c=20)
    wake(ledger, "a", "b")
    big = ledger.plan("big", ("a", "b"))
    with pytest.raises(ValueError, match="c does not fit"):
        ledger.plan("c", ())
    put_to_sleep(ledger, "a")
    assert ledger.free == (40,)
    with pytest.raises(ValueError, match="c does not fit"):
        ledger.plan("c", ())
    assert not ledger.may_wake(big)
    put_to_sleep(ledger, "b")
    assert ledger.may_wake(big)


def test_a_switch_that_fits_does_not_wait_for_the_drain_of_another() -> None:
    ledger = gpu(100, a=60, b=60, small=30)
    wake(ledger, "a")
    slow = ledger.plan("b", ("a",))  # 40 are free, and b takes 20 of them once a sleeps
    with pytest.raises(ValueError, match="small"):
        ledger.plan("small", ("a",))  # already part of the other switch
    small = ledger.plan("small", ())
    assert ledger.may_wake(small)
    assert not ledger.may_wake(slow)
    ledger.wake(small)
    put_to_sleep(ledger, "a")
    assert ledger.may_wake(slow)


def test_a_switch_that_evicts_others_instead_waits_for_no_other_switch() -> None:
    ledger = gpu(120, v=50, i=30, w=40, t=50, u=20)
    wake(ledger, "v", "i", "w")
    first = ledger.plan("t", ("v",))
    second = ledger.plan("u", ("w",))  # leaves 20, once w has drained
    with pytest.raises(ValueError, match="t would wait for other switches"):
        ledger.replan(first, ("i",))
    assert ledger.plans == [first, second]
    put_to_sleep(ledger, "w")
    ledger.wake(second)
    assert ledger.plans == [ledger.replan(first, ("i",))]


def test_a_switch_stays_possible_once_a_victim_of_it_is_stopped() -> None:
    needs = {"a": Needs.of((40, 0), (0, 50)), "b": Needs.of((40, 0)), "t": Needs.of((80, 40))}
    ledger = Ledger(Memory(("gpu", "ram"), (80, 50), needs))
    wake(ledger, "a", "b")
    plan = ledger.plan("t", ("a", "b"), ("a",))
    assert plan.stop == ("a",)
    ledger.stopped("a")
    assert ledger.is_possible(plan)
    assert ledger.projected() == (0, 10)


def test_a_later_switch_may_use_what_an_earlier_one_leaves_but_not_before() -> None:
    ledger = gpu(80, big=80, a=30, b=30)
    wake(ledger, "big")
    first, second = ledger.plan("a", ("big",)), ledger.plan("b", ())
    assert not ledger.may_wake(second)
    assert not ledger.may_drop(first)  # its eviction makes room for the second
    assert ledger.may_drop(second)
    put_to_sleep(ledger, "big")
    assert ledger.may_wake(first)
    assert ledger.may_wake(second)  # there is enough for both
    assert ledger.may_drop(first)


def test_a_later_switch_does_not_take_what_an_earlier_one_waits_for() -> None:
    ledger = gpu(100, a=40, b=60, c=40, d=20, e=40)
    wake(ledger, "a", "b")
    first = ledger.plan("c", ("a",))
    ledger.plan("d", ("b",))  # leaves 40
    third = ledger.plan("e", ())  # which the third takes
    put_to_sleep(ledger, "a")
    assert ledger.free == (40,)
    assert ledger.may_wake(first)
    assert not ledger.may_wake(third)


def test_memory_is_given_back_when_sleep_is_verified_and_not_before() -> None:
    ledger = gpu(80, a=80, b=80)
    wake(ledger, "a")
    plan = ledger.plan("b", ("a",))
    ledger.sleep("a")
    assert not ledger.may_wake(plan)
    ledger.slept("a")
    assert ledger.may_wake(plan)


def test_a_model_that_needs_ram_asleep_falls_asleep_only_where_there_is_some() -> None:
    needs = {"a": Needs.of((40, 0), (0, 60)), "b": Needs.of((40, 50))}
    ledger = Ledger(Memory(("gpu", "ram"), (80, 120), needs))  # a sleeps: 60 of 120 are taken
    wake(ledger, "a", "b")
    assert ledger.free == (0, 70)
    assert ledger.may_sleep("a")
    tight = Ledger(Memory(("gpu", "ram"), (80, 100), needs))
    wake(tight, "a")
    tight.wake(tight.plan("b", ()))
    tight.woke("b")
    assert tight.free == (0, 50)
    assert not tight.may_sleep("a")


def test_sleeping_models_that_need_more_than_there_is_are_refused() -> None:
    needs = {"a": Needs.of((1,), (6,)), "b": Needs.of((1,), (6,))}
    with pytest.raises(ValueError, match="sleeping models alone"):
        Ledger(Memory(("ram",), (10,), needs))


NAMES = ("a", "b", "c", "d", "e", "f")


class Ledgers(RuleBasedStateMachine):
    """Any order of plans, hooks and abandoned switches."""

    @initialize(
        amounts=st.tuples(st.integers(10, 20), st.integers(10, 20)),
        needs=st.lists(st.tuples(st.integers(1, 10), st.integers(0, 10)), min_size=6, max_size=6),
    )
    def begin(self, amounts: tuple[int, int], needs: list[tuple[int, int]]) -> None:
        of = dict(zip(NAMES, map(Needs.of, needs), strict=True))
        self.ledger = Ledger(Memory(("gpu0", "gpu1"), amounts, of))
        self.phases = dict.fromkeys(NAMES, "asleep")
        self.evictions = Evictions()

    def _is_moved(self, model: str) -> bool:
        return any(model in (plan.target, *plan.evict) for plan in self.ledger.plans)

    @rule(model=st.sampled_from(NAMES), draw=st.data())
    def plan(self, model: str, draw: st.DataObject) -> None:
        if self.phases[model] != "asleep" or self._is_moved(model):
            return
        freed = {
            name: self.ledger.freed(name)
            for name, phase in self.phases.items()
            if phase == "awake" and not self._is_moved(name)
        }
        if sets := self.evictions.minimal(self.ledger.missing(model), freed):
            self.ledger.plan(model, draw.draw(st.sampled_from(sets)))

    def _leaving(self) -> list[str]:
        return [v for p in self.ledger.plans for v in p.evict if self.phases[v] == "awake"]

    @precondition(lambda self: self._leaving())
    @rule(draw=st.data())
    def begin_sleep(self, draw: st.DataObject) -> None:
        model = draw.draw(st.sampled_from(self._leaving()))
        self.ledger.sleep(model)
        self.phases[model] = "sleeping"

    @rule(draw=st.data())
    def end_hook(self, draw: st.DataObject) -> None:
        running = [name for name, phase in self.phases.items() if phase in {"sleeping", "waking"}]
        if running:
            self._end_hook(draw.draw(st.sampled_from(running)))

    def _end_hook(self, model: str) -> None:
        if self.phases[model] == "sleeping":
            self.ledger.slept(model)
            self.phases[model] = "asleep"
        else:
            self.ledger.woke(model)
            self.phases[model] = "awake"

    def _may_wake(self) -> list[Plan]:
        return [
            plan
            for plan in self.ledger.plans
            if all(self.phases[v] == "asleep" for v in plan.evict) and self.ledger.may_wake(plan)
        ]

    @rule(draw=st.data())
    def begin_wake(self, draw: st.DataObject) -> None:
        if plans := self._may_wake():
            self._begin_wake(draw.draw(st.sampled_from(plans)))

    def _begin_wake(self, plan: Plan) -> None:
        self.ledger.wake(plan)
        self.phases[plan.target] = "waking"

    @rule(draw=st.data())
    def give_up(self, draw: st.DataObject) -> None:
        plans = [plan for plan in self.ledger.plans if self.ledger.may_drop(plan)]
        if plans:
            plan = draw.draw(st.sampled_from(plans))
            if not any(self.phases[v] == "sleeping" for v in plan.evict):
                self.ledger.drop(plan)

    @invariant()
    def never_overcommitted(self) -> None:
        memory = self.ledger.memory
        held = [
            memory.needs[name].asleep if phase == "asleep" else memory.needs[name].moving
            for name, phase in self.phases.items()
        ]
        used = total(held, (0,) * len(memory.amounts))
        assert all(map(int.__le__, used, memory.amounts)), (used, memory.amounts)
        assert min(self.ledger.projected()) >= 0

    @invariant()
    def the_first_switch_waits_for_its_own_evictions_only(self) -> None:
        for plan in self.ledger.plans[:1]:
            if all(self.phases[v] == "asleep" for v in plan.evict):
                assert self.ledger.may_wake(plan)

    def teardown(self) -> None:
        """Let everything that was begun end: each planned switch must come to its wake."""
        if not hasattr(self, "ledger"):
            return
        while self.ledger.plans:
            for name, phase in self.phases.items():
                if phase in {"sleeping", "waking"}:
                    self._end_hook(name)
            for name in self._leaving():
                self.ledger.sleep(name)
                self.phases[name] = "sleeping"
                self._end_hook(name)
            plans = self._may_wake()
            assert plans, f"deadlock: {self.ledger.plans}"
            self._begin_wake(plans[0])


TestLedgers = Ledgers.TestCase
