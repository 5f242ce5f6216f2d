"""Several models awake at once within shared memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llmux.errors import HookError, NoRoom, Pinned
from llmux.observe.schemas import Pin
from llmux.policy.room import Needs
from llmux.switching.awake import AwakeRecord
from llmux.switching.idle import IdleRules
from llmux.switching.ledger import Hold
from llmux.switching.model import Phase, Traits
from tests.sharing import SharedRig, gpu, shared

TWO_GPUS = shared(
    {"gpu0": 80, "gpu1": 80},
    {
        "chat": Needs.of((60, 0)),
        "embed": Needs.of((4, 0)),
        "code": Needs.of((0, 60)),
        "big": Needs.of((80, 80)),
    },
)


def kept(*names: str) -> dict[str, Traits]:
    return {name: Traits(is_kept=True) for name in names}


# ---- Side by side ----


async def test_models_that_fit_are_awake_together(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, chat=60, embed=4, rerank=4))
    async with rig.running():
        for model in ("chat", "embed", "rerank"):
            await rig.ask(model)
        assert rig.awake == {"chat", "embed", "rerank"}
        assert rig.hooks.calls == [("chat", "wake"), ("embed", "wake"), ("rerank", "wake")]
        assert rig.switcher.room.ledger.free == (12,)


async def test_a_wake_that_fits_does_not_wait_for_a_drain(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(100, a=60, b=60, small=30), seconds={("small", "wake"): 3})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 1000)
        await trio.sleep(1)
        requests.start_soon(rig.switcher.force_switch, "b")
        await trio.sleep(1)
        assert rig.phase("a") is Phase.DRAINING
        assert await rig.ask("small") == 3
        assert rig.phase("a") is Phase.DRAINING
    assert rig.awake == {"b", "small"}


async def test_hooks_on_different_resources_overlap(autojump_clock: MockClock) -> None:
    seconds = {("chat", "wake"): 10, ("code", "wake"): 10}
    rig = SharedRig(TWO_GPUS, seconds=seconds)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "chat")
        requests.start_soon(rig.ask, "code")
        await trio.sleep(10.5)
        assert rig.awake == {"chat", "code"}
    assert rig.hooks.overlapped == 2


async def test_hooks_on_one_resource_take_turns_in_the_order_of_their_switches(
    autojump_clock: MockClock,
) -> None:
    seconds = {("chat", "wake"): 10, ("embed", "wake"): 10}
    rig = SharedRig(TWO_GPUS, seconds=seconds)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "chat")
        await trio.sleep(1)
        assert await rig.ask("embed") == 19
    assert rig.hooks.overlapped == 1


async def test_hooks_on_one_resource_overlap_where_the_user_says_so(
    autojump_clock: MockClock,
) -> None:
    memory = shared(
        {"gpu": 80}, {"a": Needs.of((40,)), "b": Needs.of((40,))}, overlapping_hooks=True
    )
    rig = SharedRig(memory, seconds={("a", "wake"): 10, ("b", "wake"): 10})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a")
        await trio.sleep(1)
        assert await rig.ask("b") == 10


async def test_a_model_over_two_resources_evicts_all_in_its_way_and_drains_them_together(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(TWO_GPUS)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "chat", 100)
        requests.start_soon(rig.ask, "code", 100)
        await trio.lowlevel.checkpoint()
        await rig.ask("embed")
        began_at = trio.current_time()
        await rig.ask("big")
        # One after the other they would take longer than the bound and one drain.
        assert trio.current_time() - began_at <= 100
        assert rig.awake == {"big"}
    calls = rig.hooks.calls
    assert set(calls[3:6]) == {
        ("chat", "sleep"),
        ("embed", "sleep"),
        ("code", "sleep"),
    }


async def test_memory_that_is_freed_for_one_goes_to_nobody_else(autojump_clock: MockClock) -> None:
    seconds = {("a", "sleep"): 30, ("b", "sleep"): 30}
    rig = SharedRig(gpu(80, a=40, b=40, big=80, small=20), seconds=seconds)
    waited_s: list[float] = []

    async def ask(model: str) -> None:
        waited_s.append(await rig.ask(model))

    async with rig.running() as requests:
        await rig.ask("a")
        await rig.ask("b")
        requests.start_soon(rig.switcher.force_switch, "big")
        await trio.sleep(40)
        assert rig.switcher.room.ledger.free == (40,)
        requests.start_soon(ask, "small")
        await trio.sleep(15)
        assert waited_s == []
        await trio.sleep(10)
        assert ("big", "wake") in rig.hooks.calls
    order = [call for call in rig.hooks.calls if call[1] == "wake"]
    assert order.index(("big", "wake")) < order.index(("small", "wake"))


async def test_one_that_is_kept_is_not_evicted_but_by_an_operator(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, embed=30, a=40, b=40), traits=kept("embed"))
    async with rig.running():
        await rig.ask("embed")
        await rig.ask("a")
        await trio.sleep(1000)
        await rig.ask("b")
        assert rig.awake == {"embed", "b"}
        await rig.switcher.force_switch("a")
        assert rig.awake == {"embed", "a"}
        await rig.switcher.put_model_to_sleep("embed")
        assert rig.awake == {"a"}


async def test_an_operator_evicts_kept_models_where_there_is_no_other_way(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, embed=30, big=80), traits=kept("embed"))
    async with rig.running() as requests:
        await rig.ask("embed")
        with trio.move_on_after(10_000) as patience:
            await rig.ask("big")
        assert patience.cancelled_caught
        await rig.switcher.force_switch("big")
        assert rig.awake == {"big"}
        requests.start_soon(rig.ask, "embed")
    assert rig.awake == {"embed"}


# ---- Drains that are called off ----


async def test_a_drain_is_called_off_when_an_idle_model_makes_room(
    autojump_clock: MockClock,
) -> None:
    seconds = {(model, hook): 1 for model in "abc" for hook in ("wake", "sleep")}
    rig = SharedRig(gpu(80, a=40, b=40, c=40), seconds=seconds)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 400)
        requests.start_soon(rig.ask, "b", 60)
        await trio.sleep(5)
        requests.start_soon(rig.ask, "c")
        await trio.sleep(50)
        draining = {m for m in "ab" if rig.phase(m) is Phase.DRAINING}
        assert draining == {"a"} or draining == {"b"} or not draining
        await trio.sleep(20)
        assert rig.phase("c") is Phase.AWAKE
        assert rig.phase("a") is Phase.AWAKE  # never slept, whatever was chosen first
    assert ("a", "sleep") not in rig.hooks.calls


# ---- Failures ----


async def test_a_failed_wake_sleeps_before_anything_else_wakes_there(
    autojump_clock: MockClock,
) -> None:
    seconds = {("a", "sleep"): 20, ("a", "wake"): 5, ("b", "wake"): 1}
    rig = SharedRig(gpu(80, a=40, b=40), seconds=seconds, failing={("a", "wake"): 1})

    async def ask_in_vain() -> None:
        with pytest.raises(HookError):
            await rig.ask("a")

    async with rig.running() as requests:
        requests.start_soon(ask_in_vain)
        await trio.sleep(1)
        assert await rig.ask("b") == 25
    assert rig.hooks.calls == [("a", "wake"), ("a", "sleep"), ("b", "wake")]


async def test_a_model_whose_sleep_failed_is_put_to_sleep_before_another_wakes(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, a=40, b=50, c=40), verifiers={"a"}, failing={("a", "verify_asleep"): 2})
    async with rig.running():
        await rig.ask("a")
        with pytest.raises(HookError):
            await rig.switcher.put_model_to_sleep("a")
        assert rig.phase("a") is Phase.FAILED
        assert rig.switcher.room.ledger.hold("a") is Hold.FALLING
        await rig.ask("b")
        assert rig.phase("a") is Phase.ASLEEP
        assert rig.awake == {"b"}


async def test_one_failed_sleep_lets_the_others_of_its_switch_stay(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(TWO_GPUS, verifiers={"chat"}, failing={("chat", "verify_asleep"): 2})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "code", 500)
        await rig.ask("chat")
        with pytest.raises(HookError):
            await rig.switcher.force_switch("big")
        assert rig.phase("code") is Phase.AWAKE
        assert rig.phase("chat") is Phase.FAILED
        assert not rig.switcher.switches
        await rig.ask("code")


# ---- Memory for sleeping models ----


def with_ram(ram: int, **stops: bool) -> SharedRig:
    memory = shared(
        {"gpu": 80, "ram": ram},
        {name: Needs.of((60, 0), (0, 50)) for name in ("a", "b", "c")},
    )
    return SharedRig(memory, traits={name: Traits(stops=does) for name, does in stops.items()})


async def test_models_sleep_in_ram_as_long_as_there_is_some(autojump_clock: MockClock) -> None:
    rig = with_ram(200, a=True, b=True, c=True)
    async with rig.running():
        for model in "abcabc":
            await rig.ask(model)
    assert not [call for call in rig.hooks.calls if call[1] == "stop"]


async def test_where_ram_is_short_the_model_used_least_recently_is_stopped(
    autojump_clock: MockClock,
) -> None:
    rig = with_ram(120, a=True, b=True, c=True)  # for two of three
    rig.hooks.stands["a"] = "stopped"  # not started yet
    async with rig.running():
        await trio.sleep(1)
        assert rig.hooks.calls == [("a", "stop")]
        for model in "abc":
            await rig.ask(model)
            assert rig.hooks.awake == {model}
        assert rig.hooks.calls[1:] == [
            ("a", "wake"),
            ("c", "stop"),
            ("a", "sleep"),
            ("b", "wake"),
            ("b", "sleep"),
            ("c", "wake"),
        ]


async def test_where_nothing_else_can_be_stopped_the_evicted_model_is(
    autojump_clock: MockClock,
) -> None:
    rig = with_ram(120, a=True, b=False, c=False)
    rig.hooks.stands["a"] = "stopped"
    async with rig.running():
        await rig.ask("a")
        await rig.ask("b")
    assert rig.hooks.calls == [("a", "stop"), ("a", "wake"), ("a", "stop"), ("b", "wake")]


# ---- Operators ----


async def test_several_models_are_pinned_at_a_time(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, b=40, c=40, d=10))
    async with rig.running():
        await rig.switcher.pin(Pin(model="a", wait=False))
        await rig.switcher.pin(Pin(model="b", wait=False))
        assert [pin.model for pin in rig.switcher.pins] == ["b", "a"]
        with pytest.raises(Pinned):
            await rig.ask("c")
        await rig.switcher.pin(Pin(model="c", wait=False))  # displaces one: only two fit
        assert [pin.model for pin in rig.switcher.pins] == ["c", "b"]
        with pytest.raises(Pinned):
            await rig.ask("a")
        rig.switcher.unpin()
        await rig.ask("a")


async def test_what_fits_beside_the_pinned_models_is_served(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, b=40, c=30))
    async with rig.running():
        await rig.switcher.pin(Pin(model="a", wait=False))
        for model in "bcbcb":
            await rig.ask(model)
            assert "a" in rig.awake
    assert ("a", "sleep") not in rig.hooks.calls


async def test_a_pin_that_cannot_be_had_gives_back_those_that_it_displaced(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, a=40, b=40, c=80), failing={("c", "wake"): -1})
    async with rig.running():
        await rig.switcher.pin(Pin(model="a", wait=False))
        await rig.switcher.pin(Pin(model="b", wait=False))
        with pytest.raises(HookError):
            await rig.switcher.pin(Pin(model="c", wait=False))
        await trio.sleep(1)
        assert rig.awake == {"a", "b"}
        assert {pin.model for pin in rig.switcher.pins} == {"a", "b"}


async def test_an_operator_is_told_that_there_is_no_room(autojump_clock: MockClock) -> None:
    memory = shared(
        {"gpu": 80, "ram": 60},
        {
            "a": Needs.of((40, 0), (0, 60)),
            "b": Needs.of((40, 60)),
        },
    )
    rig = SharedRig(memory)
    async with rig.running():
        with pytest.raises(NoRoom):
            await rig.switcher.force_switch("b")
        await rig.ask("a")


async def test_manual_mode_keeps_everything_as_it_is(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, b=40, c=40))
    async with rig.running():
        await rig.ask("a")
        rig.switcher.set_mode("manual")
        await rig.switcher.force_switch("b")
        assert rig.awake == {"a", "b"}
        await rig.ask("a")
        await rig.switcher.force_switch("c")
        assert "c" in rig.awake
        assert len(rig.awake) == 2


# ---- Idle rules ----


async def test_each_model_that_is_idle_sleeps_by_itself(autojump_clock: MockClock) -> None:
    traits = {"a": Traits(idle_sleep_s=100), "b": Traits(idle_sleep_s=300)}
    rig = SharedRig(gpu(80, a=40, b=40), traits=traits)
    async with rig.running() as requests:
        await rig.ask("a")
        await rig.ask("b")
        requests.start_soon(rig.ask, "b", 1000)
        await trio.sleep(101)
        assert rig.awake == {"b"}
        await trio.sleep(1000)
        assert rig.awake == {"b"}
        await trio.sleep(250)
        assert rig.awake == set()


async def test_a_standby_is_woken_beside_what_is_awake(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, s=40), idle_rules=IdleRules("s", 60.0))
    async with rig.running():
        await rig.ask("a")
        await trio.sleep(61)
        assert rig.awake == {"a", "s"}


# ---- Reloads and restarts ----


async def test_after_a_reload_with_less_memory_what_does_not_fit_sleeps(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, a=40, b=40))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 50)
        await rig.ask("b")
        rig.use(gpu(60, a=40, b=40))
        await trio.sleep(1)
        assert rig.awake == {"a"}
        await rig.ask("b")
        assert rig.awake == {"b"}


async def test_a_switch_for_which_a_reload_leaves_no_room_is_abandoned(
    autojump_clock: MockClock,
) -> None:
    rig = SharedRig(gpu(80, a=40, b=80))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 500)
        await trio.sleep(1)

        async def force() -> None:
            with pytest.raises(NoRoom):
                await rig.switcher.force_switch("b")

        requests.start_soon(force)
        await trio.sleep(1)
        assert rig.phase("a") is Phase.DRAINING
        rig.use(gpu(60, a=40, b=80))
        await trio.sleep(1)
        assert rig.phase("a") is Phase.AWAKE
        await rig.ask("a")


async def test_after_a_restart_what_fits_is_adopted_and_the_rest_sleeps(
    autojump_clock: MockClock,
) -> None:
    record = AwakeRecord(None)
    for name in ("a", "b", "c"):
        record.note(name, "awake")
    rig = SharedRig(gpu(80, a=40, b=40, c=40), record=record)
    rig.hooks.awake = {"a", "b", "c"}
    async with rig.running():
        await trio.sleep(1)
        assert rig.awake == {"a", "b"}
        assert rig.hooks.calls[-1] == ("c", "sleep")
        assert rig.switcher.room.ledger.free == (0,)
        await rig.ask("c")


async def test_health_checks_look_at_every_model_that_is_awake(autojump_clock: MockClock) -> None:
    rig = SharedRig(gpu(80, a=40, b=40), alive_interval_secs=10, alive_failures=1)
    async with rig.running() as requests:
        requests.start_soon(rig.switcher.health.watch)
        await rig.ask("a")
        await rig.ask("b")
        rig.hooks.awake.discard("b")
        await trio.sleep(11)
        assert rig.awake == {"a"}
        assert rig.phase("b") is Phase.ASLEEP
        await rig.ask("b")
        requests.cancel_scope.cancel()


# ---- Places to work ----


def with_places(busy: int, **needs: int) -> SharedRig:
    rig = SharedRig(gpu(80, **needs))
    rig.switcher.use_memory(rig.memory, busy)
    return rig


async def test_no_more_models_are_at_work_than_the_user_wants(autojump_clock: MockClock) -> None:
    rig = with_places(2, a=20, b=20, c=20, d=20)
    most = 0
    async with rig.running() as requests:
        for turn in range(3):
            for model in "abcd":
                requests.start_soon(rig.ask, model, 5 + turn)
        while any(model.waiters.count for model in rig.switcher.models.values()) or not most:
            await trio.sleep(0.5)
            most = max(most, sum(count > 0 for count in rig.hooks.inside.values()))
    assert most == 2
    assert rig.awake == {"a", "b", "c", "d"}
    assert rig.hooks.served == {"a": 3, "b": 3, "c": 3, "d": 3}


async def test_a_model_that_is_always_at_work_gives_way_to_an_older_request(
    autojump_clock: MockClock,
) -> None:
    rig = with_places(1, a=40, b=40)

    async def keep_busy() -> None:
        for _ in range(20):
            requests.start_soon(rig.ask, "a", 10)
            await trio.sleep(5)

    async with rig.running() as requests:
        await rig.ask("b")
        requests.start_soon(keep_busy)
        await trio.sleep(21)
        assert await rig.ask("b", 1) <= 20  # one request long, and what is in flight then
        assert rig.awake == {"a", "b"}


async def test_a_place_that_a_client_waited_for_and_left_is_given_on(
    autojump_clock: MockClock,
) -> None:
    rig = with_places(1, a=40, b=40)
    async with rig.running() as requests:
        await rig.ask("b")
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        with trio.move_on_after(5):
            await rig.ask("b")
        assert await rig.ask("a", 1) == 0


async def test_a_limit_that_is_lifted_lets_all_lines_in(autojump_clock: MockClock) -> None:
    rig = with_places(1, a=40, b=40)
    async with rig.running() as requests:
        await rig.ask("b")
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b", 100)
        await trio.sleep(1)
        assert not rig.hooks.inside.get("b")
        rig.switcher.use_memory(rig.memory)
        await trio.sleep(1)
        assert rig.hooks.inside["b"] == 1


async def test_a_model_without_a_place_has_its_line_served_before_it_is_evicted(
    autojump_clock: MockClock,
) -> None:
    rig = with_places(1, a=40, b=40, big=80)
    async with rig.running() as requests:
        await rig.ask("a")
        await rig.ask("b")
        requests.start_soon(rig.ask, "a", 20)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b", 5)
        await trio.sleep(1)
        await rig.switcher.force_switch("big")
        assert rig.hooks.served == {"a": 2, "b": 2}


async def test_the_wake_after_a_stop_is_measured_by_itself(autojump_clock: MockClock) -> None:
    rig = with_ram(120, a=True, b=False, c=False)
    rig.hooks.stands["a"] = "stopped"
    rig.hooks.seconds = {("a", "wake"): 30, ("b", "wake"): 2}
    async with rig.running():
        for model in "aba":
            await rig.ask(model)
    measures = rig.switcher.measures
    assert measures.usual_wake_s("a", is_stopped=True) == 30
    assert measures.usual_wake_s("b") == 2


async def test_a_model_that_freezes_its_requests_is_not_stopped(autojump_clock: MockClock) -> None:
    needs = {"a": Needs.of((60, 0), (0, 50)), "b": Needs.of((60, 0)), "c": Needs.of((0, 60))}
    rig = SharedRig(
        shared({"gpu": 80, "ram": 100}, needs),
        traits={"a": Traits(preserves_in_flight=True, stops=True)},
        max_wait_secs=5,
    )
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 50)
        await trio.sleep(1)
        await rig.ask("c")
        await rig.ask("b")  # for what a needs asleep, c has to leave
        assert rig.awake == {"b"}
    assert not [call for call in rig.hooks.calls if call[1] == "stop"]


async def test_a_model_that_is_adopted_serves_while_others_are_looked_at(
    autojump_clock: MockClock,
) -> None:
    record = AwakeRecord(None)
    for name in ("a", "b"):
        record.note(name, "awake")
    rig = SharedRig(gpu(80, a=40, b=40), record=record, seconds={("b", "alive"): 10})
    rig.hooks.awake = {"a", "b"}
    rig.hooks.stands |= dict.fromkeys("ab", "awake")
    async with rig.running():
        assert await rig.ask("a") < 1
        assert await rig.ask("b") == 10
