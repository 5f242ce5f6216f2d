"""What comes one tick earlier or later: at each of the instants where something could slip through."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import LlmuxError
from llmux.policy import POLICIES
from llmux.switching.hints import Hints
from llmux.switching.model import SERVES, Traits
from tests.fakes import FakeHooks, Rig

ROUNDS = 10
"""Trio runs what is ready in random order."""


async def after(ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()


class Leaver:
    """A request whose client leaves."""

    def __init__(self, rig: Rig, model: str) -> None:
        self._rig = rig
        self._model = model
        self._scope = trio.CancelScope()

    async def ask(self) -> None:
        with self._scope:
            await self._rig.ask(self._model)

    def leave(self) -> None:
        self._scope.cancel()


@pytest.mark.parametrize("ticks", range(5))
async def test_a_drain_that_is_called_off_and_wanted_again_is_not_done(
    ticks: int, autojump_clock: MockClock
) -> None:
    for _ in range(ROUNDS):
        rig = Rig(("a", "b", "c"))
        async with rig.running() as requests:
            requests.start_soon(rig.ask, "a", 50)
            await trio.sleep(1)
            leaver = Leaver(rig, "b")
            requests.start_soon(leaver.ask)
            await wait_all_tasks_blocked()  # a drains for b
            requests.start_soon(rig.ask, "c")
            await wait_all_tasks_blocked()
            leaver.leave()
            await after(ticks)
            requests.start_soon(rig.ask, "b")


@pytest.mark.parametrize("ticks", range(5))
async def test_a_drain_that_is_called_off_by_two_who_leave_is_not_done(
    ticks: int, autojump_clock: MockClock
) -> None:
    for _ in range(ROUNDS):
        rig = Rig(("a", "b", "c"))
        async with rig.running() as requests:
            requests.start_soon(rig.ask, "a", 50)
            await trio.sleep(1)
            leavers = [Leaver(rig, "b"), Leaver(rig, "c")]
            for leaver in leavers:
                requests.start_soon(leaver.ask)
                await wait_all_tasks_blocked()
            leavers[0].leave()
            await after(ticks)
            leavers[1].leave()


@pytest.mark.parametrize("freezes", [True, False])
@pytest.mark.parametrize("ticks", range(6))
async def test_nobody_takes_a_slot_of_a_model_that_falls_asleep(
    ticks: int, freezes: bool, autojump_clock: MockClock
) -> None:
    """Hooks that freeze, or no draining: the model is left with a request that was just let in."""
    for _ in range(ROUNDS):
        traits = {"a": Traits(max_in_flight=1, preserves_in_flight=freezes)}
        hooks = FakeHooks(seconds={("a", "sleep"): 1})
        await slot_and_switch(Rig(hooks=hooks, traits=traits, drain_before_switch=freezes), ticks)


async def slot_and_switch(rig: Rig, ticks: int) -> None:
    """A slot falls free some ticks from the beginning of a switch."""
    switcher, model = rig.switcher, rig.switcher.models["a"]

    async def first() -> None:
        async with switcher.serving("a"):
            await trio.sleep_until(now)
            await after(ticks)

    async def second() -> None:
        async with switcher.serving("a"):
            assert model.phase in SERVES
            await trio.sleep(0.5)

    async def leave() -> None:
        await trio.sleep_until(now)
        with suppress(LlmuxError):
            await switcher.force_switch("b")

    async with rig.running() as requests:
        await rig.ask("a")
        now = trio.current_time() + 10
        requests.start_soon(first)
        await wait_all_tasks_blocked()
        requests.start_soon(second)
        requests.start_soon(leave)
        await trio.sleep(15)
        assert model.view().ages.count == model.view().queued
        requests.start_soon(switcher.force_switch, "a")


async def test_in_manual_mode_those_in_line_for_a_slot_do_not_outstay_their_model(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits={"a": Traits(max_in_flight=1)})
    ends: list[str] = []

    async def ask() -> None:
        try:
            await rig.ask("a", 10)
            ends.append("served")
        except LlmuxError as error:
            ends.append(error.code)

    async with rig.running() as requests:
        await rig.ask("a")
        rig.switcher.set_mode("manual")
        for _ in range(2):
            requests.start_soon(ask)
            await wait_all_tasks_blocked()
        await rig.switcher.force_switch("b")
        assert ends == ["manual_mode", "served"]


async def test_who_wants_no_switch_is_refused_when_the_model_of_its_slot_leaves(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits={"a": Traits(max_in_flight=1)})
    codes: list[str] = []

    async def ask_without_switch() -> None:
        try:
            async with rig.switcher.serving("a", hints=Hints(never_switch=True)):
                pass
        except LlmuxError as error:
            codes.append(error.code)

    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "a", 10)
        await wait_all_tasks_blocked()
        requests.start_soon(ask_without_switch)
        await wait_all_tasks_blocked()
        await rig.switcher.force_switch("b")
    assert codes == ["would_switch"]
    assert rig.hooks.calls.count(("a", "wake")) == 1


async def test_a_prefetch_that_nobody_wants_any_more_holds_up_nobody(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "prefetch"): 500}, prefetchers={"b"}))
    async with rig.running():
        await rig.ask("a")
        with trio.move_on_after(1):
            await rig.ask("b")
        assert await rig.ask("a") < 1


async def test_a_prefetch_does_not_hold_up_a_stop(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "prefetch"): 500}, prefetchers={"b"}))
    async with rig.running() as requests:
        await rig.ask("a")

        async def ask() -> None:
            with suppress(LlmuxError):
                await rig.ask("b")

        requests.start_soon(ask)
        await trio.sleep(1)
        rig.switcher.stop()
        await trio.sleep(1)
        assert rig.hooks.calls[-1] == ("a", "sleep")
        assert trio.current_time() < 5


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_without_draining_models_with_slots_get_on(
    policy: str, autojump_clock: MockClock
) -> None:
    """Woken with its slots still taken, a model admits nobody; it must be given time all the same."""
    hooks = FakeHooks(seconds={(m, h): 1.0 for m in "ab" for h in ("wake", "sleep")})
    traits = {model: Traits(max_in_flight=1) for model in "ab"}
    rig = Rig(hooks=hooks, policy=POLICIES[policy], drain_before_switch=False, traits=traits)

    async def work(model: str) -> None:
        """Gets on only while its model is awake, and is given up if that is never again."""
        async with rig.switcher.serving(model):
            done = 0
            while done < 20 and trio.current_time() < 200:
                await trio.sleep(0.25)
                done += model in hooks.awake

    async with rig.running() as requests:
        for model in "abab":
            requests.start_soon(work, model)
    wakes = sum(hook == "wake" for _, hook in hooks.calls)
    assert wakes < 20, "a model must be given time: ask may_leave_at (llmux/policy/choices.py)"


COSTS = {(m, h): s for m in "ab" for h, s in (("sleep", 5.0), ("wake", 20.0))}


async def keep_busy(rig: Rig, model: str, until: float) -> None:
    async def go_on(delay: int) -> None:
        await trio.sleep(delay)
        while trio.current_time() < until:
            await rig.ask(model, 4)

    async with trio.open_nursery() as nursery:
        for delay in range(4):
            nursery.start_soon(go_on, delay)


async def test_a_night_in_which_nobody_came_is_no_long_absence(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds=COSTS), policy=POLICIES["adaptive"])
    async with rig.running() as requests:
        await rig.ask("b", 1)
        await rig.ask("a", 1)
        await trio.sleep(10 * 3600)
        requests.start_soon(keep_busy, rig, "b", trio.current_time() + 6000)
        await trio.sleep(60)
        assert await rig.ask("a", 1) < 310 + 2 * 50


async def test_time_for_frozen_requests_ends_with_the_bound(autojump_clock: MockClock) -> None:
    costs = {**COSTS, ("a", "wake"): 60.0, ("b", "wake"): 60.0}
    traits = {"b": Traits(preserves_in_flight=True)}
    adaptive = POLICIES["adaptive"]
    rig = Rig(hooks=FakeHooks(seconds=costs), policy=adaptive, max_wait_secs=30, traits=traits)
    async with rig.running() as requests:
        await rig.ask("b", 1)
        await rig.ask("a", 1)
        requests.start_soon(keep_busy, rig, "b", trio.current_time() + 6000)
        await trio.sleep(130)
        assert await rig.ask("a", 1) < 40 + 2 * 130
