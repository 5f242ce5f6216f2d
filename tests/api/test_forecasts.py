"""Forecasts for a status: made on demand, kept for a while, and never in the way."""

from __future__ import annotations

import math
import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmux.api.forecasts import FRESH_S, Forecasts
from llmux.config import PolicyConfig
from llmux.policy import (
    AdaptivePolicy,
    Decision,
    FifoPolicy,
    GroupView,
    LookAgain,
    Stay,
    SwitchTo,
)
from tests.fakes import FakeHooks, Rig


def forecasts_of(rig: Rig) -> Forecasts:
    board: Any = SimpleNamespace(groups={"default": rig.switcher})
    return Forecasts(board)


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
            expected_s = forecasts.of("b")
            assert forecasts.of("a") is None  # it admits
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
        assert forecasts.of("b") == 10
        rig.switcher.measures.note_switched("a", "b", 1000)
        await forecasts.refresh()
        assert forecasts.of("b") == 10
        await trio.sleep(FRESH_S + 0.1)
        assert forecasts.of("b") is None
        await forecasts.refresh()
        assert forecasts.of("b") == 10 + 0.3 * 990


async def test_where_the_policy_decides_nothing_there_is_none(autojump_clock: MockClock) -> None:
    rig = rig_with()
    forecasts = forecasts_of(rig)
    async with rig.running():
        await learn(rig)
        await forecasts.refresh()
        assert forecasts.of("b") is not None
        rig.switcher.set_mode("manual")
        await forecasts.refresh()
        assert forecasts.of("b") is None


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
            assert forecasts.of("a") is None
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
    "past": lambda view: LookAgain(view.now),
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
            assert forecasts.of("b") is None
        monkeypatch.undo()
        rig.switcher.apply(PolicyConfig(), FifoPolicy(PolicyConfig()), 1000)  # a reload
        await trio.sleep(0.1)
        await forecasts.refresh()
        assert forecasts.of("b") == 10
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("policy_not_copied") == 1


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
    assert forecasts.of("b") == 10


async def add_group(groups: dict[str, Any], rig: Rig) -> None:
    groups["new"] = rig.switcher


async def test_a_forecast_that_takes_too_long_does_not_start_over_for_each_answer(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

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
