"""When models are measured, on a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from llmux.config import parse_config
from llmux.observe.needs_seen import SeenNeeds
from llmux.switching.measuring import MemoryWatch

HOOKS = {"wake": "true", "sleep": "true", "alive": "true", "needs": "auto"}


class Stage:
    """Two models, a stand-in that measures them in a second, and all that happened."""

    def __init__(self) -> None:
        models = {name: {"port": port, **HOOKS} for name, port in (("a", 1), ("b", 2))}
        self.seen = SeenNeeds(None, parse_config({"resources": {"gpu0": 1000}, "models": models}))
        self.awake = {"a", "b"}
        self.holds: dict[str, Mapping[str, int] | None] = {"a": {"gpu0": 100}, "b": {"gpu0": 50}}
        self.measured: list[tuple[str, float]] = []
        self.changed: list[str] = []
        self.watch = MemoryWatch(self.measure, self.seen, lambda: self.awake, self.changed.append)

    async def measure(self, model: str) -> Mapping[str, int] | None:
        self.measured.append((model, round(trio.current_time(), 3)))
        await trio.sleep(1)
        return self.holds[model]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_a_model_is_measured_after_its_wake_and_ever_less_often(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.running():
        await trio.sleep(5)
        stage.watch.woken("a")
        await trio.sleep(2100)
    assert [at for _, at in stage.measured] == [5, 66, 187, 428, 909, 1510]
    assert stage.changed == ["a"]
    assert stage.seen.all() == {"a": {"gpu0": 100}}


async def test_more_is_told_and_less_is_not(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.running():
        stage.watch.woken("a")
        await trio.sleep(30)
        stage.holds["a"] = {"gpu0": 90}
        await trio.sleep(60)
        assert stage.changed == ["a"]
        stage.holds["a"] = {"gpu0": 110}
        await trio.sleep(120)
    assert stage.changed == ["a", "a"]
    assert stage.seen.of("a") == {"gpu0": 110}


async def test_one_that_sleeps_is_not_measured_until_it_wakes_again(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.running():
        stage.watch.woken("a")
        await trio.sleep(10)
        stage.awake.discard("a")
        await trio.sleep(3000)
        assert stage.measured == [("a", 0)]
        stage.awake.add("a")
        stage.watch.woken("a")
        await trio.sleep(70)
    assert [at for _, at in stage.measured] == [0, 3010, 3071]


async def test_what_falls_asleep_meanwhile_does_not_count(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.running():
        stage.watch.woken("a")
        await trio.sleep(0.5)
        stage.awake.discard("a")
        await trio.sleep(10)
    assert stage.measured == [("a", 0)]
    assert (stage.seen.all(), stage.changed) == ({}, [])


async def test_a_wake_during_a_measurement_asks_for_another(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.running():
        stage.watch.woken("a")
        await trio.sleep(0.5)
        stage.watch.woken("a")
        stage.watch.woken("b")
        await trio.sleep(5)
    assert stage.measured == [("a", 0), ("a", 1), ("b", 2)]


async def test_one_that_cannot_be_measured_is_tried_again(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.holds["a"] = None
    async with stage.running():
        stage.watch.woken("a")
        await trio.sleep(30)
        assert stage.seen.of("a") is None
        stage.holds["a"] = {"gpu0": 7}
        await trio.sleep(60)
    assert stage.seen.of("a") == {"gpu0": 7}


async def test_a_bug_in_a_measurement_ends_nothing(stage: Stage, autojump_clock: MockClock) -> None:
    del stage.holds["a"]
    with capture_logs() as logs:
        async with stage.running():
            stage.watch.woken("a")
            stage.watch.woken("b")
            await trio.sleep(30)
    assert [(each["event"], each["model"]) for each in logs] == [
        ("internal_error", "a"),
        ("memory_measured", "b"),
    ]
    assert stage.changed == ["b"]
