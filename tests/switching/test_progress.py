"""Whether a switcher goes on: long waits do, and what nothing will end does not."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_util import RepeatedEvent

from llmux.switching.awake import AwakeRecord
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks, Rig

ANSWER_S = 3600.0


async def looks(rig: Rig, times: int = 3, apart_s: float = 10) -> list[str]:
    """What some looks in a row have found."""
    found = []
    for _ in range(times):
        found.append(rig.switcher.progress.look())
        await trio.sleep(apart_s)
        await wait_all_tasks_blocked()
    return found


async def test_a_switcher_with_nothing_to_do_goes_on(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running():
        assert await looks(rig) == [""] * 3


async def test_a_hook_of_minutes_and_a_long_drain_go_on(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 500.0}, timeouts={("a", "wake"): 600.0}))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", ANSWER_S)
        assert await looks(rig, 40) == [""] * 40
        assert rig.switcher.models["a"].phase.value == "waking"
        await trio.sleep(200)
        requests.start_soon(rig.ask, "b")
        assert await looks(rig, 40) == [""] * 40
        assert rig.switcher.models["a"].phase.value == "draining"


async def test_a_takeover_goes_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    record = AwakeRecord(tmp_path / "awake.json")
    record.load(["a"])
    record.note("a", "awake")
    rig = Rig(["a"], hooks=FakeHooks(gates={("a", "alive"): trio.Event()}), record=record)
    async with rig.running():
        assert await looks(rig) == [""] * 3
        assert rig.hooks.calls == [("a", "alive")]
        rig.hooks.awake.add("a")
        rig.hooks.gates[("a", "alive")].set()
        assert await looks(rig) == [""] * 3
        assert rig.switcher.models["a"].is_awake


async def test_a_switcher_that_stops_goes_on(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 500.0}))
    async with rig.running() as requests:
        requests.start_soon(ask_in_vain, rig)
        await wait_all_tasks_blocked()
        rig.switcher.stop()
        assert await looks(rig) == [""] * 3


async def ask_in_vain(rig: Rig) -> None:
    try:
        await rig.ask("a")
    except Exception:
        return
    raise AssertionError("it was served")


async def test_a_hook_that_cannot_be_ended_does_not(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(gates={("a", "wake"): trio.Event()}, timeouts={("a", "wake"): 600.0})
    rig = Rig(hooks=hooks)
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a")
        await trio.sleep(650)
        assert await looks(rig) == ["", "", "a hook cannot be ended"]
        hooks.gates[("a", "wake")].set()
        assert (await looks(rig))[1:] == ["", ""]


class Deaf(RepeatedEvent):  # type: ignore[misc]
    """An event whose changes reach nobody."""

    def set(self) -> None:
        pass


async def test_a_loop_that_does_not_come_round_does_not(autojump_clock: MockClock) -> None:
    rig = Rig()
    group = rig.switcher._group
    heard, group.changed = group.changed, Deaf()
    async with rig.running():
        await wait_all_tasks_blocked()
        assert await looks(rig) == ["", *["its loop does not come round"] * 2]
        deaf, group.changed = group.changed, heard
        super(Deaf, deaf).set()
        await wait_all_tasks_blocked()
        assert await looks(rig) == [""] * 3


async def test_a_request_that_was_let_in_and_does_not_begin_does_not(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    waiters = rig.switcher.models["a"].waiters
    async with rig.running():
        with waiters.join():
            waiters.let_in()
            assert await looks(rig) == ["", *["a request that was let in does not begin"] * 2]
        assert await looks(rig) == [""] * 3
        for _ in range(3):  # each look finds another one
            with waiters.join():
                waiters.let_in()
                assert rig.switcher.progress.look() == ""
                await wait_all_tasks_blocked()


async def test_one_that_has_died_does_not(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(gates={("a", "wake"): trio.Event()}, timeouts={("a", "wake"): 1.0}))
    async with rig.running() as requests:
        requests.start_soon(ask_in_vain, rig)
        await trio.sleep(70)
        assert rig.switcher.die_if_stuck()
        assert rig.switcher.progress.look() == "it has died"
        rig.hooks.gates[("a", "wake")].set()


def test_the_board_names_the_group() -> None:
    class Stuck:
        def __init__(self, why: str) -> None:
            self.look = lambda: why

    class Group:
        def __init__(self, why: str) -> None:
            self.progress = Stuck(why)

    class Board:
        _is_stopped = False
        groups = {"one": Group(""), "two": Group("it has died")}  # noqa: RUF012

    board = Board()
    look = Switchboard.standing_still
    assert look(board) == ["the switcher of two: it has died"]  # type: ignore[arg-type]
    board._is_stopped = True
    assert look(board) == []  # type: ignore[arg-type]
