"""A model that falls asleep unforeseen is stopped if there is not enough for what it needs asleep."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import HookError
from llmux.policy.room import Needs
from llmux.switching.awake import AwakeRecord
from llmux.switching.ledger import Hold
from llmux.switching.model import Phase, Traits
from tests.sharing import SharedRig, shared


def one_sleeper() -> SharedRig:
    """Two models that fit together, and RAM for one that sleeps."""
    needs = {name: Needs.of((40, 0), (0, 20)) for name in ("a", "b")}
    memory = shared({"gpu": 80, "ram": 30}, needs)
    rig = SharedRig(memory, traits={name: Traits(stops=True) for name in needs})
    rig.hooks.stands["a"] = "stopped"  # not started yet
    return rig


async def test_after_a_failed_wake(autojump_clock: MockClock) -> None:
    rig = one_sleeper()
    rig.hooks.failing["a", "wake"] = 1
    async with rig.running():
        await wait_all_tasks_blocked()
        assert rig.switcher.room.ledger.hold("a") is Hold.STOPPED
        with pytest.raises(HookError):
            await rig.ask("a")
        await wait_all_tasks_blocked()
        assert rig.switcher.room.ledger.hold("a") is Hold.STOPPED
        assert rig.switcher.room.ledger.hold("b") is Hold.ASLEEP
        await rig.ask("a")
        await rig.ask("b")
    hooks = ["stop", "wake", "stop", "wake"]
    assert rig.hooks.calls == [*(("a", hook) for hook in hooks), ("b", "wake")]


async def test_after_a_wake_that_nobody_wants_any_more(autojump_clock: MockClock) -> None:
    rig = one_sleeper()
    rig.hooks.seconds = {("a", "wake"): 100}
    rig.switcher.models["a"].abandons_wakes = True
    async with rig.running():
        await wait_all_tasks_blocked()
        with trio.move_on_after(5):
            await rig.ask("a")
        await trio.sleep(10)
        assert rig.switcher.room.ledger.hold("a") is Hold.STOPPED
    assert rig.hooks.calls == [("a", "stop"), ("a", "wake"), ("a", "stop")]


@pytest.mark.parametrize("fails", [0, 1])
async def test_when_it_is_down_and_the_stop_of_another_takes_long(
    autojump_clock: MockClock, fails: int
) -> None:
    # Their hooks touch different resources, so that neither waits for the other's lane.
    needs = {"a": Needs.of((40, 0, 0), (0, 0, 20)), "b": Needs.of((0, 40, 0), (0, 0, 20))}
    memory = shared({"gpu0": 40, "gpu1": 40, "ram": 30}, needs)
    rig = SharedRig(memory, traits={name: Traits(stops=True) for name in needs})
    rig.hooks.stands["a"] = "stopped"
    async with trio.open_nursery() as beside, rig.running():
        beside.start_soon(rig.switcher.health.watch)
        await wait_all_tasks_blocked()
        await rig.ask("a")
        rig.hooks.seconds = {("b", "stop"): 10}
        rig.hooks.failing |= {("a", "alive"): -1, ("b", "stop"): fails}
        await trio.sleep(1000)
        assert rig.switcher.models["a"].phase is Phase.ASLEEP
        beside.cancel_scope.cancel()


async def test_after_two_failed_wakes_at_a_time(autojump_clock: MockClock) -> None:
    needs = {"a": Needs.of((40, 0, 0), (0, 0, 20)), "b": Needs.of((0, 40, 0), (0, 0, 20))}
    memory = shared({"gpu0": 40, "gpu1": 40, "ram": 30}, needs)
    rig = SharedRig(
        memory,
        traits={name: Traits(stops=True) for name in needs},
        seconds={(name, "sleep"): 10 for name in needs},
        failing={(name, "wake"): 1 for name in needs},
    )
    rig.hooks.stands |= {"a": "stopped", "b": "stopped"}
    async with rig.running() as tasks:
        await wait_all_tasks_blocked()
        ledger = rig.switcher.room.ledger
        await rig.switcher.put_model_to_sleep("b")
        ledger.stopped("b")  # both are stopped, as after a time in which others slept
        for name in needs:
            tasks.start_soon(refused, rig, name)
        await trio.sleep(50)
        assert {ledger.hold(name) for name in needs} == {Hold.STOPPED, Hold.ASLEEP}


def restarted(folder: Path, **stands: str) -> SharedRig:
    """Return a rig with two models of which the record says nothing for certain.

    Args:
        folder: Where the record is.
        stands: What each model really holds: "awake" or "asleep".
    """
    needs = {"a": Needs.of((40, 0, 0), (0, 0, 20)), "b": Needs.of((0, 40, 0), (0, 0, 20))}
    record = AwakeRecord(folder / "awake.json")
    record.load(needs)
    for name in needs:
        record.note(name, "unsure")
    rig = SharedRig(
        shared({"gpu0": 40, "gpu1": 40, "ram": 30}, needs),
        traits={name: Traits(stops=True) for name in needs},
        seconds={(name, hook): 10 for name in needs for hook in ("sleep", "stop")},
        record=record,
    )
    rig.hooks.awake |= {name for name, held in stands.items() if held == "awake"}
    rig.hooks.stands |= stands
    return rig


@pytest.mark.parametrize(
    ("a", "b"),
    [("awake", "awake"), ("asleep", "awake"), ("awake", "asleep")],
    ids=["none slept", "a slept", "b slept"],
)
async def test_after_a_restart_that_finds_two(
    autojump_clock: MockClock, tmp_path: Path, a: str, b: str
) -> None:
    rig = restarted(tmp_path, a=a, b=b)  # one that slept was killed in its sleep
    async with rig.running():
        await trio.sleep(50)
        ledger = rig.switcher.room.ledger
        assert {ledger.hold(name) for name in "ab"} == {Hold.STOPPED, Hold.ASLEEP}


async def refused(rig: SharedRig, model: str) -> None:
    with pytest.raises(HookError):
        await rig.ask(model)
