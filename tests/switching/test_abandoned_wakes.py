"""A load that nobody wants any more is ended, if the config says so."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.config import parse_config
from llmux.errors import HookError, ShuttingDown
from llmux.observe.schemas import Pin
from llmux.switching.groups import traits_of
from llmux.switching.hints import PASSIVE, Hints
from llmux.switching.idle import IdleRules
from llmux.switching.model import Phase, Traits
from tests.fakes import FakeHooks, Rig
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"


def slow_rig(**settings: Any) -> Rig:
    hooks = FakeHooks(seconds={("a", "wake"): 100, ("b", "wake"): 10, ("a", "sleep"): 5})
    return Rig(hooks=hooks, **{"abandon_wakes": True, **settings})


async def leave_after(rig: Rig, model: str, seconds: float, answered_s: float = 0) -> None:
    with trio.move_on_after(seconds):
        await rig.ask(model, answered_s)


async def test_its_hook_is_ended_and_its_sleep_hook_runs(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running():
        await leave_after(rig, "a", 30)
        await trio.sleep(20)
        model = rig.switcher.models["a"]
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]
        assert (model.phase, model.holds_gpu, model.failures) == (Phase.ASLEEP, False, 0)
        assert (
            rig.counter("llmux_switch_total", **{"from": "idle", "to": "a", "result": "failure"})
            == 0
        )
        assert rig.switcher.measures.costs.estimate(None, "a") is None
        assert await rig.ask("a") == 100, "and no backoff"


async def test_by_default_it_goes_on(autojump_clock: MockClock) -> None:
    rig = slow_rig(abandon_wakes=False)
    async with rig.running():
        await leave_after(rig, "a", 30)
        await trio.sleep(100)
        assert rig.hooks.calls == [("a", "wake")]
        assert rig.switcher.models["a"].is_awake


@pytest.mark.parametrize("for_all", [True, False])
async def test_a_model_has_the_last_word(for_all: bool, autojump_clock: MockClock) -> None:
    traits = {"a": Traits(abandons_wakes=not for_all)}
    rig = slow_rig(abandon_wakes=for_all, traits=traits)
    async with rig.running():
        await leave_after(rig, "a", 30)
        await trio.sleep(100)
        assert rig.switcher.models["a"].is_awake == for_all


async def test_requests_that_time_out_count_as_gone(autojump_clock: MockClock) -> None:
    rig = slow_rig(request_timeout_secs=30)
    async with rig.running() as requests:

        async def ask() -> None:
            with pytest.raises(Exception, match="timed out"):
                await rig.ask("a")

        requests.start_soon(ask)
        requests.start_soon(ask)
        await trio.sleep(50)
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]


async def test_one_who_still_waits_keeps_it(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running() as requests:
        requests.start_soon(leave_after, rig, "a", 30)
        requests.start_soon(rig.ask, "a")
    assert rig.hooks.calls == [("a", "wake")]


async def test_an_operator_wants_it_though_nobody_waits(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running() as requests:
        requests.start_soon(rig.switcher.force_switch, "a")
        requests.start_soon(leave_after, rig, "a", 30)
    assert rig.switcher.models["a"].is_awake


async def test_an_operator_who_comes_while_it_wakes_keeps_it(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running() as requests:
        requests.start_soon(leave_after, rig, "a", 30)
        await trio.sleep(20)
        requests.start_soon(rig.switcher.force_switch, "a")
        await trio.sleep(100)
        assert rig.hooks.calls == [("a", "wake")]
        assert rig.switcher.models["a"].is_awake


async def test_the_next_model_wakes_after_its_sleep_hook(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running() as requests:
        requests.start_soon(leave_after, rig, "a", 30)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
    assert rig.hooks.calls == [("a", "wake"), ("a", "sleep"), ("b", "wake")]


@pytest.mark.parametrize("at", [30, 30.0001, 32.5, 35, 35.0001])
async def test_a_request_that_comes_just_then_is_served(
    at: float, autojump_clock: MockClock
) -> None:
    """At the instant at which the last one leaves, in the sleep hook, and at its end."""
    rig = slow_rig()
    async with rig.running() as requests:
        requests.start_soon(leave_after, rig, "a", 30)
        await trio.sleep(at)
        assert await rig.ask("a") <= 106
    assert rig.hooks.served["a"] == 1
    assert rig.hooks.calls[-1] == ("a", "wake")


async def test_one_comes_in_the_tick_in_which_the_last_one_leaves(
    autojump_clock: MockClock,
) -> None:
    rig = slow_rig()
    async with rig.running() as requests:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await rig.ask("a")

        requests.start_soon(first)
        await trio.sleep(50)
        scope.cancel()
        requests.start_soon(rig.ask, "a")
    assert rig.hooks.served["a"] == 1


async def test_the_last_one_leaves_in_the_tick_in_which_it_is_awake(
    autojump_clock: MockClock,
) -> None:
    rig = slow_rig()
    rig.hooks.gates[("a", "wake")] = trio.Event()
    async with rig.running() as requests:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await rig.ask("a")

        requests.start_soon(first)
        await trio.sleep(150)
        rig.hooks.gates[("a", "wake")].set()
        scope.cancel()
        await wait_all_tasks_blocked()
        await trio.sleep(200)
        assert rig.switcher.models["a"].phase in {Phase.ASLEEP, Phase.AWAKE}
        rig.hooks.gates.clear()
        await rig.ask("a")


async def test_while_it_is_not_alive_yet(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    rig.hooks.loading_s["a"] = 1000
    async with rig.running():
        await leave_after(rig, "a", 200)
        await trio.sleep(20)
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]


async def test_a_gpu_that_stays_taken_is_a_failure(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    rig.hooks.verifiers.add("a")
    rig.hooks.failing[("a", "verify_asleep")] = 2
    async with rig.running():
        await leave_after(rig, "a", 30)
        await trio.sleep(20)
        assert rig.switcher.models["a"].phase is Phase.FAILED
        assert isinstance(rig.switcher.models["a"].last_error, HookError)


async def test_who_only_waits_for_a_slot_does_not_count_as_gone(
    autojump_clock: MockClock,
) -> None:
    rig = slow_rig()
    async with rig.running() as requests:

        async def ask() -> None:
            async with rig.switcher.serving("a", hints=Hints(weight=2.0)):
                pass

        requests.start_soon(ask)
        requests.start_soon(partial(leave_after, rig, "a", 10))
    assert rig.hooks.calls == [("a", "wake")]


async def test_a_standby_is_wanted_though_nobody_waits(autojump_clock: MockClock) -> None:
    rig = slow_rig(idle_rules=IdleRules(standby="b", standby_after_s=60))
    async with rig.running() as requests:
        await trio.sleep(100)
        assert rig.hooks.calls == [("b", "wake")]
        await rig.ask("a")
        rig.hooks.calls.clear()
        await trio.sleep(67)  # a's sleep hook takes 5 s
        assert rig.switcher.models["b"].phase is Phase.WAKING
        requests.start_soon(rig.ask, "a")
    assert rig.hooks.calls == [("a", "sleep"), ("b", "wake"), ("b", "sleep"), ("a", "wake")]


async def test_no_hook_of_it_is_started_if_nobody_waits_by_then(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running():
        await rig.ask("a")
        await leave_after(rig, "b", 2)  # a's sleep hook takes 5 s
        await trio.sleep(30)
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]


async def test_a_drain_for_nobody_is_called_off(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        await leave_after(rig, "b", 10)
        await trio.sleep(1)
        assert rig.switcher.models["a"].is_awake
        assert rig.hooks.calls == [("a", "wake")]


async def test_one_that_is_frozen_with_it_may_be_who_leaves(autojump_clock: MockClock) -> None:
    traits = {"a": Traits(preserves_in_flight=True)}
    hooks = FakeHooks(seconds={("a", "wake"): 100})
    rig = Rig(hooks=hooks, traits=traits, abandon_wakes=True)
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(leave_after, rig, "a", 80, 1000)
        await trio.sleep(1)
        await rig.switcher.force_switch("b")
        await trio.sleep(70)
        assert rig.switcher.models["a"].phase is Phase.WAKING, "for the one that is frozen"
        await trio.sleep(20)
        assert rig.hooks.calls[-2:] == [("a", "wake"), ("a", "sleep")]


async def test_one_that_only_looks_wants_no_wake(autojump_clock: MockClock) -> None:
    traits = {"a": Traits(preserves_in_flight=True)}
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 100}), traits=traits, abandon_wakes=True)
    async with rig.running() as requests:
        await rig.ask("a")

        async def look() -> None:
            async with rig.switcher.serving("a", hints=PASSIVE):
                await trio.sleep(1000)

        requests.start_soon(look)  # and is frozen
        await wait_all_tasks_blocked()
        await rig.ask("b")
        await leave_after(rig, "a", 30)
        await trio.sleep(20)
        assert rig.hooks.calls[-2:] == [("a", "wake"), ("a", "sleep")]


async def test_what_is_pinned_is_wanted(autojump_clock: MockClock) -> None:
    rig = slow_rig()
    async with rig.running():
        await rig.switcher.pin(Pin(model="a", wait=False))
        await rig.switcher.put_model_to_sleep("a")
        await leave_after(rig, "a", 30)
        await trio.sleep(100)
        assert rig.switcher.models["a"].is_awake


async def test_a_stop_abandons_nothing(autojump_clock: MockClock) -> None:
    """All who wait are sent away then, but a hook that runs may use the grace."""
    rig = slow_rig()
    async with rig.running() as requests:

        async def ask() -> None:
            with pytest.raises(ShuttingDown):
                await rig.ask("a")

        requests.start_soon(ask)
        await trio.sleep(30)
        rig.switcher.stop()
        await trio.sleep(100)
        assert rig.hooks.calls == [("a", "wake")]
        assert rig.switcher.models["a"].is_awake


def test_the_config_says_so(tmp_path: Path) -> None:
    model = {"port": 1, "wake": "w", "sleep": "s", "alive": "a"}
    config = parse_config(
        {
            "models": {"a": {**model, "abandon_wakes": False}, "b": model},
            "policy": {"abandon_wakes": True},
        },
        directory=tmp_path,
    )
    assert config.policy.abandon_wakes
    assert traits_of(config.models["a"]).abandons_wakes is False
    assert traits_of(config.models["b"]).abandons_wakes is None


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_client_that_leaves_ends_the_load(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        slow = 'echo "$LLMUX_MODEL $LLMUX_HOOK" >> hooks.log; sleep 60'
        config = rack.write_config(
            models={"a": rack.model("a", wake=slow)}, policy={"abandon_wakes": True}
        )
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            with trio.move_on_after(3) as left:
                await client.post(CHAT, json=chat("a"))
            assert left.cancelled_caught
            with trio.fail_after(15):
                while rack.hook_log != ["a wake", "a sleep"]:
                    await trio.sleep(0.05)
                while True:
                    listed = (await client.get("/v1/models/a")).json()
                    if listed["llmux"]["state"] == "asleep":
                        break
                    await trio.sleep(0.05)
