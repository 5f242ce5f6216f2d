"""Faults of sharing memory after something was left behind: by a failed hook, a kill, a reload."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmux.errors import HookError
from llmux.policy.room import Memory, Needs
from llmux.switching.awake import AwakeRecord
from llmux.switching.idle import IdleRules
from llmux.switching.memory import GroupMemory
from llmux.switching.model import Phase, Traits
from tests.sharing import SharedRig, gpu, shared


async def test_what_failed_to_sleep_is_retried_if_only_a_set_bars_another(
    autojump_clock: MockClock,
) -> None:
    needs = {"a": Needs.of((40, 0, 1)), "b": Needs.of((0, 40, 1))}
    touches = {"a": frozenset({"gpu0"}), "b": frozenset({"gpu1"})}
    rig = SharedRig(
        shared({"gpu0": 40, "gpu1": 40, "#sets1": 1}, needs, touches),
        verifiers={"a"},
        failing={("a", "verify_asleep"): 2},
    )
    async with rig.running():
        await rig.ask("a")
        with pytest.raises(HookError):
            await rig.ask("b")
        with trio.fail_after(1000):
            await rig.ask("b")


async def test_an_idle_model_sleeps_though_another_has_no_room_to(
    autojump_clock: MockClock,
) -> None:
    needs = {
        "a": Needs.of((40, 0), (0, 20)),
        "b": Needs.of((10, 30)),
        "c": Needs.of((10, 30)),
    }
    rig = SharedRig(
        shared({"gpu": 80, "ram": 60}, needs),
        traits={name: Traits(idle_sleep_s=60) for name in needs},
    )
    async with rig.running():
        for model in "abc":
            await rig.ask(model)
        assert rig.awake == {*"abc"}
        await trio.sleep(1000)
        assert rig.awake == set()


async def test_a_change_is_made_once_there_is_room_for_the_sleep(autojump_clock: MockClock) -> None:
    needs = {
        "a": Needs.of((40, 0), (0, 20)),
        "b": Needs.of((10, 30)),
        "c": Needs.of((10, 30)),
    }
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs))
    done: list[str] = []
    async with rig.running():
        for model in "abc":
            await rig.ask(model)
        rig.switcher.renew("a", lambda: done.append("a"))
        await trio.sleep(1000)
        await rig.switcher.put_model_to_sleep("b")
        await trio.sleep(1000)
        assert done == ["a"]


async def test_after_a_restart_all_sleep_whose_memory_others_need_asleep(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    needs = {
        "a": Needs.of((40, 0), (0, 20)),
        "b": Needs.of((10, 60)),
        "c": Needs.of((10, 60)),
    }
    record = AwakeRecord(tmp_path / "awake.json")
    record.load(needs)
    for name in needs:
        record.note(name, "unsure")
    rig = SharedRig(shared({"gpu": 80, "ram": 80}, needs), record=record)
    rig.hooks.awake |= {"a", "b"}
    rig.hooks.stands |= {"a": "awake", "b": "awake"}
    async with rig.running():
        await trio.sleep(100)
        assert {rig.phase(n) for n in needs} == {Phase.ASLEEP}


async def test_none_wakes_in_memory_that_is_not_there_for_certain(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    needs = {"t": Needs.of((40,), None, (60,)), "m": Needs.of((40,))}
    record = AwakeRecord(tmp_path / "awake.json")
    record.load(needs)
    for name in needs:
        record.note(name, "unsure")
    rig = SharedRig(
        shared({"gpu": 80}, needs, overlapping_hooks=True),
        record=record,
        verifiers={"t"},
        failing={("t", "verify_asleep"): 2},
        seconds={("m", "sleep"): 100},
    )
    rig.hooks.awake |= {"m"}
    rig.hooks.stands |= {"m": "awake"}
    async with rig.running():
        await trio.sleep(10)
        await rig.ask("t")


async def test_a_model_that_leaves_the_config_stays_awake_alone(autojump_clock: MockClock) -> None:
    alone = Memory(("gpu", "#alone"), (80, 2), {"a": Needs.of((40, 1)), "old": Needs.of((0, 2))})
    touches = {"a": frozenset({"gpu"}), "old": frozenset({"gpu", "#alone"})}
    rig = SharedRig(GroupMemory(alone, touches, overlapping_hooks=False))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "old", 1000)
        await trio.sleep(1)
        rig.switcher.remove("old", lambda: rig.hooks.forget("old"))
        rig.hooks.use(gpu(80, a=40), leaving=["old"])
        rig.memory = gpu(80, a=40)
        rig.switcher.use_memory(rig.memory)
        requests.start_soon(rig.ask, "a")
        await trio.sleep(10)
        assert rig.awake < {"a", "old"}


async def test_at_the_end_a_model_sleeps_whose_stop_always_fails(autojump_clock: MockClock) -> None:
    needs = {name: Needs.of((40, 0), (0, 40)) for name in ("a", "v")}
    traits = {"v": Traits(stops=True)}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs), traits=traits)
    rig.hooks.stands["v"] = "stopped"
    async with rig.running():
        for model in "va":
            await rig.ask(model)
        await rig.switcher.put_model_to_sleep("a")
        rig.hooks.failing["v", "stop"] = -1
        rig.hooks.forced.add("v")
        rig.switcher.stop()
        await trio.sleep(1)
        await rig.switcher.put_to_sleep()
        assert rig.phase("v") is Phase.ASLEEP


async def test_why_a_model_could_not_be_put_to_sleep_is_told(autojump_clock: MockClock) -> None:
    needs = {"a": Needs.of((40, 0), (0, 40)), "v": Needs.of((40, 0), (0, 40))}
    rig = SharedRig(shared({"gpu": 80, "ram": 60}, needs), traits={"a": Traits(stops=True)})
    async with rig.running():
        await rig.ask("v")
        await trio.sleep(1)
        rig.hooks.failing["a", "stop"] = -1
        await rig.ask("a")
        await rig.switcher.put_model_to_sleep("a")
        with pytest.raises(HookError):
            await rig.switcher.put_model_to_sleep("v")


async def test_one_that_was_stopped_loses_its_stop_hook(autojump_clock: MockClock) -> None:
    needs = {
        "t": Needs.of((40, 30), (0, 20)),
        "x": Needs.of((10, 35)),
        "y": Needs.of((10, 35), (0, 20)),
    }
    rig = SharedRig(shared({"gpu": 80, "ram": 70}, needs), traits={"t": Traits(stops=True)})
    async with rig.running():
        await trio.sleep(1)
        rig.switcher.room.ledger.stopped("t")
        rig.hooks.stands["t"] = "stopped"
        await rig.ask("x")
        rig.switcher.models["t"].apply(Traits())
        rig.hooks.stoppers.clear()
        rig.use(rig.memory)
        with trio.fail_after(2000):
            await rig.ask("t")


async def test_only_those_are_stopped_that_hold_what_is_lacking(autojump_clock: MockClock) -> None:
    needs = {
        "t": Needs.of((0, 0, 50)),
        "s": Needs.of((40, 0, 0), (10, 0, 0)),
        "r": Needs.of((40, 0, 0), (0, 0, 40)),
    }
    rig = SharedRig(
        shared({"gpu0": 80, "gpu1": 80, "ram": 60}, needs),
        traits={"s": Traits(stops=True), "r": Traits(stops=True)},
    )
    async with rig.running():
        await rig.ask("t")
        assert rig.hooks.calls == [("r", "stop"), ("t", "wake")]


async def test_a_stop_that_always_fails_is_not_tried_all_the_time_for_an_idle_model(
    autojump_clock: MockClock,
) -> None:
    needs = {"a": Needs.of((40, 0), (0, 40)), "v": Needs.of((40, 0), (0, 40))}
    rig = SharedRig(
        shared({"gpu": 80, "ram": 60}, needs),
        traits={"a": Traits(stops=True), "v": Traits(idle_sleep_s=60)},
    )
    async with rig.running():
        await rig.ask("v")
        rig.hooks.failing["a", "stop"] = -1
        await rig.ask("a")
        await rig.switcher.put_model_to_sleep("a")
        await trio.sleep(1000)
        assert 10 < rig.hooks.calls.count(("a", "stop")) < 110
        rig.hooks.failing.clear()
        await trio.sleep(100)
        assert rig.awake == set()


def left_awake(path: Path, *models: str) -> AwakeRecord:
    record = AwakeRecord(path / "awake.json")
    record.load(models)
    for name in models:
        record.note(name, "awake")
    return record


async def test_a_model_is_preloaded_beside_one_that_was_left_awake(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rig = SharedRig(
        gpu(80, a=40, embed=10),
        record=left_awake(tmp_path, "a"),
        idle_rules=IdleRules(preload="embed"),
    )
    rig.hooks.awake |= {"a"}
    rig.hooks.stands |= {"a": "awake"}
    async with rig.running():
        await trio.sleep(100)
        assert rig.awake == {"a", "embed"}


async def test_after_a_restart_with_less_memory_kept_models_stay(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rig = SharedRig(
        gpu(60, a=40, embed=40),
        record=left_awake(tmp_path, "a", "embed"),
        traits={"embed": Traits(is_kept=True)},
    )
    rig.hooks.awake |= {"a", "embed"}
    rig.hooks.stands |= {"a": "awake", "embed": "awake"}
    async with rig.running():
        await trio.sleep(100)
        assert rig.awake == {"embed"}
