"""Models whose wake keeps failing: when they are tried, and what their clients get meanwhile."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import HookError, LlmuxError, ModelFailing
from llmux.observe.schemas import FailingChange, Pin
from llmux.policy import POLICIES, GroupView, Policy, SwitchTo
from llmux.policy.base import Decision
from llmux.switching.core import retry_delay_s
from llmux.switching.idle import IdleRules
from llmux.switching.model import Model, Phase, Traits
from tests.fakes import FakeHooks, Rig

ALWAYS = -1


def broken(*models: str, **more: Any) -> FakeHooks:
    return FakeHooks(failing={(model, "wake"): ALWAYS for model in models}, **more)


async def fail(rig: Rig, model: str, times: int = 3) -> None:
    """Have a model fail to wake; with nobody else awake, each request waits for its attempt."""
    for _ in range(times):
        with pytest.raises(HookError):
            await rig.ask(model)


async def ask_every(rig: Rig, model: str, seconds: float, until: float, ends: Counter[str]) -> None:
    """A client that tries again and again."""
    while trio.current_time() < until:
        try:
            await rig.ask(model, 0.1)
            ends["served"] += 1
        except LlmuxError as error:
            ends[error.code] += 1
        await trio.sleep(seconds)


def evictions(rig: Rig, model: str) -> int:
    return rig.hooks.calls.count((model, "sleep"))


async def refused(rig: Rig, model: str) -> ModelFailing:
    began_at = trio.current_time()
    with pytest.raises(ModelFailing) as caught:
        await rig.ask(model)
    assert trio.current_time() == began_at, "it waits for nothing"
    return caught.value


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_clients_that_retry_do_not_evict_the_good_model_again_and_again(
    autojump_clock: MockClock, policy: str
) -> None:
    """Without the breaker the good model is put to sleep every minute, as long as they retry."""
    rig = Rig(hooks=broken("b"), policy=POLICIES[policy])
    good, bad = Counter[str](), Counter[str]()
    async with rig.running() as requests:
        requests.start_soon(ask_every, rig, "a", 5, 900, good)
        requests.start_soon(ask_every, rig, "b", 1, 900, bad)
    assert rig.hooks.calls.count(("b", "wake")) == 3
    assert evictions(rig, "a") <= 3
    assert set(good) == {"served"}
    assert bad["hook_failed"] == 3
    assert bad["model_failing"] > 800


async def test_without_the_breaker_they_do(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=broken("b"), wake_failures=None)
    async with rig.running() as requests:
        requests.start_soon(ask_every, rig, "a", 5, 900, Counter[str]())
        requests.start_soon(ask_every, rig, "b", 1, 900, Counter[str]())
    assert evictions(rig, "a") > 10


async def test_they_are_told_why_and_when_to_come_back(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=broken("b"))
    async with rig.running():
        await fail(rig, "b")
        await rig.ask("a")
        error = await refused(rig, "b")
    assert (error.status, error.code) == (503, "model_failing")
    assert error.message == (
        "Model b has failed to wake 3 times in a row: Hook failed for b: wake hook exited with 1"
    )
    assert error.details.endswith("exited with 1: no such GPU"), "operators see the output"
    assert error.retry_after_s == 60


async def test_alone_it_is_tried_once_for_each_delay(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=broken("b"))
    tried_at: list[float] = []
    async with rig.running():
        await fail(rig, "b")
        began_at = trio.current_time()
        while trio.current_time() < began_at + 300:
            before = rig.hooks.calls.count(("b", "wake"))
            with pytest.raises(ModelFailing) as caught:
                await rig.ask("b")
            assert caught.value.retry_after_s is not None
            if rig.hooks.calls.count(("b", "wake")) > before:
                tried_at.append(round(trio.current_time() - began_at))
            await trio.sleep(1)
    assert tried_at == [8, 8 + 16, 8 + 16 + 32, 8 + 16 + 32 + 60, 8 + 16 + 32 + 120, 236, 296]


async def test_clients_that_keep_to_retry_after_are_let_in_to_the_trial(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 4}))
    async with rig.running():
        await fail(rig, "b")
        for seconds in (8, 16):
            error = await refused(rig, "b")
            assert error.retry_after_s == seconds
            await trio.sleep(seconds)
            if seconds == 8:
                with pytest.raises(ModelFailing, match="4 times in a row"):
                    await rig.ask("b")
        await rig.ask("b")
        assert not rig.switcher.models["b"].is_failing
        await rig.switcher.put_model_to_sleep("b")
        await rig.ask("b")


async def test_all_who_wait_for_a_trial_share_it(autojump_clock: MockClock) -> None:
    hooks = broken("b", seconds={("b", "wake"): 5})
    rig = Rig(hooks=hooks)
    ends = Counter[str]()
    async with rig.running() as requests:
        await fail(rig, "b")
        await trio.sleep(8)
        for delay in (0.0, 0.0, 3.0):  # the last one arrives while the hook runs
            await trio.sleep(delay)
            now = trio.current_time()
            requests.start_soon(ask_every, rig, "b", 1, now + 0.5, ends)
        await trio.sleep(10)
    assert ends == {"model_failing": 3}
    assert hooks.calls.count(("b", "wake")) == 4


@pytest.mark.parametrize("quiet_s", [59.0, 61.0])
async def test_a_model_that_was_used_in_the_last_minute_stays(
    autojump_clock: MockClock, quiet_s: float
) -> None:
    rig = Rig(hooks=broken("b"))
    async with rig.running():
        await fail(rig, "b")
        await rig.ask("a", 10)
        await trio.sleep(quiet_s)
        with pytest.raises(ModelFailing) as caught:
            await rig.ask("b")
        assert caught.value.retry_after_s == (1 if quiet_s < 60 else 16)
    assert evictions(rig, "a") == (0 if quiet_s < 60 else 1)


async def test_a_request_in_flight_keeps_its_model_however_long_it_takes(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=broken("b"))
    async with rig.running() as requests:
        await fail(rig, "b")
        requests.start_soon(rig.ask, "a", 1000)
        for _ in range(9):
            await trio.sleep(100)
            await refused(rig, "b")


async def test_a_request_that_comes_before_the_trial_begins_stops_it(
    autojump_clock: MockClock,
) -> None:
    """The model is put to sleep already: its request is served next, and the trial given up."""
    rig = Rig(hooks=broken("b", seconds={("a", "sleep"): 5, ("a", "wake"): 1}))
    ends = Counter[str]()
    async with rig.running() as requests:
        await fail(rig, "b")
        await rig.ask("a")
        await trio.sleep(61)
        tries = rig.hooks.calls.count(("b", "wake"))
        requests.start_soon(ask_every, rig, "b", 1, trio.current_time() + 0.5, ends)
        await trio.sleep(2)
        assert await rig.ask("a") == pytest.approx(4)
        assert rig.hooks.calls.count(("b", "wake")) == tries
    assert ends == {"model_failing": 1}


async def test_a_request_that_comes_as_the_trial_is_decided_stops_it(
    autojump_clock: MockClock,
) -> None:
    """Whichever tick it comes in, the model with the request does not sleep under it."""
    for ticks in range(8):
        rig = Rig(hooks=broken("b"))
        async with rig.running() as requests:
            await fail(rig, "b")
            await rig.ask("a")
            await trio.sleep(61)
            requests.start_soon(ask_every, rig, "b", 1, trio.current_time() + 0.5, Counter[str]())
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            was_awake = rig.switcher.models["a"].is_awake
            await rig.ask("a", 5)
            assert not was_awake or not evictions(rig, "a"), ticks


async def test_those_in_line_are_refused_once_another_model_is_wanted(
    autojump_clock: MockClock,
) -> None:
    """The policy has yet to decide, since it keeps a model awake for a while."""
    rig = Rig(hooks=broken("b"), min_active_secs=200)
    ends = Counter[str]()
    async with rig.running() as requests:
        await fail(rig, "b")
        await rig.ask("a")
        await trio.sleep(100)
        requests.start_soon(ask_every, rig, "b", 1, trio.current_time() + 0.5, ends)
        await trio.sleep(20)
        assert not ends
        requests.start_soon(rig.ask, "a", 500)
        await trio.sleep(200)
        assert ends == {"model_failing": 1}
        assert not evictions(rig, "a")


async def test_an_operator_always_tries_and_success_mends_it(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 4}, seconds={("b", "wake"): 3}))
    ends = Counter[str]()
    async with rig.running() as requests:
        await fail(rig, "b")
        await rig.ask("a")
        with pytest.raises(HookError):
            await rig.switcher.force_switch("b")
        await rig.ask("a")
        requests.start_soon(rig.switcher.force_switch, "b")
        await trio.sleep(1)
        # Clients that come meanwhile wait for what the operator has begun.
        requests.start_soon(ask_every, rig, "b", 1, trio.current_time() + 0.5, ends)
        await trio.sleep(3)
        assert not rig.switcher.models["b"].is_failing
    assert ends == {"served": 1}


async def test_clients_may_wait_for_an_operators_switch_that_is_queued_or_drains(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 3}))
    async with rig.running() as requests:
        await fail(rig, "b")
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        requests.start_soon(rig.switcher.force_switch, "b")
        await wait_all_tasks_blocked()
        assert rig.switcher.models["a"].phase is Phase.DRAINING
        assert await rig.ask("b") == pytest.approx(99)


async def test_a_pin_tries_and_other_pins_forbid_trials(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 3}))
    async with rig.running():
        await fail(rig, "b")
        await rig.switcher.pin(Pin(model="a", wait=True))
        await trio.sleep(1000)
        await refused(rig, "b")
        await rig.switcher.pin(Pin(model="b", wait=False))
        assert not rig.switcher.models["b"].is_failing


async def test_a_pinned_model_is_tried_though_others_wait(autojump_clock: MockClock) -> None:
    """It has failed since it was pinned, and nobody else can be served before it is unpinned."""
    rig = Rig()
    async with rig.running() as requests:
        await rig.switcher.pin(Pin(model="b", wait=True))
        requests.start_soon(rig.ask, "a")
        await rig.switcher.put_model_to_sleep("b")
        rig.hooks.failing[("b", "wake")] = 3
        await fail(rig, "b")
        await refused(rig, "b")
        await trio.sleep(8)
        await rig.ask("b")
        rig.switcher.unpin()


async def test_in_manual_mode_nothing_changes(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=broken("b"))
    async with rig.running():
        await fail(rig, "b")
        rig.switcher.set_mode("manual")
        with pytest.raises(LlmuxError) as caught:
            await rig.ask("b")
        assert caught.value.code == "manual_mode"


async def test_two_failing_models_do_not_block_each_other(autojump_clock: MockClock) -> None:
    rig = Rig("abc", hooks=broken("b", "c"))
    ends = {model: Counter[str]() for model in "bc"}
    async with rig.running() as requests:
        for model in "bc":
            await fail(rig, model)
        for model in "bc":
            requests.start_soon(ask_every, rig, model, 1, trio.current_time() + 300, ends[model])
    tries = Counter(rig.hooks.calls)
    assert tries["b", "wake"] == tries["c", "wake"] == 3 + 7


async def test_a_frozen_request_of_a_failing_model_is_tried_once_others_are_quiet(
    autojump_clock: MockClock,
) -> None:
    """It can be neither refused nor served: nobody asks again for its trial."""
    rig = Rig(traits={"b": Traits(preserves_in_flight=True)})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "b", 2000)
        await wait_all_tasks_blocked()
        rig.hooks.failing[("b", "wake")] = 3
        await rig.ask("a")
        while not rig.switcher.models["b"].is_failing:
            await trio.sleep(1)
        await rig.ask("a", 500)
        assert rig.switcher.models["a"].is_awake
        await trio.sleep(59)
        assert rig.switcher.models["a"].is_awake
        await trio.sleep(2)
        assert rig.switcher.models["b"].is_awake


async def test_a_standby_that_fails_takes_no_model_from_those_who_use_it(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=broken("b"), idle_rules=IdleRules(standby="b", standby_after_s=2))
    async with rig.running() as requests:
        while not rig.switcher.models["b"].is_failing:
            await trio.sleep(1)
        requests.start_soon(ask_every, rig, "a", 30, trio.current_time() + 600, Counter[str]())
        await trio.sleep(601)
        assert not evictions(rig, "a")
        await trio.sleep(100)
        assert evictions(rig, "a"), "a minute after the last request it is tried again"


async def test_a_policy_that_looks_at_nothing_cannot_have_it_tried(
    autojump_clock: MockClock,
) -> None:
    class Stubborn:
        def __init__(self, _config: object) -> None: ...

        def decide(self, view: GroupView) -> Decision:
            return SwitchTo("b" if view.active == "a" else "a", "because", "mine")

    def make(config: Any) -> Policy:
        return Stubborn(config)

    rig = Rig(hooks=broken("b"), policy=make)
    async with rig.running() as requests:
        requests.start_soon(ask_every, rig, "a", 20, 600, Counter[str]())
        await trio.sleep(599)
        assert rig.hooks.calls.count(("b", "wake")) == 3


async def test_a_model_whose_server_stops_after_each_wake_is_failing_too(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    changes: list[FailingChange] = []
    rig.switcher._breaker._events.failing_changed.listen(changes.append)
    async with rig.running():
        model = rig.switcher.models["b"]
        for _ in range(3):
            await rig.ask("b", 0.1)
            rig.hooks.failing[("b", "alive")] = 1
            await rig.switcher.health.refused(model)
        await rig.ask("a")
        error = await refused(rig, "b")
        assert "its server stopped right after the wake" in error.message
        await trio.sleep(61)
        await rig.ask("b")
        assert model.is_failing, "no answer of its server yet"
        model.note_warm()
        await wait_all_tasks_blocked()
    assert [(each.model, each.failing, each.failed_wakes) for each in changes] == [
        ("b", True, 3), ("b", False, 0),
    ]  # fmt: skip


async def test_its_changes_are_told(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 3}))
    changes: list[FailingChange] = []
    rig.switcher._breaker._events.failing_changed.listen(changes.append)
    async with rig.running():
        await fail(rig, "b")
        await trio.sleep(8)
        await rig.ask("b")
        await wait_all_tasks_blocked()
    assert [(each.failing, each.failed_wakes, each.error) for each in changes] == [
        (True, 3, "Hook failed for b: wake hook exited with 1: no such GPU"),
        (False, 0, None),
    ]


@pytest.mark.parametrize("limit", [1, 2, 5, None])
async def test_the_limit(autojump_clock: MockClock, limit: int | None) -> None:
    rig = Rig(hooks=broken("b"), wake_failures=limit)
    async with rig.running():
        for count in range(1, 8):
            await trio.sleep(61)
            with pytest.raises(LlmuxError) as caught:
                await rig.ask("b")
            is_over = limit is not None and count > limit
            assert caught.value.code == ("model_failing" if is_over else "hook_failed")


async def test_hooks_that_cannot_be_started_say_nothing_of_the_model(
    autojump_clock: MockClock,
) -> None:
    """A shortage of processes or descriptors ends by itself, and so must its effect."""
    model = Model("a")
    model.failing_after = 3
    for was_started in (True, False, False, False, True):
        assert not model.is_failing
        model.wake_failed(HookError("a", "wake", "failed", was_started=was_started))
    assert (model.failures, model.failed_wakes) == (5, 2)
    assert model.retry_at == trio.current_time() + 32
    model.wake_failed(HookError("a", "wake", "failed"))
    assert model.is_failing
    model.wake_succeeded()
    assert (model.failures, model.failed_wakes) == (0, 0)


def test_forgiving_ends_it_at_once() -> None:
    model = Model("a")
    model.failing_after = 2
    model.failures, model.retry_at = 2, 100.0
    assert model.is_failing
    model.forgive()
    assert (model.is_failing, model.retry_at) == (False, -math.inf)


def test_the_delay_of_retries_has_a_limit_after_any_number_of_failures() -> None:
    assert [retry_delay_s(failures) for failures in (0, 1, 2, 5_000)] == [2, 4, 8, 60]
