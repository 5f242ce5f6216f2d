"""Pins, and what a group does while nobody wants anything; on the virtual clock."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import HookError, ModelNotFound, PinLost, Pinned, ShuttingDown
from llmux.observe.schemas import Pin
from llmux.switching.commands import Command
from llmux.switching.idle import Idleness, IdleRules
from llmux.switching.model import Traits
from tests.fakes import FakeHooks, Rig

SLEEPY = {"a": Traits(idle_sleep_s=60)}
TO_A = Pin(model="a", wait=False)


# ---- idle_sleep_secs ----


async def test_a_model_that_is_not_used_is_put_to_sleep(autojump_clock: MockClock) -> None:
    rig = Rig(traits=SLEEPY)
    async with rig.running():
        await rig.ask("a", 100)
        await trio.sleep(59)
        assert rig.hooks.awake == {"a"}
        await trio.sleep(2)
        assert rig.hooks.awake == set()
        await rig.ask("a")
        assert rig.hooks.awake == {"a"}


async def test_it_is_used_as_long_as_a_request_is_in_it(autojump_clock: MockClock) -> None:
    rig = Rig(traits=SLEEPY)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 1000)
        await trio.sleep(500)
        await rig.ask("a", 1)
        await trio.sleep(400)
        assert rig.hooks.awake == {"a"}
        await trio.sleep(100 + 61)
        assert rig.hooks.awake == set()


async def test_one_that_was_woken_by_hand_is_idle_from_then_on(autojump_clock: MockClock) -> None:
    rig = Rig(traits=SLEEPY)
    async with rig.running():
        await trio.sleep(1000)
        await rig.switcher.force_switch("a")
        await trio.sleep(59)
        assert rig.hooks.awake == {"a"}
        await trio.sleep(2)
        assert rig.hooks.awake == set()
    assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]


async def test_in_manual_mode_nothing_sleeps_by_itself(autojump_clock: MockClock) -> None:
    rig = Rig(traits=SLEEPY, idle_rules=IdleRules(standby="b", standby_after_s=10))
    async with rig.running():
        await rig.ask("a")
        rig.switcher.set_mode("manual")
        await trio.sleep(1000)
        assert rig.hooks.awake == {"a"}
        rig.switcher.set_mode("auto")
        await trio.sleep(1)
        assert rig.hooks.awake == {"b"}


async def test_min_active_secs_holds_for_idle_rules_too(autojump_clock: MockClock) -> None:
    rules = IdleRules(standby="b", standby_after_s=10)
    for rig in (
        Rig(traits=SLEEPY, min_active_secs=500),
        Rig(idle_rules=rules, min_active_secs=500),
    ):
        async with rig.running():
            await rig.switcher.force_switch("a")
            await trio.sleep(499)
            assert rig.hooks.awake == {"a"}
            await trio.sleep(2)
            assert "a" not in rig.hooks.awake


# ---- standby and preload ----


async def test_the_standby_is_woken_when_nothing_else_is_wanted(autojump_clock: MockClock) -> None:
    rig = Rig(idle_rules=IdleRules(standby="b", standby_after_s=300))
    async with rig.running() as requests:
        await trio.sleep(299)
        assert rig.hooks.awake == set()
        await trio.sleep(2)
        assert rig.hooks.awake == {"b"}  # nothing was ever wanted
        requests.start_soon(rig.ask, "a", 1000)
        await trio.sleep(999)
        assert rig.hooks.awake == {"a"}
        await trio.sleep(300)
        assert rig.hooks.awake == {"a"}
        await trio.sleep(2)
        assert rig.hooks.awake == {"b"}
        calls = len(rig.hooks.calls)
        await trio.sleep(10_000)
        assert len(rig.hooks.calls) == calls


async def test_a_standby_that_cannot_be_woken_is_tried_less_and_less_often(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(failing={("b", "wake"): -1})
    rig = Rig(hooks=hooks, idle_rules=IdleRules(standby="b", standby_after_s=1))
    async with rig.running():
        await trio.sleep(600)
        tries = hooks.calls.count(("b", "wake"))
        assert 10 <= tries <= 20  # 2, 4, 8, ... 60 s
        await rig.ask("a")


async def test_preload_wakes_a_model_at_the_start(autojump_clock: MockClock) -> None:
    rig = Rig(idle_rules=IdleRules(preload="b"))
    async with rig.running():
        await wait_all_tasks_blocked(0.01)
        assert rig.hooks.awake == {"b"}
        await rig.ask("a")
        await trio.sleep(1000)
        assert rig.hooks.awake == {"a"}


async def test_preload_takes_nothing_from_an_operator(autojump_clock: MockClock) -> None:
    """Whose order may come while it is still found out what is awake."""
    rig = Rig(idle_rules=IdleRules(preload="b"))
    async with rig.running():
        await rig.switcher.pin(TO_A)
        await trio.sleep(10)
        assert rig.hooks.awake == {"a"}


async def test_idle_rules_wait_for_those_who_wait(autojump_clock: MockClock) -> None:
    """A request that comes in the very moment is not lost to the sleep."""
    rig = Rig(traits=SLEEPY, hooks=FakeHooks(seconds={("a", "sleep"): 5}))
    async with rig.running() as requests:
        await rig.ask("a")
        await trio.sleep(62)
        assert rig.hooks.running == ("a", "sleep")
        requests.start_soon(rig.ask, "a", 1)
        requests.start_soon(rig.ask, "b", 1)
        await trio.sleep(20)
        assert rig.hooks.served == {"a": 2, "b": 1}


async def test_a_standby_is_not_woken_once_somebody_wants_another(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(seconds={("a", "sleep"): 60, ("s", "wake"): 500, ("b", "wake"): 5})
    rules = IdleRules(standby="s", standby_after_s=300)
    rig = Rig(("a", "b", "s"), hooks=hooks, idle_rules=rules)
    async with rig.running():
        await rig.ask("a")
        await trio.sleep(310)
        assert hooks.running == ("a", "sleep")
        assert await rig.ask("b") == 50 + 5
        assert ("s", "wake") not in hooks.calls


async def test_an_idle_sleep_is_called_off_when_its_model_is_wanted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long request comes between the decision and the drain, and then another."""
    rig = Rig(traits=SLEEPY)
    waited_s: list[float] = []

    async with rig.running() as requests:

        async def wait_a_while() -> None:
            await trio.sleep(1)
            waited_s.append(await rig.ask("a"))

        of_one = Idleness.of_one

        def decided(*about: Any) -> tuple[Command | None, float]:
            command, at = of_one(*about)
            if command is not None and not waited_s:
                requests.start_soon(rig.ask, "a", 1000)
                requests.start_soon(wait_a_while)
            return command, at

        monkeypatch.setattr(Idleness, "of_one", decided)
        await rig.ask("a")
        await trio.sleep(500)
        assert rig.hooks.inside == {"a": 1}
        assert waited_s == [0]
        await trio.sleep(1000)
        assert rig.hooks.awake == set()


# ---- Pins ----


async def test_a_pin_drains_what_is_awake_and_refuses_the_rest(autojump_clock: MockClock) -> None:
    rig = Rig()
    refused: list[str] = []

    async def ask(model: str) -> None:
        try:
            await rig.ask(model, 10)
        except Pinned:
            refused.append(model)

    async with rig.running() as requests:
        requests.start_soon(ask, "b")
        await wait_all_tasks_blocked(0.01)
        requests.start_soon(rig.switcher.pin, TO_A)
        await trio.sleep(1)
        requests.start_soon(ask, "b")  # while b drains
        requests.start_soon(ask, "a")
        await trio.sleep(20)
        assert refused == ["b"]
        assert rig.hooks.served == {"b": 1, "a": 1}
        rig.switcher.unpin()
        await ask("b")
    assert rig.switcher.pinned is None


async def test_who_already_waits_is_refused(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "wake"): 10}))
    async with rig.running() as requests:
        requests.start_soon(expect_pinned, rig, "b")
        await trio.sleep(1)
        await rig.switcher.pin(TO_A)
    assert rig.hooks.awake == {"a"}


async def expect_pinned(rig: Rig, model: str) -> None:
    with pytest.raises(Pinned):
        await rig.ask(model)


async def test_a_pinned_model_that_was_put_to_sleep_is_woken_for_a_request(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits=SLEEPY)
    async with rig.running() as requests:
        await rig.switcher.pin(Pin(model="a", wait=True))
        await trio.sleep(1000)
        assert rig.hooks.awake == {"a"}  # idle rules do not apply
        await rig.switcher.put_model_to_sleep("a")
        requests.start_soon(rig.ask, "b")
        await trio.sleep(100)
        assert rig.hooks.awake == set()  # the other one waits still
        await rig.ask("a")
        assert rig.hooks.awake == {"a"}
        rig.switcher.unpin()
        await trio.sleep(1)
        assert rig.hooks.served == {"a": 1, "b": 1}


async def test_a_pin_that_fails_changes_nothing(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("a", "wake"): 1}))
    async with rig.running():
        await rig.ask("b")
        with pytest.raises(HookError):
            await rig.switcher.pin(TO_A)
        assert rig.switcher.pinned is None
        await rig.ask("b")
        with pytest.raises(ModelNotFound):
            await rig.switcher.pin(Pin(model="x", wait=False))


async def test_the_pin_of_one_who_left_is_rolled_back_too(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(failing={("a", "wake"): 1}, seconds={("a", "wake"): 10})
    rig = Rig(hooks=hooks)
    async with rig.running():
        with trio.move_on_after(1):
            await rig.switcher.pin(TO_A)
        assert rig.switcher.pinned == TO_A
        await trio.sleep(20)
        assert rig.switcher.pinned is None


async def test_the_later_of_two_pins_counts(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(failing={("a", "wake"): 1}, seconds={("a", "wake"): 10})
    rig = Rig(hooks=hooks)
    async with rig.running() as requests:

        async def pin_a() -> None:
            with pytest.raises(HookError):
                await rig.switcher.pin(TO_A)

        requests.start_soon(pin_a)
        await trio.sleep(1)
        to_b = Pin(model="b", wait=False)
        await rig.switcher.pin(to_b)
        assert rig.switcher.pinned == to_b
        assert rig.hooks.awake == {"b"}


async def test_a_pin_that_is_taken_back_meanwhile_says_so(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 10}))
    async with rig.running() as requests:

        async def pin_in_vain() -> None:
            with pytest.raises(PinLost):
                await rig.switcher.pin(TO_A)

        requests.start_soon(pin_in_vain)
        await trio.sleep(1)
        rig.switcher.unpin()
    assert rig.switcher.pinned is None
    assert rig.hooks.awake == {"a"}


async def test_two_pins_that_fail_leave_what_was_before(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(failing={("a", "wake"): 1, ("b", "wake"): 1}, seconds={("a", "wake"): 10})
    rig = Rig(models=("a", "b", "c"), hooks=hooks)
    to_c = Pin(model="c", wait=False)

    async def pin_in_vain(pin: Pin) -> None:
        with pytest.raises(HookError):
            await rig.switcher.pin(pin)

    async with rig.running() as requests:
        await rig.switcher.pin(to_c)
        requests.start_soon(pin_in_vain, TO_A)
        await trio.sleep(1)
        await pin_in_vain(Pin(model="b", wait=False))
        assert rig.switcher.pinned == to_c
        await rig.ask("c")


async def test_a_pin_that_fails_wakes_again_what_was_pinned_before(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "wake"): 1}))
    async with rig.running():
        await rig.switcher.pin(TO_A)
        with pytest.raises(HookError):
            await rig.switcher.pin(Pin(model="b", wait=False))
        assert rig.switcher.pinned == TO_A
        await trio.sleep(1)
        assert rig.hooks.awake == {"a"}


async def test_a_pin_that_fails_leaves_no_pin_on_a_model_that_has_gone(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(failing={("b", "wake"): 1}, seconds={("a", "sleep"): 10})
    rig = Rig(hooks=hooks)

    async def pin_in_vain() -> None:
        with pytest.raises(HookError):
            await rig.switcher.pin(Pin(model="b", wait=False))

    async with rig.running() as requests:
        await rig.switcher.pin(TO_A)
        requests.start_soon(pin_in_vain)
        await trio.sleep(1)
        rig.switcher.remove("a", lambda: None)
        await trio.sleep(60)
        assert rig.switcher.pinned is None
        await rig.ask("b")


async def test_a_pinned_model_is_woken_again_after_a_change_of_its_config(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    changes: list[str] = []
    async with rig.running():
        await rig.switcher.pin(TO_A)
        rig.switcher.renew("a", lambda: changes.append("a"))
        await trio.sleep(1)
        assert changes == ["a"]
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep"), ("a", "wake")]


async def test_a_pinned_model_is_woken_again_after_it_was_found_down(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(alive_interval_secs=10, alive_failures=1)
    async with rig.running() as requests:
        requests.start_soon(rig.switcher.health.watch)
        await rig.switcher.pin(TO_A)
        rig.hooks.awake.clear()
        await trio.sleep(11)
        assert rig.hooks.awake == {"a"}
        requests.cancel_scope.cancel()


async def test_a_pin_that_fails_takes_back_no_other_that_says_the_same(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(("a", "b"), hooks=FakeHooks(seconds={("b", "wake"): 5}))
    to_b = Pin(model="b", wait=False)
    async with rig.running():
        await rig.switcher.pin(TO_A)
        with trio.move_on_after(1):  # who wants it leaves, and it stands
            await rig.switcher.pin(to_b)
        await trio.sleep(10)
        rig.hooks.failing["a", "wake"] = 1
        with pytest.raises(HookError):
            await rig.switcher.pin(TO_A)
        assert rig.switcher.pinned == to_b


async def test_a_pinned_model_that_is_removed_is_pinned_no_more(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running():
        await rig.switcher.pin(TO_A)
        rig.switcher.remove("a", lambda: None)
        await trio.sleep(1)
        assert rig.switcher.pinned is None
        await rig.ask("b")


async def test_nobody_is_pinned_once_it_stops(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running():
        rig.switcher.stop()
        with pytest.raises(ShuttingDown):
            await rig.switcher.pin(TO_A)
        assert rig.switcher.pinned is None
