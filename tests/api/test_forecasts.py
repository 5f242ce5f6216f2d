"""Forecasts: made on demand, kept for a while, never in the way, and told in `Retry-After`."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.api import forecasts as module
from llmux.api.forecasts import FRESH_S, MOST_SHARE, OUTRUN_S, PATIENCE_S, Forecasts
from llmux.config import PolicyConfig
from llmux.errors import QueueFull
from llmux.policy import (
    AdaptivePolicy,
    Decision,
    FifoPolicy,
    GroupView,
    LookAgain,
    Stay,
    SwitchTo,
)
from llmux.policy.room import Memory, Needs
from llmux.simulate.forecast import Rollout
from llmux.switching.memory import GroupMemory
from tests.fakes import FakeHooks, Rig


def forecasts_of(rig: Rig) -> Forecasts:
    board: Any = SimpleNamespace(groups={"default": rig.switcher})
    return Forecasts(board)


def current(forecasts: Forecasts, model: str) -> float | None:
    """Return the forecast for a model if it is not outdated."""
    made = forecasts._current(model)
    return None if made is None else made.left_s(made.state)


def rig_with(**settings: Any) -> Rig:
    seconds = {("a", "wake"): 8.0, ("a", "sleep"): 2.0, ("b", "wake"): 8.0, ("b", "sleep"): 2.0}
    return Rig(hooks=FakeHooks(seconds=seconds), **settings)


async def learn(rig: Rig) -> None:
    """Switch to b and back, so that costs are known; a is awake."""
    for model in ("a", "b", "a"):
        await rig.ask(model, 4)


async def test_a_forecast_includes_the_policy_s_stay(autojump_clock: MockClock) -> None:
    rig = rig_with(policy=AdaptivePolicy)
    forecasts = forecasts_of(rig)
    async with rig.running() as requests:
        await learn(rig)
        with trio.CancelScope() as busy:
            requests.start_soon(keep_busy, busy, requests, rig)
            await trio.sleep(20)
            await forecasts.refresh()
            expected_s = current(forecasts, "b")
            assert current(forecasts, "a") is None  # it admits
            waited_s = await rig.ask("b")
            busy.cancel()
        assert expected_s is not None
        assert expected_s > 2 * (10 + 4)  # which is what it would be at once
        assert waited_s / 2 < expected_s < 2 * waited_s  # a single one varies


async def keep_busy(until: trio.CancelScope, requests: trio.Nursery, rig: Rig) -> None:
    rng = random.Random(3)
    while not until.cancel_called:
        requests.start_soon(rig.ask, "a", 4)
        await trio.sleep(rng.expovariate(1))


async def test_forecasts_are_kept_for_a_while(autojump_clock: MockClock) -> None:
    rig = rig_with()
    forecasts = forecasts_of(rig)
    async with rig.running():
        await learn(rig)
        await forecasts.refresh()
        assert current(forecasts, "b") == 10
        rig.switcher.measures.note_switched("a", "b", 1000)
        await forecasts.refresh()
        assert current(forecasts, "b") == 10
        await trio.sleep(FRESH_S + 0.1)
        assert current(forecasts, "b") is None
        await forecasts.refresh()
        assert current(forecasts, "b") == 10 + 0.3 * 990


async def test_where_the_policy_decides_nothing_there_is_none(autojump_clock: MockClock) -> None:
    rig = rig_with()
    forecasts = forecasts_of(rig)
    async with rig.running():
        await learn(rig)
        await forecasts.refresh()
        assert current(forecasts, "b") is not None
        rig.switcher.set_mode("manual")
        await forecasts.refresh()
        assert current(forecasts, "b") is None


class Locked:
    """A policy that cannot be copied."""

    def __init__(self, _config: Any) -> None:
        self._lock = threading.Lock()

    def decide(self, _view: GroupView) -> Decision:
        return Stay()


async def test_a_policy_that_cannot_be_copied_is_named_once(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = rig_with(policy=Locked)
    forecasts = forecasts_of(rig)
    async with rig.running():
        for _ in range(3):
            await forecasts.refresh()
            assert current(forecasts, "a") is None
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("policy_not_copied") == 1


class Whim(FifoPolicy):
    """A policy that can be told to decide otherwise, or to raise."""

    whim: Any = None

    def decide(self, group: GroupView) -> Decision:
        return super().decide(group) if self.whim is None else self.whim(group)


def fail(_view: GroupView) -> Decision:
    raise KeyError("a model that is gone")


WHIMS = {
    "raises": fail,
    "unknown": lambda _view: SwitchTo("gone"),
}


@pytest.mark.parametrize("whim", WHIMS)
async def test_a_policy_that_fails_in_a_forecast_fails_no_status(
    whim: str,
    autojump_clock: MockClock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_with(policy=Whim)
    forecasts = forecasts_of(rig)
    async with rig.running():
        await learn(rig)
        monkeypatch.setattr(Whim, "whim", staticmethod(WHIMS[whim]))
        for _ in range(3):
            await forecasts.refresh()
            assert current(forecasts, "b") is None
        monkeypatch.undo()
        rig.switcher.apply(PolicyConfig(), FifoPolicy(PolicyConfig()), 1000)  # a reload
        await trio.sleep(0.1)
        await forecasts.refresh()
        assert current(forecasts, "b") == 10
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("policy_not_copied") == 1


class LooksBack(FifoPolicy):
    """A policy that lets requests wait for `stay_s`, and looks again at once."""

    stay_s = 3.0

    def decide(self, group: GroupView) -> Decision:
        decision = super().decide(group)
        if not isinstance(decision, SwitchTo):
            return decision
        arrived_at = group.models[decision.model].oldest_arrival
        is_over = arrived_at is None or group.now - arrived_at >= self.stay_s
        return decision if is_over else LookAgain(group.now - 1)


async def test_a_policy_that_looks_back_has_forecasts(autojump_clock: MockClock) -> None:
    rig = rig_with(policy=LooksBack)
    forecasts = forecasts_of(rig)
    async with rig.running():
        await learn(rig)
        await forecasts.refresh()
        assert current(forecasts, "b") == pytest.approx(LooksBack.stay_s + 10, abs=0.1)


async def test_an_absurdly_long_wait_is_not_foretold(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_with(policy=Whim)
    forecasts = forecasts_of(rig)
    async with rig.running():
        await learn(rig)
        then = trio.current_time() + 1000

        def late(view: GroupView) -> Decision:
            return SwitchTo("b") if view.now >= then else LookAgain(then)

        monkeypatch.setattr(Whim, "whim", staticmethod(late))
        monkeypatch.setattr("llmux.api.forecasts.LONGEST_S", 900.0)
        await forecasts.refresh()
        assert current(forecasts, "b") is None


async def test_a_reload_may_add_a_group_while_forecasts_are_made(
    autojump_clock: MockClock,
) -> None:
    rig, groups = rig_with(), {}
    groups["default"] = rig.switcher
    board: Any = SimpleNamespace(groups=groups)
    forecasts = Forecasts(board)
    async with rig.running() as requests:
        await learn(rig)
        requests.start_soon(add_group, groups, rig)
        await forecasts.refresh()
    assert len(groups) == 2
    assert current(forecasts, "b") == 10


async def add_group(groups: dict[str, Any], rig: Rig) -> None:
    groups["new"] = rig.switcher


async def test_a_forecast_that_takes_too_long_does_not_start_over_for_each_answer(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    monkeypatch.setattr(module, "cpu_s", trio.current_time)

    def ponder(view: GroupView) -> Decision:
        asked.append(view.now)
        mock_clock.jump(0.3)  # longer than the patience of an answer
        return LookAgain(view.now + 1)

    rig = rig_with(policy=Whim)
    forecasts = forecasts_of(rig)
    mock_clock.autojump_threshold = 0
    async with rig.running():
        await learn(rig)
        mock_clock.autojump_threshold = math.inf
        monkeypatch.setattr(Whim, "whim", staticmethod(ponder))
        await forecasts.refresh()
        pondered = len(asked)
        await forecasts.refresh()
        assert 0 < pondered == len(asked)
        monkeypatch.undo()
        mock_clock.autojump_threshold = 0


async def test_forecasts_for_many_costly_models_share_one_allowance(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    took_s = 0.05
    spent: dict[str, int] = {}

    class Costly(Rollout):
        def slices(self) -> Iterator[None]:
            name = self._asked.model
            spent[name] = spent.get(name, 0) + 1
            mock_clock.jump(took_s)
            self.wait_s = 1.0
            yield

    monkeypatch.setattr(module, "rollout_of", Costly)
    monkeypatch.setattr(module, "cpu_s", trio.current_time)
    names = [f"m{number}" for number in range(40)]
    rig = Rig(names)
    forecasts = forecasts_of(rig)
    mock_clock.autojump_threshold = 0
    async with rig.running():
        await rig.ask("m0")
        mock_clock.autojump_threshold = math.inf
        began_at = trio.current_time()
        for _ in range(200):  # a page that is open
            await forecasts.refresh()
            mock_clock.jump(1)
        lasted_s = trio.current_time() - began_at
        assert sum(spent.values()) * took_s <= MOST_SHARE * lasted_s + PATIENCE_S + took_s
        assert spent.keys() == {*names} - {"m0"}  # each had its turn
        assert (
            sum(current(forecasts, name) == 1 for name in names) >= 37
        )  # and lasts until the next
        mock_clock.autojump_threshold = 0


# ---- Retry-After ----


async def refuse(rig: Rig, model: str) -> int:
    with pytest.raises(QueueFull) as full:
        await rig.ask(model)
    assert full.value.retry_after_s is not None
    return full.value.retry_after_s


async def test_a_full_line_tells_the_forecast_and_a_storm_costs_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(Rollout):
        def __init__(self, scene: Any, model: str) -> None:
            made.append(model)
            super().__init__(scene, model)

    monkeypatch.setattr(module, "rollout_of", Counted)
    rig = rig_with(policy=AdaptivePolicy, queued_per_model=1)
    forecasts = forecasts_of(rig)
    rig.switcher.connect(lambda *_: False, lambda _: None, forecasts.ask)
    async with rig.running() as requests, trio.open_nursery() as tasks:
        tasks.start_soon(forecasts.run)
        await learn(rig)
        requests.start_soon(rig.ask, "a", 60)
        with trio.CancelScope() as busy:
            requests.start_soon(keep_busy, busy, requests, rig)
            await trio.sleep(20)
            requests.start_soon(rig.ask, "b")
            await wait_all_tasks_blocked()
            rough_s = await refuse(rig, "b")
            assert not made  # a refusal itself makes none
            await wait_all_tasks_blocked()
            expected_s = current(forecasts, "b")
            assert expected_s is not None
            for _ in range(1000):
                assert await refuse(rig, "b") == max(1, math.ceil(expected_s))
                await trio.lowlevel.checkpoint()
            assert made == ["b"]
            assert math.ceil(expected_s) > rough_s  # which takes the switch to begin at once
            busy.cancel()
        tasks.cancel_scope.cancel()


async def test_a_forecast_is_outdated_once_a_switch_has_begun(autojump_clock: MockClock) -> None:
    rig = rig_with()
    forecasts = forecasts_of(rig)
    async with rig.running() as requests:
        await learn(rig)
        await forecasts.refresh()
        assert forecasts.ask("b") == 10
        requests.start_soon(rig.ask, "b")
        await wait_all_tasks_blocked()
        assert forecasts.ask("b") is None
        await forecasts.refresh()
        assert forecasts.ask("b") == 10


async def test_what_is_asked_for_in_vain_is_not_asked_for_in_a_loop(
    autojump_clock: MockClock,
) -> None:
    rig = rig_with()
    forecasts = forecasts_of(rig)
    async with rig.running(), trio.open_nursery() as tasks:
        tasks.start_soon(forecasts.run)
        await learn(rig)
        rig.switcher.set_mode("manual")
        for model in ("b", "a", "gone"):
            assert forecasts.ask(model) is None
        await wait_all_tasks_blocked()
        assert forecasts.ask("b") is None
        rig.switcher.set_mode("auto")
        await wait_all_tasks_blocked()
        assert forecasts.ask("b") == 10
        tasks.cancel_scope.cancel()


async def test_a_forecast_where_models_share_memory(autojump_clock: MockClock) -> None:
    needs = {name: Needs.of((size,)) for name, size in {"a": 60, "b": 60, "c": 20}.items()}
    shared = GroupMemory(
        Memory(("gpu",), (80,), needs),
        dict.fromkeys(needs, frozenset({"gpu"})),
        overlapping_hooks=False,
    )
    seconds = {(name, hook): s for name in "abc" for hook, s in (("wake", 8.0), ("sleep", 2.0))}
    rig = Rig("abc", hooks=FakeHooks(seconds=seconds), policy=FifoPolicy, memory=shared)
    forecasts = forecasts_of(rig)
    async with rig.running():
        for model in ("a", "b", "a"):
            await rig.ask(model, 4)
        await forecasts.refresh()
        assert current(forecasts, "a") is None  # it admits
        assert current(forecasts, "c") == pytest.approx(8)  # fits beside a
        assert current(forecasts, "b") == pytest.approx(10)
        assert await rig.ask("b") == pytest.approx(10)


async def test_a_forecast_outlasts_a_switch_for_a_while(autojump_clock: MockClock) -> None:
    """Until there is time for another, that of before says more than that none is known."""
    seconds = {(n, hook): s for n in "abc" for hook, s in (("wake", 8.0), ("sleep", 2.0))}
    rig = Rig("abc", hooks=FakeHooks(seconds=seconds), policy=AdaptivePolicy)
    forecasts = forecasts_of(rig)
    async with rig.running() as requests:
        for model in ("c", "b", "a"):
            await rig.ask(model, 4)
        with trio.CancelScope() as busy:
            requests.start_soon(keep_busy, busy, requests, rig)
            await trio.sleep(20)
            c = rig.switcher.models["c"]
            await forecasts.refresh()
            expected_s = forecasts.eta_s(rig.switcher, c)
            assert expected_s is not None
            assert expected_s > 2 * 10  # the policy's stay, and another switch
            requests.start_soon(rig.switcher.force_switch, "b")
            await trio.sleep(3)
            assert current(forecasts, "c") is None
            assert forecasts.ask("c") == pytest.approx(expected_s - 3)
            assert forecasts.ask("b") is None  # it is being woken, which is better known
            assert forecasts.eta_s(rig.switcher, c) == pytest.approx(expected_s - 3)
            await trio.sleep(OUTRUN_S)
            assert forecasts.ask("c") is None
            busy.cancel()
