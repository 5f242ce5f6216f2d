"""The switch, step by step, on a virtual clock and an in-memory GPU."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import (
    MockClock,
    assert_checkpoints,
    assert_no_checkpoints,
    wait_all_tasks_blocked,
)

from llmux.config import PolicyConfig
from llmux.errors import (
    HookError,
    ManualMode,
    ModelNotFound,
    QueueFull,
    ShuttingDown,
    StreamCut,
    SwitcherDied,
    SwitchTimeout,
)
from llmux.policy import Decision, LookAgain, Snapshot, Stay, SwitchTo
from llmux.policy.base import LEAST_STEP_S
from llmux.switching.model import TRANSITIONS, Phase, Traits
from tests.fakes import FakeHooks, Rig


async def test_first_request_wakes_its_model(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a")
    assert rig.hooks.calls == [("a", "wake")]


async def test_a_request_for_the_awake_model_waits_for_nothing(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running():
        await rig.ask("a")
        with assert_no_checkpoints():
            serving = rig.switcher.serving("a")
            await serving.__aenter__()
        assert not serving.queued
        assert rig.switcher.models["a"].in_flight.count == 1
        with assert_no_checkpoints():
            await serving.__aexit__(None, None, None)


async def test_waiting_is_always_a_checkpoint(autojump_clock: MockClock) -> None:
    rig = Rig()
    model = rig.switcher.models["a"]
    with assert_checkpoints():
        await model.waiters.grant()
    with assert_checkpoints():
        await model.in_flight.wait_empty()


async def test_a_switch_drains_sleeps_and_wakes(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "sleep"): 2, ("b", "wake"): 3, ("a", "wake"): 1}))
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "a", 10)
        await wait_all_tasks_blocked()
        assert await rig.ask("b") == pytest.approx(10 + 2 + 3)
    assert rig.hooks.calls == [("a", "wake"), ("a", "sleep"), ("b", "wake")]
    assert rig.switcher.measures.costs.estimate(None, "a") == pytest.approx(1)
    assert rig.switcher.measures.costs.estimate("a", "b") == pytest.approx(5)  # without the drain
    assert rig.counter("llmux_switch_total", **{"from": "a", "to": "b", "result": "success"}) == 1
    assert rig.counter("llmux_switch_duration_seconds_sum", **{"from": "a", "to": "b"}) == 15
    assert rig.counter("llmux_switch_drain_duration_seconds_sum", **{"from": "a", "to": "b"}) == 10
    assert rig.counter("llmux_switch_cost_ema_seconds", **{"from": "idle", "to": "a"}) == 1
    assert rig.counter("llmux_model_active_duration_seconds_count", model="a") == 1


async def test_draining_admits_nobody(autojump_clock: MockClock) -> None:
    """Planted bug: admit while draining."""
    rig = Rig()
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "a", 10)
        await wait_all_tasks_blocked()
        requests.start_soon(rig.ask, "b", 1)
        await wait_all_tasks_blocked()
        assert rig.switcher.models["a"].phase is Phase.DRAINING
        assert rig.switcher.state == "switching"
        # Comes during the drain: must wait for b's turn to end, not slip in.
        assert await rig.ask("a") >= 11


async def test_waiters_of_one_model_share_one_switch(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "wake"): 5}))
    async with rig.running() as requests:
        await rig.ask("a")
        for _ in range(20):
            requests.start_soon(rig.ask, "b", 1)
    assert rig.hooks.calls.count(("b", "wake")) == 1
    assert rig.hooks.served == {"a": 1, "b": 20}


async def test_the_oldest_request_decides(autojump_clock: MockClock) -> None:
    rig = Rig("abc", hooks=FakeHooks(seconds={("a", "wake"): 5}))
    async with rig.running() as requests:
        for model in "acb":
            requests.start_soon(rig.ask, model)
            await trio.sleep(1)
    assert [model for model, hook in rig.hooks.calls if hook == "wake"] == ["a", "c", "b"]


async def test_min_active_secs_holds_a_switch_back_and_admits(autojump_clock: MockClock) -> None:
    rig = Rig(min_active_secs=30)
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "b")
        await trio.sleep(29)
        assert await rig.ask("a") == 0
    assert trio.current_time() == pytest.approx(30)


async def test_without_draining_the_sleep_hook_does_not_wait(autojump_clock: MockClock) -> None:
    rig = Rig(drain_before_switch=False)
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "a", 100)
        await wait_all_tasks_blocked()
        assert await rig.ask("b") < 1


async def test_a_drain_over_its_time_cuts_the_streams(autojump_clock: MockClock) -> None:
    rig = Rig(drain_timeout_secs=7)
    cut: list[float] = []

    async def long_stream() -> None:
        with pytest.raises(StreamCut):
            await rig.ask("a", math.inf)
        cut.append(trio.current_time())

    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(long_stream)
        await wait_all_tasks_blocked()
        assert await rig.ask("b") == pytest.approx(7)
    assert cut == [pytest.approx(7)]


async def test_a_slow_drain_is_logged(autojump_clock: MockClock) -> None:
    rig = Rig()
    with capture_logs() as lines:
        async with rig.running() as requests:
            await rig.ask("a")
            requests.start_soon(rig.ask, "a", 130)
            await wait_all_tasks_blocked()
            await rig.ask("b")
    slow = [line for line in lines if line["event"] == "drain_slow"]
    assert [line["oldest_secs"] for line in slow] == [60, 120]
    assert {line["model"] for line in slow} == {"a"}


async def test_log_events(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("a", "sleep"): 1, ("c", "wake"): 1}), models="abc")
    with capture_logs() as lines:
        async with rig.running():
            await rig.ask("a")
            await rig.ask("b")
            with pytest.raises(HookError):
                await rig.ask("c")
    events = [(line["event"], line.get("model")) for line in lines if line["event"] != "phase"]
    assert events == [
        ("switch_started", None),
        ("model_activated", "a"),
        ("switch_started", None),
        ("sleep_hook_failed", "a"),
        ("model_activated", "b"),
        ("switch_started", None),
        ("switch_failed", "c"),
    ]
    assert lines[-1].get("from", "b") == "b"


# ---- Failures ----


async def test_a_failed_wake_fails_its_waiters_and_nobody_else(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(seconds={("b", "wake"): 5}, failing={("b", "wake"): 1})
    rig = Rig("abc", hooks=hooks)
    errors: list[HookError] = []

    async def ask_in_vain() -> None:
        with pytest.raises(HookError) as caught:
            await rig.ask("b")
        errors.append(caught.value)

    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(ask_in_vain)
        requests.start_soon(ask_in_vain)
        await wait_all_tasks_blocked()
        assert await rig.ask("c") == pytest.approx(5)
    assert [error.details for error in errors] == [
        "Hook failed for b: wake hook exited with 1: no such GPU"
    ] * 2
    assert hooks.calls == [
        ("a", "wake"), ("a", "sleep"), ("b", "wake"), ("b", "sleep"), ("c", "wake"),
    ]  # fmt: skip
    assert rig.counter("llmux_switch_total", **{"from": "a", "to": "b", "result": "failure"}) == 1
    assert rig.switcher.measures.costs.estimate("a", "b") is None


async def test_a_failed_wake_leaves_the_group_idle(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("a", "wake"): 1}))
    async with rig.running():
        with pytest.raises(HookError):
            await rig.ask("a")
        await wait_all_tasks_blocked()
        assert rig.switcher.state == "idle"
        assert rig.switcher.active is None
        assert rig.switcher.models["a"].phase is Phase.FAILED


async def test_a_failed_model_is_retried_after_2_s_doubling_to_60(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(failing={("a", "wake"): 7}), wake_failures=None)
    tries: list[float] = []
    async with rig.running():
        for _ in range(7):
            with pytest.raises(HookError):
                await rig.ask("a")
            tries.append(trio.current_time())
        await rig.ask("a")
        tries.append(trio.current_time())
        waits = [after - before for before, after in pairwise(tries)]
        assert waits == pytest.approx([2, 4, 8, 16, 32, 60, 60])
        assert rig.switcher.models["a"].failures == 0


async def test_a_failed_model_delays_only_itself(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("a", "wake"): 5}), wake_failures=None)
    async with rig.running() as requests:
        for _ in range(4):
            with pytest.raises(HookError):
                await rig.ask("a")

        async def ask_a() -> None:
            with pytest.raises(HookError):
                await rig.ask("a")

        requests.start_soon(ask_a)
        await wait_all_tasks_blocked()
        assert await rig.ask("b") < 1


async def test_verify_asleep_retries_then_fails_the_switch(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(verifiers={"a"}, failing={("a", "verify_asleep"): 2})
    rig = Rig(hooks=hooks)
    async with rig.running():
        await rig.ask("a")
        with pytest.raises(HookError, match="verify_asleep"):
            await rig.ask("b")
        assert ("b", "wake") not in hooks.calls  # never into a full GPU
        assert rig.switcher.models["a"].holds_gpu
        await rig.ask("b")  # a is put to sleep again first
    assert hooks.calls == [
        ("a", "wake"),
        *[("a", "sleep"), ("a", "verify_asleep")] * 3,
        ("b", "wake"),
    ]


async def test_verify_asleep_failing_once_is_no_failure(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(verifiers={"a"}, failing={("a", "verify_asleep"): 1})
    rig = Rig(hooks=hooks)
    async with rig.running():
        await rig.ask("a")
        await rig.ask("b")


async def test_a_request_times_out_in_line(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 60}), request_timeout_secs=10)
    with capture_logs() as lines:
        async with rig.running():
            with pytest.raises(SwitchTimeout):
                await rig.ask("a")
            assert trio.current_time() == pytest.approx(10)
            rig.assert_empty()
    assert {
        "event": "request_timeout",
        "model": "a",
        "timeout_secs": 10,
        "log_level": "warning",
    } in (lines)


async def test_the_timeout_is_for_waiting_only(autojump_clock: MockClock) -> None:
    rig = Rig(request_timeout_secs=10)
    async with rig.running():
        await rig.ask("a", 100)


async def test_a_full_queue_refuses(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 5}), queued_per_model=2)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a")
        requests.start_soon(rig.ask, "a")
        await wait_all_tasks_blocked()
        with pytest.raises(QueueFull) as caught:
            await rig.ask("a")
        assert caught.value.retry_after_s == 1


# ---- Operators ----


async def test_a_forced_switch_needs_nobody_waiting_and_no_cooldown(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(min_active_secs=1000)
    async with rig.running():
        await rig.switcher.force_switch("a")
        await rig.switcher.force_switch("b")
        assert rig.switcher.active is rig.switcher.models["b"]
        await rig.switcher.force_switch("b")
    assert trio.current_time() < 1
    assert rig.hooks.calls == [("a", "wake"), ("a", "sleep"), ("b", "wake")]


async def test_a_forced_switch_reports_its_error(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 1}))
    async with rig.running():
        with pytest.raises(HookError):
            await rig.switcher.force_switch("b")
        with pytest.raises(ModelNotFound):
            await rig.switcher.force_switch("nope")
        await rig.switcher.force_switch("b")  # waits for no backoff either
    assert trio.current_time() < 1


async def test_manual_mode_refuses_and_keeps_serving_the_active_model(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.running():
        await rig.ask("a")
        rig.switcher.set_mode("manual")
        assert await rig.ask("a") == 0
        with pytest.raises(ManualMode, match=r"model b not available \(active: a\)"):
            await rig.ask("b")
        await rig.switcher.force_switch("b")
        await rig.ask("b")
        rig.switcher.set_mode("auto")
        await rig.ask("a")


async def test_entering_manual_mode_fails_those_who_wait(autojump_clock: MockClock) -> None:
    rig = Rig(min_active_secs=1000)
    async with rig.running() as requests:
        await rig.ask("a")

        async def ask_b() -> None:
            with pytest.raises(ManualMode):
                await rig.ask("b")

        requests.start_soon(ask_b)
        await wait_all_tasks_blocked()
        rig.switcher.set_mode("manual")
        await wait_all_tasks_blocked()
        rig.assert_empty()


# ---- Ends ----


async def test_stopping_refuses_and_lets_the_running_switch_end(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 5}))

    async def ask_in_vain() -> None:
        with pytest.raises(ShuttingDown):
            await rig.ask("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.switcher.run)
        nursery.start_soon(ask_in_vain)
        await wait_all_tasks_blocked()
        rig.switcher.stop()
        with pytest.raises(ShuttingDown):
            await rig.ask("a")
        with pytest.raises(ShuttingDown):
            await rig.switcher.force_switch("a")
    assert rig.switcher.active is rig.switcher.models["a"]
    assert not rig.switcher.has_died


async def test_a_cancelled_switch_leaves_nobody_waiting(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): math.inf}))
    ends: list[str] = []

    async def ask(what: Any) -> None:
        with pytest.raises(ShuttingDown):
            await what("a")
        ends.append("shutting down")

    async with trio.open_nursery() as nursery, trio.open_nursery() as life:
        life.start_soon(rig.switcher.run)
        nursery.start_soon(ask, rig.ask)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, rig.switcher.force_switch)
        await wait_all_tasks_blocked()
        life.cancel_scope.cancel()
    assert ends == ["shutting down"] * 2
    assert not rig.switcher.has_died


async def test_a_dead_switcher_says_so_and_leaves_nobody_waiting(
    autojump_clock: MockClock,
) -> None:
    class BrokenPolicy:
        def __init__(self, config: PolicyConfig) -> None:
            pass

        def decide(self, snapshot: Snapshot) -> Decision:
            if not snapshot.models["a"].queued:
                return Stay()
            raise ZeroDivisionError

    rig = Rig(policy=BrokenPolicy)

    async def ask_in_vain() -> None:
        with pytest.raises(SwitcherDied):
            await rig.ask("a")

    async with trio.open_nursery() as outside:
        outside.start_soon(ask_in_vain)
        with pytest.RaisesGroup(ZeroDivisionError):
            await rig.switcher.run()
    assert rig.switcher.has_died
    with pytest.raises(SwitcherDied):
        await rig.ask("a")


async def test_a_policy_can_ask_to_be_asked_again(autojump_clock: MockClock) -> None:
    asked_at: list[float] = []

    class PatientPolicy:
        def __init__(self, config: PolicyConfig) -> None:
            pass

        def decide(self, snapshot: Snapshot) -> Decision:
            asked_at.append(snapshot.now)
            if snapshot.models["a"].queued and snapshot.now >= 5:
                return SwitchTo("a")
            return LookAgain(5)

    rig = Rig(policy=PatientPolicy)
    async with rig.running():
        await rig.ask("a")
    assert 5 in asked_at


def test_every_phase_can_be_left() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for ways in TRANSITIONS.values():
        assert ways <= set(Phase)


async def test_a_model_cannot_enter_a_phase_out_of_order() -> None:
    model = Rig().switcher.models["a"]
    with pytest.raises(AssertionError, match="cannot enter DRAINING"):
        model.enter(Phase.DRAINING)


class Impatient:
    """A policy that always wants to be asked again at once, or has wanted to before."""

    late_s = 0.0
    most = 10_000
    asked = 0

    def __init__(self, _config: PolicyConfig) -> None:
        pass

    def decide(self, view: Snapshot) -> Decision:
        Impatient.asked += 1
        assert Impatient.asked < self.most, "it spins"
        waiting = [model.name for model in view.models.values() if model.queued]
        if waiting and view.active is None:
            return SwitchTo(waiting[0])
        return LookAgain(view.now - self.late_s)


@pytest.mark.parametrize("late_s", [0.0, 1e-9, 3.0, math.inf, math.nan, -1e-9])
async def test_a_policy_that_looks_again_at_once_does_not_spin(
    late_s: float,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Mock()
    monkeypatch.setattr("llmux.switching.decision.log", log)
    monkeypatch.setattr(Impatient, "late_s", late_s)
    monkeypatch.setattr(Impatient, "asked", 0)
    rig = Rig(policy=Impatient)
    async with rig.running():
        await rig.ask("a")
        before = Impatient.asked
        await trio.sleep(10)
        assert Impatient.asked - before <= 10 / LEAST_STEP_S + 1
        assert await rig.ask("a") == 0  # and nobody waits for it
    said = [call.args[0] for call in log.warning.call_args_list]
    assert said == ([] if late_s < 0 else ["policy_looks_back"])


async def test_reprs_tell_the_state(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running():
        assert repr(rig.switcher) == "<Switcher IDLE, 0 in flight, 0 waiting>"
        async with rig.switcher.serving("a"):
            assert repr(rig.switcher) == "<Switcher ACTIVE 'a', 1 in flight, 0 waiting>"
            assert repr(rig.switcher.models["a"]) == "<Model 'a' AWAKE, 1 in flight, 0 waiting>"


async def test_a_drain_over_its_time_may_go_on(autojump_clock: MockClock) -> None:
    rig = Rig(drain_timeout_secs=5, on_drain_timeout="wait")
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        assert await rig.ask("b") == pytest.approx(99, abs=0.1)


async def test_who_finds_the_line_full_hears_how_long_it_takes(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(seconds={("b", "wake"): 20})
    rig = Rig(hooks=hooks, queued_per_model=1, traits={"b": Traits(max_in_flight=2)})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 7)
        await trio.sleep(1)
        await rig.ask("b", 1)  # a drain of 6 s, a switch of 20
        for _ in range(2):
            requests.start_soon(rig.ask, "b", 100)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
        await trio.sleep(1)
        with pytest.raises(QueueFull) as full:
            await rig.ask("b")
        assert full.value.retry_after_s == 1  # of its slots it knows only the second that one took
        requests.start_soon(rig.ask, "a", 1)
        await trio.sleep(1)
        with pytest.raises(QueueFull):
            await rig.ask("a")
