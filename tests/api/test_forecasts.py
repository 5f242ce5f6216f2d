"""Forecasts for a status: made on demand, kept for a while, and never in the way."""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmux.api.forecasts import FRESH_S, Forecasts
from llmux.policy import AdaptivePolicy, Decision, GroupView, Stay
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
