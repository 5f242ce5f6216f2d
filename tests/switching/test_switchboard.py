"""Groups behind one front."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.config import Config, parse_config
from llmux.errors import ManualMode, ModelNotFound, ShuttingDown
from llmux.observe.events import Events
from llmux.observe.listeners import observed
from llmux.observe.metrics import Metrics
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks
from tests.sharing import SharedHooks, gpu

HOOKS = {"wake": "up", "sleep": "down", "alive": "ping"}


def config() -> Config:
    return parse_config(
        {
            "models": {
                "a": {"port": 1, **HOOKS},
                "b": {"url": "http://far:2", **HOOKS},
                "c": {"port": 3, "group": "other", **HOOKS},
            }
        }
    )


async def ask(board: Switchboard, model: str, seconds: float = 0) -> None:
    async with board.serving(model):
        await trio.sleep(seconds)


class TwoGpus(FakeHooks):
    """Room for one model of each group; hooks of different groups may overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.gpus = {"a": FakeHooks(), "b": FakeHooks(), "c": FakeHooks()}
        self.gpus["b"] = self.gpus["a"]

    async def run(self, model: str, hook: object, *, source: str = "", target: str = "") -> None:
        await self.gpus[model].run(model, hook, source=source, target=target)  # type: ignore[arg-type]


async def test_what_it_tells(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    board = Switchboard(config(), TwoGpus(), observed(metrics))
    metrics.watch_counts(board.gauges)
    assert board.registered_models == ["a", "b", "c"]
    assert board.is_registered("a")
    assert not board.is_registered("x")
    assert [board.model_port(model) for model in ("a", "b", "x")] == [1, None, None]
    assert (board.state, board.active_model) == ("idle", None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        await ask(board, "c")
        assert (board.state, board.active_model) == ("active", "c")
        await ask(board, "a")
        await ask(board, "b")
        assert board.active_models == {"default": "b", "other": "c"}
        assert board.estimated_switch_cost("a", "b") == 0
        assert board.estimated_switch_cost("b", "a") is None
        assert board.estimated_costs() == {"idle": {"a": 0, "c": 0}, "a": {"b": 0}}
        async with board.serving("b"):
            nursery.start_soon(ask, board, "a", 1)
            await wait_all_tasks_blocked()
            assert board.in_flight_count("b") == 1
            assert board.queue_depths == {"a": 1, "b": 0, "c": 0}
            assert board.state == "switching"
            text = metrics.render().decode()
            assert 'llmux_request_queue_depth{model="a"} 1.0' in text
            assert 'llmux_model_in_flight{model="b"} 1.0' in text
        assert repr(board).startswith("<Switchboard {'default': <Switcher ")
        await board.force_switch("b")
        board.set_mode("manual")
        with pytest.raises(ManualMode):
            await ask(board, "a")
        assert board.mode == "manual"
        board.stop()
    assert board.is_healthy
    with pytest.raises(ShuttingDown):
        await ask(board, "c")


async def test_unknown_models() -> None:
    board = Switchboard(config(), FakeHooks(), Events())
    with pytest.raises(ModelNotFound):
        board.serving("x")
    with pytest.raises(ModelNotFound):
        await board.force_switch("x")


async def test_groups_switch_at_the_same_time(autojump_clock: MockClock) -> None:
    hooks = TwoGpus()
    hooks.gpus["a"].seconds = {("a", "wake"): 10}
    hooks.gpus["c"].seconds = {("c", "wake"): 10}
    board = Switchboard(config(), hooks, Events())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        async with trio.open_nursery() as requests:
            requests.start_soon(ask, board, "a")
            requests.start_soon(ask, board, "c")
        assert trio.current_time() == pytest.approx(10)
        board.stop()


async def test_what_is_unfinished_in_all_groups(autojump_clock: MockClock) -> None:
    hooks = TwoGpus()
    hooks.gpus["a"].seconds = {("a", "wake"): 5, ("a", "sleep"): 3}
    board = Switchboard(config(), hooks, Events())
    assert board.unfinished == ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        nursery.start_soon(ask, board, "a", 1)
        for _ in range(2):
            nursery.start_soon(ask, board, "c", 4)
        await trio.sleep(1)
        assert board.unfinished == "2 requests in flight, the wake hook of a"
        await trio.sleep(4.5)
        assert board.unfinished == "1 request in flight"
        await trio.sleep(1)
        assert board.unfinished == ""
        nursery.start_soon(board.put_model_to_sleep, "a")
        await trio.sleep(1)
        assert board.unfinished == "the sleep hook of a"
        board.stop()


# ---- Measured needs ----


async def test_models_are_awake_alone_until_their_needs_are_measured(
    autojump_clock: MockClock,
) -> None:
    models = {
        name: {"port": port, "needs": "auto", **HOOKS} for port, name in enumerate("ab", start=1)
    }
    seen: dict[str, dict[str, int]] = {}
    auto = parse_config({"resources": {"gpu0": 100}, "memory_margin": 0.1, "models": models})
    hooks = SharedHooks(shared=gpu(100, a=50, b=40))
    board = Switchboard(auto, hooks, Events(), measured=lambda _: seen)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        await ask(board, "a")
        await ask(board, "b")
        assert hooks.awake == {"b"}
        assert board.to_measure == {"b"}
        seen |= {"a": {"gpu0": 50}, "b": {"gpu0": 40}}
        board.remeasure()
        assert board.groups["default"].room.ledger.free == (56,)  # of 40 and a tenth
        await ask(board, "a")
        assert hooks.awake == {"a", "b"}
        board.stop()
