"""The policies that put models in an order, and users' own, where several models are awake."""

from __future__ import annotations

from dataclasses import replace as with_fields
from typing import Any

import pytest
from msgspec.structs import replace

from llmux.config import PolicyConfig
from llmux.policy import Decision, GroupView, LookAgain, ModelView, Stay, SwitchTo, load_policy
from llmux.policy.base import RoomView, RunningSwitch, by_name
from llmux.policy.placing import NO_ROOM, Placing
from llmux.policy.room import Memory, Needs
from tests.policy.test_shared import NOW, awake, line, measured, view

ORDERED = ["fifo", "exhaustive", "cost_aware", "time_slice"]


def ask(policy: str, shown: GroupView, **config: Any) -> Decision:
    return load_policy(PolicyConfig(name=policy, **config)).decide(shown)


@pytest.mark.parametrize("policy", ORDERED)
def test_a_model_that_fits_is_woken_at_once_beside_busy_ones(policy: str) -> None:
    busy = awake("chat", 8, since=NOW - 1)
    decision = ask(policy, view(busy, line("embed", NOW)), min_active_secs=60)
    assert decision == SwitchTo("embed", "its oldest request waits 0.0 s", "fits")


@pytest.mark.parametrize("policy", ORDERED)
def test_with_nothing_awake_the_oldest_request_decides(policy: str) -> None:
    lines = line("chat", NOW - 5), line("code", NOW - 3, NOW - 2)
    decision = ask(policy, view(*lines))
    assert decision == SwitchTo("chat", "its oldest request waits 5.0 s", "nothing was awake")


@pytest.mark.parametrize("policy", ORDERED)
def test_an_idle_model_leaves_before_a_busy_one(policy: str) -> None:
    measures = measured({"code": 0.5, "vision": 0.001})
    shown = [awake("code"), awake("vision", 4), line("embed", NOW - 20)]
    decision = ask(policy, view(*shown, gpu=70, measures=measures))
    assert isinstance(decision, SwitchTo)
    assert (decision.model, decision.evict) == ("embed", ("code",))


@pytest.mark.parametrize("policy", ORDERED)
def test_no_model_that_is_kept_or_moves_is_evicted(policy: str) -> None:
    kept, moving = (
        replace(awake("code"), is_kept=True),
        replace(awake("vision"), is_moving=True),
    )
    decision = ask(policy, view(kept, moving, line("embed", NOW - 999), gpu=70))
    assert decision == Stay()


@pytest.mark.parametrize("policy", ORDERED)
def test_a_failed_model_is_tried_when_it_is_due(policy: str) -> None:
    failed = replace(line("embed", NOW - 9), retry_at=NOW + 5)
    assert ask(policy, view(awake("chat"), failed)) == LookAgain(NOW + 5)


def test_fifo_evicts_busy_models_for_the_oldest_request() -> None:
    shown = awake("code", 8), awake("vision", 2), line("chat", NOW - 9), line("rerank", NOW - 8)
    decision = ask("fifo", view(*shown))
    assert isinstance(decision, SwitchTo)
    assert (decision.model, decision.rule) == ("chat", "oldest first")
    assert set(decision.evict) == {"code", "vision"}


def test_fifo_waits_for_each_model_s_shortest_stay() -> None:
    shown = awake("code", since=NOW - 5), awake("vision", since=NOW - 50), line("chat", NOW - 9)
    assert ask("fifo", view(*shown), min_active_secs=20) == LookAgain(NOW + 15)


@pytest.mark.parametrize(("gpu", "may_start"), [(93, False), (97, True)])
def test_nobody_takes_memory_that_an_older_request_is_about_to_get(
    gpu: int, may_start: bool
) -> None:
    # chat waits for code, whose stay is not over: of 60 it lacks 37 of 93, and gains 40. embed fits.
    kept = replace(awake("vision"), is_kept=True)
    shown = view(
        awake("code", since=NOW - 5), kept, line("chat", NOW - 9), line("embed", NOW), gpu=gpu
    )
    decision = ask("fifo", shown, min_active_secs=20)
    assert isinstance(decision, SwitchTo) is may_start
    if not may_start:
        assert decision == LookAgain(NOW + 15)


@pytest.mark.parametrize("policy", ORDERED)
def test_while_models_move_nobody_overtakes_an_overdue_request_that_has_no_set(policy: str) -> None:
    running = RunningSwitch("code", ("vision",), ("vision",))
    moving = [ModelView("vision", 3, is_moving=True), replace(line("code", 900.0), is_moving=True)]
    # 4 are free; chat would need those that move.
    shown = [*moving, line("chat", NOW - 400), line("embed", NOW)]
    assert ask(policy, view(*shown, gpu=44, switches=(running,), free=4)) == Stay()
    in_time = [*moving, line("chat", NOW - 200), line("embed", NOW)]
    decision = ask(policy, view(*in_time, gpu=44, switches=(running,), free=4))
    # To fifo, an older request always goes first.
    assert isinstance(decision, SwitchTo) is (policy != "fifo")


def test_exhaustive_leaves_models_once_they_have_no_work_or_a_request_is_overdue() -> None:
    busy, idle = awake("code", 1), awake("vision")
    assert ask("exhaustive", view(busy, idle, line("chat", NOW - 10))) == LookAgain(NOW + 290)
    decision = ask("exhaustive", view(busy, idle, line("chat", NOW - 300)))
    assert isinstance(decision, SwitchTo)
    assert (decision.model, decision.rule) == ("chat", "longest wait")
    # rerank needs only the one that is idle.
    decision = ask("exhaustive", view(busy, idle, line("rerank", NOW - 10), gpu=70))
    assert isinstance(decision, SwitchTo)
    assert (decision.rule, decision.evict) == ("no work left", ("vision",))


def test_exhaustive_counts_a_line_for_slots_as_work() -> None:
    served = replace(awake("code", 4), has_slots=True)
    shown = view(served, line("chat", NOW - 10), gpu=70)
    assert isinstance(ask("exhaustive", shown), SwitchTo)
    has_line = replace(served, queued=1, oldest_arrival=NOW - 1)
    assert isinstance(ask("exhaustive", view(has_line, line("chat", NOW - 10), gpu=70)), LookAgain)


def test_time_slice_takes_the_longest_line() -> None:
    lines = line("code", NOW - 9), line("vision", NOW - 5, NOW - 4)
    decision = ask("time_slice", view(awake("chat"), *lines))
    assert isinstance(decision, SwitchTo)
    assert (decision.model, decision.rule) == ("vision", "longest line")
    overdue = line("code", NOW - 300), line("vision", NOW - 5, NOW - 4)
    decision = ask("time_slice", view(awake("chat", 1), *overdue))
    assert isinstance(decision, SwitchTo)
    assert (decision.model, decision.rule) == ("code", "longest wait")


def test_cost_aware_serves_for_as_long_as_the_switch_costs_and_gathers() -> None:
    # A switch takes 10 s, which five requests are worth; or the first waits for 2 s.
    busy = awake("chat", 4, since=NOW - 20)
    one = line("code", NOW - 1)
    assert ask("cost_aware", view(busy, one)) == LookAgain(NOW + 1)
    five = line("code", *(NOW - 1 for _ in range(5)))
    decision = ask("cost_aware", view(busy, five))
    assert isinstance(decision, SwitchTo)
    assert (decision.rule, decision.evict) == ("worth it", ("chat",))
    fresh = awake("chat", 4, since=NOW - 4)
    assert ask("cost_aware", view(fresh, five)) == LookAgain(NOW + 6)


# ---- Policies that name no evictions ----


class Says:
    """Gives one answer."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def decide(self, _view: GroupView) -> Decision:
        return self.decision


def placed(decision: Decision, shown: GroupView) -> Decision:
    return Placing(Says(decision)).decide(shown)


def test_evictions_are_added_to_a_decision_without_any() -> None:
    shown = view(awake("code"), awake("vision", 4), line("embed", NOW - 20), gpu=70)
    chosen = SwitchTo("embed", "mine", "own")
    assert placed(chosen, shown) == with_fields(chosen, evict=("code",))
    named = SwitchTo("embed", "mine", "own", ("vision",))
    assert placed(named, shown) is named
    assert placed(Stay("mine"), shown) == Stay("mine")


def test_a_switch_to_a_model_that_fits_is_left_alone() -> None:
    assert placed(SwitchTo("embed"), view(awake("code"))) == SwitchTo("embed")


def test_a_switch_that_no_set_makes_room_for_is_left_out() -> None:
    kept = replace(awake("code"), is_kept=True)
    decision = placed(SwitchTo("chat"), view(kept))
    assert isinstance(decision, Stay)
    assert decision.why == NO_ROOM


def test_a_switch_to_a_model_that_is_awake_or_on_its_way_is_left_out() -> None:
    assert placed(SwitchTo("code"), view(awake("code"))) == Stay()
    moving = replace(line("chat", NOW), is_moving=True)
    running = RunningSwitch("chat", ("code",), ("code",), may_change=True)
    draining = ModelView("code", 2, is_moving=True)
    shown = view(moving, draining, switches=(running,), free=20)
    assert placed(SwitchTo("chat"), shown) == Stay()
    # Without code, 20 are free behind the switch; with 40 it may stay.
    shown = view(moving, draining, switches=(running,), free=40)
    assert placed(SwitchTo("chat"), shown) == SwitchTo("chat")


def test_where_one_model_is_awake_decisions_pass_unchanged() -> None:
    shown = replace(view(awake("code"), line("chat", NOW)), room=None)
    decision = SwitchTo("chat")
    assert placed(decision, shown) is decision


def test_beyond_nine_models_idle_ones_are_tried_by_themselves() -> None:
    names = [f"m{index}" for index in range(12)]
    memory = Memory(("gpu",), (110,), {name: Needs.of((10,)) for name in names})
    views = [awake(name, 0 if name == "m7" else 2) for name in names[:11]] + [line("m11", NOW - 9)]
    shown = GroupView(NOW, None, None, by_name(views), measured().estimates, RoomView(memory, (0,)))
    decision = ask("exhaustive", shown)
    assert isinstance(decision, SwitchTo)
    assert decision.evict == ("m7",)
