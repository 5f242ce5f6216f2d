"""Faults of sharing memory that were found by random tests, each in its smallest form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from trio_util import RepeatedEvent

from llmux.config import Config
from llmux.errors import HookError, NoRoom
from llmux.observe.schemas import Pin
from llmux.policy import FifoPolicy
from llmux.policy.room import Memory, Needs
from llmux.switching.commands import Wake
from llmux.switching.ledger import Hold
from llmux.switching.memory import GroupMemory
from llmux.switching.model import Phase, Traits
from llmux.switching.room import Room
from llmux.switching.steps import SwitchAbandoned
from llmux.switching.views import _room_of
from tests.sharing import SharedRig, gpu, shared
from tests.storm import Storm, StormHooks, config_of

RAM = ("gpu", "ram")


def one(*names: str) -> GroupMemory:
    """Return room for one model, as the fake machine sees it."""
    memory = Memory(("#one",), (1,), dict.fromkeys(names, Needs.of((1,))))
    return GroupMemory(memory, dict.fromkeys(names, frozenset({"#one"})), overlapping_hooks=False)


def count(rig: SharedRig, model: str, hook: str) -> int:
    return rig.hooks.calls.count((model, hook))


# ---- Whose wait holds up others ----


async def test_who_can_never_be_served_delays_nobody(autojump_clock: MockClock) -> None:
    traits = {"kept": Traits(is_kept=True)}
    rig = SharedRig(gpu(80, kept=30, big=80, a=20), traits=traits, max_wait_secs=10)
    async with rig.running() as requests:
        await rig.ask("kept")
        requests.start_soon(rig.ask, "big")
        await trio.sleep(1000)
        assert await rig.ask("a") == 0
        await rig.switcher.put_model_to_sleep("kept")


async def test_an_operator_who_waits_for_a_running_switch_holds_up_no_other(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(100, a=60, b=60, small=30))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 1000)
        await trio.sleep(1)
        for _ in range(2):
            requests.start_soon(rig.switcher.force_switch, "b")
        await trio.sleep(1)
        assert await rig.ask("small") == 0
        assert rig.phase("a") is Phase.DRAINING


async def test_after_a_command_that_has_no_room_the_next_one_goes_on(
    autojump_clock: MockClock,
) -> None:
    needs = {"a": Needs.of((40, 0), (0, 60)), "b": Needs.of((40, 60))}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs))
    ended: list[str] = []

    async def wish(name: str) -> None:
        with pytest.raises(NoRoom):
            await rig.switcher.force_switch(name)
        ended.append(name)

    async with rig.running() as requests:
        requests.start_soon(wish, "b")
        requests.start_soon(wish, "b")
        await trio.sleep(1)
        assert ended == ["b", "b"]


async def test_what_fits_now_is_woken_though_it_would_not_if_others_slept(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "kept": Needs.of((10, 30)),
        "c": Needs.of((40, 0), (0, 10)),
        "b": Needs.of((40, 30)),
    }
    traits = {"kept": Traits(is_kept=True)}
    rig = SharedRig(shared({"gpu": 100, "ram": 60}, needs), traits=traits)
    async with rig.running():
        for model in ("kept", "c", "b"):
            await rig.ask(model)
        assert rig.awake == {"kept", "b", "c"}


async def test_one_that_leaves_the_config_and_fits_no_more_delays_nobody(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, a=40, old=80, b=40), policy=FifoPolicy)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 10)
        await trio.sleep(1)
        with trio.move_on_after(1000):
            async with trio.open_nursery() as patience:
                patience.start_soon(rig.ask, "old")
                await trio.sleep(1)
                rig.switcher.remove("old", lambda: None)
                rig.use(gpu(60, a=40, old=80, b=40))
                await trio.sleep(100)
                with trio.fail_after(100):
                    await rig.ask("b")
                patience.cancel_scope.cancel()


# ---- Whom operators and reloads evict ----


async def test_an_operator_evicts_no_kept_model_while_another_will_do_soon(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(
        gpu(80, embed=30, a=40, b=40),
        traits={"embed": Traits(is_kept=True)},
        seconds={("b", "wake"): 5},
    )
    async with rig.running() as requests:
        await rig.ask("embed")
        requests.start_soon(rig.ask, "b")
        await trio.sleep(1)
        await rig.switcher.force_switch("a")
        assert rig.awake == {"embed", "a"}


async def test_after_a_reload_an_idle_model_leaves_that_was_let_in_just_now(
    autojump_clock: MockClock,
) -> None:
    for _ in range(8):  # in a random order of tasks
        rig = SharedRig(gpu(80, a=40, b=40))
        async with rig.running() as requests:
            requests.start_soon(rig.ask, "a", 50)
            await trio.sleep(1)
            async with rig.switcher.serving("b"):
                rig.use(gpu(60, a=40, b=40))
            await trio.sleep(1)
            assert rig.awake == {"a"}


async def test_after_a_reload_pinned_models_stay_if_others_can_leave(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, a=40, b=40))
    async with rig.running():
        await rig.switcher.pin(Pin(model="a", wait=False))
        await trio.sleep(1)
        await rig.ask("b")
        rig.use(gpu(60, a=40, b=40))
        await trio.sleep(1)
        assert rig.awake == {"a"}


async def test_after_a_reload_whoever_can_sleep_does(autojump_clock: MockClock) -> None:
    needs = {"a": Needs.of((40, 0), (0, 50)), "b": Needs.of((40, 0)), "c": Needs.of((0, 60))}
    before = shared({"gpu": 80, "ram": 120}, needs)
    rig = SharedRig(before)
    async with rig.running() as requests:
        for model in "abc":
            await rig.ask(model)
        requests.start_soon(rig.ask, "b", 10)
        requests.start_soon(rig.ask, "c", 1000)
        await trio.sleep(1)
        rig.use(shared({"gpu": 60, "ram": 100}, needs))  # a sleeps only once c does
        await trio.sleep(100)
        assert rig.awake == {"a", "c"}


async def test_a_stop_hook_that_fails_is_not_tried_all_the_time(autojump_clock: MockClock) -> None:
    needs = {name: Needs.of((60, 0), (0, 50)) for name in ("a", "b")}
    rig = SharedRig(
        shared({"gpu": 80, "ram": 100}, needs),
        traits={name: Traits(stops=True) for name in needs},
        failing={("a", "stop"): -1, ("b", "stop"): -1},
    )
    async with rig.running():
        rig.use(shared({"gpu": 80, "ram": 60}, needs))
        await trio.sleep(100)
        assert 1 <= count(rig, "a", "stop") + count(rig, "b", "stop") <= 60
        assert {model.failures for model in rig.switcher.models.values()} == {0}
        rig.hooks.failing.clear()
        await trio.sleep(100)
        assert Hold.STOPPED in {rig.switcher.room.ledger.hold(name) for name in needs}


# ---- What running switches meet ----


async def test_a_pin_may_be_placed_while_a_switch_drains(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(100, a=60, b=60, small=50), max_wait_secs=5)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
        await trio.sleep(20)
        assert rig.phase("a") is Phase.DRAINING
        await rig.switcher.pin(Pin(model="small", wait=True))
        await trio.sleep(1)
        assert not rig.switcher.has_died
        rig.switcher.unpin()


async def test_a_drain_is_called_off_when_room_is_made_without_it(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(100, a=50, x=50, b=50), max_wait_secs=5)
    scopes = {"a": trio.CancelScope(), "x": trio.CancelScope()}

    async def ask(model: str) -> None:
        with scopes[model]:
            await rig.ask(model, 10_000)

    async with rig.running() as requests:
        for model in scopes:
            requests.start_soon(ask, model)
            await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
        await trio.sleep(20)
        (drains,) = (m for m in "ax" if rig.phase(m) is Phase.DRAINING)
        other = "x" if drains == "a" else "a"
        requests.start_soon(rig.switcher.put_model_to_sleep, other)
        await trio.sleep(1)
        # It does not wait for the other drain instead, which may take longer.
        assert (rig.phase(other), rig.phase(drains)) == (Phase.DRAINING, Phase.DRAINING)
        scopes[other].cancel()
        await trio.sleep(1)
        assert rig.awake == {drains, "b"}
        scopes[drains].cancel()


async def test_the_switch_of_an_operator_is_not_called_off(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(100, a=50, x=50, b=50), max_wait_secs=5)
    scopes = {"a": trio.CancelScope(), "x": trio.CancelScope()}

    async def ask(model: str) -> None:
        with scopes[model]:
            await rig.ask(model, 10_000)

    async with rig.running() as requests:
        for model in scopes:
            requests.start_soon(ask, model)
            await trio.sleep(1)
        requests.start_soon(rig.switcher.force_switch, "b")
        requests.start_soon(rig.ask, "b")
        await trio.sleep(20)
        (drains,) = (m for m in "ax" if rig.phase(m) is Phase.DRAINING)
        other = "x" if drains == "a" else "a"
        scopes[other].cancel()
        await trio.sleep(1000)
        assert (rig.phase(other), rig.phase(drains)) == (Phase.AWAKE, Phase.DRAINING)
        scopes[drains].cancel()


@asynccontextmanager
async def with_a_drain_for_big(
    x_s: float,
) -> AsyncIterator[tuple[SharedRig, str, Callable[[], None]]]:
    """Run a switch to `big`, for which `x` leaves, and either `a` or `i`, which are busy for long.

    Yields:
        The rig, which of the two drains, and how to end the work of the other one.
    """
    needs = {
        "a": Needs.of((40, 0)),
        "i": Needs.of((40, 0)),
        "x": Needs.of((0, 20)),
        "big": Needs.of((40, 20)),
    }
    seconds = {("a", "sleep"): 50.0, ("i", "sleep"): 50.0}
    rig = SharedRig(shared({"gpu0": 80, "gpu1": 20}, needs), seconds=seconds, max_wait_secs=5)
    work = {"a": trio.CancelScope(), "i": trio.CancelScope()}

    async def ask(model: str) -> None:
        with work[model]:
            await rig.ask(model, 10_000)

    async with rig.running() as requests:
        requests.start_soon(ask, "a")
        requests.start_soon(ask, "i")
        requests.start_soon(rig.ask, "x", x_s)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "big")
        await trio.sleep(20)
        assert rig.phase("x") is Phase.DRAINING
        (drains,) = (model for model in "ai" if rig.phase(model) is Phase.DRAINING)
        other = "i" if drains == "a" else "a"
        yield rig, drains, work[other].cancel
        for scope in work.values():
            scope.cancel()


async def test_a_drain_is_called_off_after_a_victim_was_removed(autojump_clock: MockClock) -> None:
    async with with_a_drain_for_big(30) as (rig, drains, end_other):
        rig.switcher.remove("x", lambda: None)
        await trio.sleep(20)
        assert "x" not in rig.switcher.models
        end_other()
        await trio.sleep(51)
        assert rig.awake == {drains, "big"}


async def test_a_drain_that_was_called_off_may_be_needed_after_all(
    autojump_clock: MockClock,
) -> None:
    async with with_a_drain_for_big(100) as (rig, drains, _):
        other = "i" if drains == "a" else "a"
        (running,) = rig.switcher._group.running
        placer = rig.switcher._decider._placer
        assert not placer.replan(running, ["x", "nobody"])
        assert placer.replan(running, ["x", other])
        await trio.sleep(0.1)
        assert (rig.phase(drains), rig.phase(other)) == (Phase.AWAKE, Phase.DRAINING)
        assert placer.replan(running, ["x", drains])
        await trio.sleep(0.1)
        assert (rig.phase(drains), rig.phase(other)) == (Phase.DRAINING, Phase.AWAKE)


async def test_a_switch_that_was_just_given_up_evicts_no_others(autojump_clock: MockClock) -> None:
    async with with_a_drain_for_big(100) as (rig, drains, _):
        other = "i" if drains == "a" else "a"
        (running,) = rig.switcher._group.running
        running.failure = SwitchAbandoned()  # as `Carrier` notes it before the switch has ended
        (shown,) = _room_of(rig.switcher._group).switches
        assert not shown.may_change
        assert not rig.switcher._decider._placer.replan(running, ["x", other])


async def test_two_switches_run_while_a_group_ceases_to_share(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(100, a=60, b=40, c=40, d=60), seconds={("c", "wake"): 100})

    async def force() -> None:
        with suppress(NoRoom):
            await rig.switcher.force_switch("d")

    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 50)
        await trio.sleep(1)
        requests.start_soon(force)
        requests.start_soon(rig.ask, "c")
        await trio.sleep(1)
        assert (rig.phase("a"), rig.phase("c")) == (Phase.DRAINING, Phase.WAKING)
        rig.hooks.use(one(*"abcd"))
        rig.switcher.use_memory(None)
        await trio.sleep(1000)
        assert not rig.switcher.has_died
        for model in "abcd":
            await rig.ask(model)
            assert rig.awake == {model}


async def test_once_a_group_ceases_to_share_one_model_stays_awake(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(100, a=20, b=20, c=20))
    async with rig.running():
        for model in "abc":
            await rig.ask(model)
        rig.hooks.use(one(*"abc"))
        rig.switcher.use_memory(None)
        await trio.sleep(1)
        assert rig.awake == {"c"}


async def test_a_victim_that_stays_admits_at_once(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, b=40, big=80), seconds={("a", "sleep"): 100})
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "b", 1000)
        await trio.sleep(1)
        with trio.move_on_after(60):
            async with trio.open_nursery() as patience:
                patience.start_soon(rig.ask, "big")
                while rig.phase("b") is not Phase.DRAINING:
                    await trio.sleep(0.1)
                requests.start_soon(rig.ask, "b", 10)
        await trio.sleep(1)
        assert rig.phase("a") is Phase.SLEEPING
        assert rig.phase("b") is Phase.AWAKE
        assert rig.switcher.models["b"].in_flight.count == 2


async def test_what_a_model_that_is_down_needs_asleep_goes_to_no_other(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "a": Needs.of((40, 0), (0, 40)),
        "b": Needs.of((20, 30)),
        "c": Needs.of((20, 20)),
    }
    rig = SharedRig(
        shared({"gpu": 80, "ram": 60}, needs, overlapping_hooks=True),
        seconds={("a", "sleep"): 100},
        alive_interval_secs=10,
        alive_failures=1,
    )
    async with rig.running() as requests:
        requests.start_soon(rig.switcher.health.watch)
        for model in "ab":
            await rig.ask(model)
        rig.hooks.awake.discard("a")
        rig.hooks.forced.add("a")
        await trio.sleep(11)
        assert rig.phase("a") is Phase.SLEEPING
        assert rig.switcher.room.ledger.hold("a") is Hold.FALLING
        await rig.ask("c")
        assert (rig.phase("a"), rig.phase("b")) == (Phase.SLEEPING, Phase.ASLEEP)
        requests.cancel_scope.cancel()


async def test_a_model_whose_stop_has_failed_is_stopped_before_another_wakes(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "c": Needs.of((80, 0), (0, 40)),
        "d": Needs.of((0, 0), (0, 40)),
        "e": Needs.of((80, 0)),
    }
    rig = SharedRig(
        shared({"gpu": 80, "ram": 60}, needs),
        traits={"c": Traits(stops=True)},
        failing={("c", "stop"): 2},
    )
    rig.hooks.stands["c"] = "stopped"
    rig.switcher.room.ledger.stopped("c")
    async with rig.running():
        await rig.ask("c")
        with pytest.raises(HookError):
            await rig.switcher.put_model_to_sleep("c")
        assert rig.switcher.models["c"].is_stranded
        await rig.ask("e")
        assert rig.hooks.stands["c"] == "stopped"


async def test_a_victim_that_sleeps_is_stopped_for_one_that_is_evicted_instead(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "l": Needs.of((0, 20, 0), (0, 0, 40)),
        "m": Needs.of((40, 0, 0)),
        "i": Needs.of((40, 0, 0), (0, 0, 40)),
        "t": Needs.of((40, 20, 0)),
    }
    memory = shared({"gpu0": 80, "gpu1": 20, "ram": 60}, needs)
    rig = SharedRig(memory, traits={"l": Traits(stops=True)})
    rig.hooks.stands["l"] = "stopped"
    async with rig.running() as requests:
        for model in "imil":
            await rig.ask(model)
        requests.start_soon(rig.ask, "m", 1000)
        await trio.sleep(1)
        assert rig.awake == {"l", "m", "i"}
        target = rig.switcher.models["t"]
        rig.switcher._group.queue(Wake(target, "a test", stands=True, evict=("l", "m")))
        await trio.sleep(1)
        assert rig.hooks.stands["l"] == "asleep"
        assert rig.phase("m") is Phase.DRAINING
        (running,) = rig.switcher._group.running
        assert rig.switcher._decider._placer.replan(running, ["l", "i"])
        await trio.sleep(1)
        assert rig.awake == {"m", "t"}
        assert (rig.hooks.stands["l"], rig.hooks.stands["i"]) == ("stopped", "asleep")


# ---- The end ----


async def until_stopped(rig: SharedRig) -> None:
    """Stop the switcher, wait until it has ended, and put all models to sleep."""
    rig.switcher.stop()
    await trio.testing.wait_all_tasks_blocked()
    await rig.switcher.put_to_sleep()
    assert not rig.hooks.awake
    assert not [model for model in rig.switcher.models.values() if model.holds_gpu]


async def test_at_the_end_others_are_stopped_for_what_a_model_needs_asleep(
    autojump_clock: MockClock,
) -> None:
    needs = {name: Needs.of((40, 0), (0, 40)) for name in ("a", "v")}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs), traits={"a": Traits(stops=True)})
    rig.hooks.stands["a"] = "stopped"
    async with rig.running():
        for model in "va":
            await rig.ask(model)
        await rig.switcher.put_model_to_sleep("a")
        assert rig.hooks.stands == {"a": "asleep", "v": "awake"}
        await until_stopped(rig)
        assert rig.hooks.stands == {"a": "stopped", "v": "asleep"}


async def test_at_the_end_models_sleep_first_that_make_room(autojump_clock: MockClock) -> None:
    needs = {"a": Needs.of((40, 0), (0, 40)), "b": Needs.of((40, 30))}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs))
    async with rig.running():
        for model in "ab":
            await rig.ask(model)
        assert rig.awake == {"a", "b"}
        await until_stopped(rig)


async def test_at_the_end_a_model_may_be_removed(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, b=40))
    removed: list[str] = []
    async with rig.running():
        for model in "ab":
            await rig.ask(model)
        rig.switcher.stop()
        rig.switcher.remove("a", lambda: removed.append("a"))
        await until_stopped(rig)
    assert removed == ["a"]


# ---- Memory of models that sleep ----


async def test_after_a_reload_a_model_without_a_stop_hook_is_known_to_need_memory_asleep(
    autojump_clock: MockClock,
) -> None:
    def config(**hooks: str) -> Config:
        a = {"needs": {"gpu": 60}, "needs_asleep": {"ram": 40}, **hooks}
        resources = {"gpu": 80, "ram": 60}
        return config_of({"a": a, "b": {"needs": {"gpu": 60}}}, resources=resources)

    storm = Storm(config(stop="x"), StormHooks())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storm.board.run)
        await storm.ask("a", 0)
        storm.reload(config())
        await trio.sleep(1)
        assert storm.switcher.models["a"].phase is Phase.ASLEEP
        assert storm.switcher.room.memory.needs["a"].asleep == (0, 40)
        nursery.cancel_scope.cancel()


def test_a_model_that_leaves_the_config_takes_up_no_turn_of_others_while_it_sleeps() -> None:
    room = Room(RepeatedEvent())
    before = shared({"gpu": 80, "ram": 60}, {"a": Needs.of((60, 0), (0, 40))})
    room.use(before, ["a"], lambda _model: False)
    alone = Memory(("#alone",), (2,), {"b": Needs.of((2,))})
    after = GroupMemory(alone, {"b": frozenset({"#alone"})}, overlapping_hooks=False)
    room.use(after, ["a", "b"], lambda _model: False)
    assert room.ledger.free == (2,)
    room.ledger.find("a")
    assert room.ledger.free == (1,)


async def test_a_failed_cold_start_takes_no_memory_asleep_that_there_is_not(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "a": Needs.of((40, 0), (0, 50)),
        "b": Needs.of((40, 60)),
    }
    rig = SharedRig(
        shared({"gpu": 80, "ram": 100}, needs),
        traits={"a": Traits(stops=True)},
        failing={("a", "wake"): 1},
    )
    async with rig.running():
        await rig.ask("b")
        assert rig.hooks.calls[0] == ("a", "stop")
        with pytest.raises(HookError):
            await rig.ask("a")
        await trio.sleep(1)
        assert rig.hooks.stands["a"] == "stopped"


async def test_a_target_is_stopped_itself_where_its_memory_is_needed(
    autojump_clock: MockClock,
) -> None:
    needs = {"a": Needs.of((80, 0), (0, 50)), "v": Needs.of((80, 0), (0, 50))}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs), traits={"a": Traits(stops=True)})
    rig.hooks.stands["a"] = "stopped"
    async with rig.running():
        await trio.sleep(1)
        await rig.ask("v")
        rig.switcher.room.ledger.slept("a")
        rig.hooks.stands["a"] = "asleep"
        await rig.ask("a")
        await rig.ask("v")
    assert rig.awake == {"v"}


async def test_a_model_leaves_to_make_room_for_what_another_needs_asleep(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "t": Needs.of((80, 0)),
        "v": Needs.of((80, 0), (0, 60)),
        "w": Needs.of((0, 60)),
        "x": Needs.of((0, 60)),
    }
    rig = SharedRig(shared({"gpu": 80, "ram": 130}, needs), max_wait_secs=10)
    async with rig.running():
        for model in "vwx":
            await rig.ask(model)
        assert rig.awake == {"v", "w", "x"}
        await rig.ask("t")
        assert rig.awake == {"t", "x"}


async def test_other_victims_may_need_other_stops(autojump_clock: MockClock) -> None:
    """While `x` drains, `i` becomes idle; but what `i` needs asleep is held by `s`."""
    needs = {
        "x": Needs.of((50, 0)),
        "i": Needs.of((50, 0), (0, 50)),
        "s": Needs.of((10, 0), (0, 50)),
        "t": Needs.of((50, 0)),
    }
    rig = SharedRig(
        shared({"gpu": 100, "ram": 60}, needs),
        traits={"s": Traits(stops=True)},
        max_wait_secs=5,
    )
    rig.hooks.stands["s"] = "stopped"
    async with rig.running() as requests:
        await trio.sleep(1)
        requests.start_soon(rig.ask, "x", 400)
        requests.start_soon(rig.ask, "i", 60)
        await trio.sleep(1)
        rig.switcher.room.ledger.slept("s")
        rig.hooks.stands["s"] = "asleep"
        requests.start_soon(rig.ask, "t")
        await trio.sleep(20)
        assert {rig.phase("x"), rig.phase("i")} == {Phase.DRAINING, Phase.AWAKE}
        await trio.sleep(200)
        assert rig.phase("t") is Phase.AWAKE


async def test_a_victim_that_stays_after_all_serves_those_in_its_line(
    autojump_clock: MockClock,
) -> None:
    """It has drained, and waits for its lane, when the sleep of another victim fails."""
    needs = {
        "chat": Needs.of((60, 0)),
        "code": Needs.of((0, 40)),
        "slow": Needs.of((0, 40)),
        "t": Needs.of((80, 40)),
    }
    rig = SharedRig(
        shared({"gpu0": 80, "gpu1": 80}, needs),
        verifiers={"chat"},
        failing={("chat", "verify_asleep"): 2},
        seconds={("chat", "sleep"): 5, ("slow", "wake"): 60},
    )

    async def force() -> None:
        with pytest.raises(HookError):
            await rig.switcher.force_switch("t")

    async with rig.running() as requests:
        await rig.ask("chat")
        await rig.ask("code")
        requests.start_soon(rig.ask, "slow")
        await trio.sleep(1)
        requests.start_soon(force)
        await trio.sleep(1)
        assert rig.phase("code") is Phase.DRAINING
        assert await rig.ask("code") < 15


async def test_a_victim_that_waits_for_its_lane_admits_nobody(autojump_clock: MockClock) -> None:
    needs = {"code": Needs.of((40,)), "slow": Needs.of((40,)), "t": Needs.of((40,))}
    rig = SharedRig(shared({"gpu": 80}, needs), seconds={("slow", "wake"): 60})
    async with rig.running() as requests:
        await rig.ask("code")
        requests.start_soon(rig.ask, "slow")
        await trio.sleep(1)
        requests.start_soon(rig.switcher.force_switch, "t")
        await trio.sleep(1)
        assert rig.phase("code") is Phase.DRAINING
        requests.start_soon(rig.ask, "code", 100)
        await trio.sleep(30)
        assert not rig.hooks.inside.get("code")


async def test_at_the_end_a_stop_that_fails_keeps_no_model_awake(
    autojump_clock: MockClock,
) -> None:
    needs = {name: Needs.of((40, 0), (0, 40)) for name in ("a", "v")}
    traits = {name: Traits(stops=True) for name in needs}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs), traits=traits)
    rig.hooks.stands["a"] = rig.hooks.stands["v"] = "stopped"
    async with rig.running():
        for model in "va":
            await rig.ask(model)
        await rig.switcher.put_model_to_sleep("a")
        assert rig.hooks.stands == {"a": "asleep", "v": "awake"}
        rig.hooks.failing["a", "stop"] = 1
        await until_stopped(rig)
        assert rig.hooks.stands == {"a": "asleep", "v": "stopped"}
