"""A reload at every checkpoint of a switch, with every optional field there and gone."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmux.config import Config, ModelConfig, parse_config
from llmux.errors import ConfigError, LlmuxError, ModelNotFound, StreamCut
from llmux.observe.events import Events
from llmux.observe.schemas import Pin
from llmux.switching.awake import AwakeRecord
from llmux.switching.hooks import ModelHooks
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks, FakeModelHooks, Rig

OPTIONAL: dict[str, Any] = {
    "prefetch": "p",
    "verify_asleep": "v",
    "max_in_flight": 1,
    "upstream_model": "org/x",
    "headers": {"x-a": "b"},
    "aliases": ["alias"],
    "hook_timeouts": {"wake": 7, "sleep": None},
    "idle_sleep_secs": 3,
    "preserves_in_flight": True,
    "wake": "other",
}
"""Of a model, each with a value that is not the default."""

SETTINGS: list[dict[str, Any]] = [
    {},
    {"policy": {"name": "adaptive", "alive_interval_secs": 1, "drain_timeout_secs": 2}},
    {"policy": {"name": "fifo", "drain_before_switch": False, "alive_interval_secs": 0}},
    {"policy": {"name": "time_slice", "gate": True, "on_drain_timeout": "wait"}},
    {"policy": {"name": "fifo", "request_timeout_secs": 500, "min_active_secs": 1}},
    {"groups": {"default": {"standby": "a", "standby_after_secs": 1}}},
    {"groups": {"default": {"preload": "b"}}},
    {"limits": {"queued_per_model": 50}},
]


class ConfigHooks:
    """A fake GPU for each group; models have the hooks of their configs, as with `ShellHooks`."""

    def __init__(self, models: dict[str, ModelConfig]) -> None:
        self.models = models
        # A GPU cannot tell which config a drain has begun with.
        self.gpus = {group: FakeHooks(drains=False) for group in ("default", "g")}

    async def end_marked(self, mark: str) -> None:
        raise AssertionError(f"nothing was left behind, and not {mark}")

    def use(self, name: str, model: ModelConfig | None) -> None:
        if model is None:
            del self.models[name]
        else:
            self.models[name] = model

    def of(self, model: str) -> ModelHooks:
        config = self.models[model]
        missing = {hook for hook in ("prefetch", "verify_asleep") if config.script(hook) is None}
        return FakeModelHooks(self.gpus[config.group], model, frozenset(missing), {})


class Site:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        config = self.config({}, {})
        self.hooks = ConfigHooks(dict(config.models))
        self.board = Switchboard(config, self.hooks, Events())
        self.reloader = Reloader(config, self.board)
        self.reloader.tell(of_models=self.hooks.use)
        self.ended = 0
        self.reloads = 0

    @staticmethod
    def config(a: dict[str, Any], b: dict[str, Any], **more: Any) -> Config:
        plain = {"wake": "up", "sleep": "down", "alive": "ping"}
        models = {"a": {"port": 1, **plain, **a}, "b": {"port": 2, **plain, **b}}
        models["c"] = {"port": 3, **plain}
        data = {"policy": {"name": "fifo"}, **more, "state_dir": "s", "models": models}
        return parse_config(data, directory=Path())

    def anything(self) -> Config:
        rng = self.rng
        a = {key: OPTIONAL[key] for key in OPTIONAL if rng.random() < 0.5}
        b = {k: v for k, v in OPTIONAL.items() if rng.random() < 0.5 and k != "aliases"}
        more = dict(rng.choice(SETTINGS))
        if "groups" in more:
            a.pop("idle_sleep_secs", None)  # a standby has none
        config = self.config(a, b, **more)
        if rng.random() < 0.3:  # c goes to another group, or away
            del config.models["c"]
        elif rng.random() < 0.4:
            config.models["c"] = parse_config(
                {
                    "models": {
                        "c": {"port": 3, "wake": "u", "sleep": "d", "alive": "p", "group": "g"}
                    }
                }
            ).models["c"]
        return config

    def reload(self) -> None:
        self.reloads += 1
        with suppress(ConfigError):  # a group that cannot change now
            self.reloader.apply(self.anything())

    async def ask(self, name: str, seconds: float) -> None:
        serving = None
        try:
            serving = self.board.serving(name)
            async with serving:
                await trio.sleep(seconds)
        except ModelNotFound:
            assert name == "c", "the others are in every config"
        except (LlmuxError, StreamCut):
            pass
        finally:
            self.ended += 1

    async def order(self) -> None:
        name = self.rng.choice("abc")
        board = self.board
        with suppress(LlmuxError):
            match self.rng.randrange(5):
                case 0:
                    await board.force_switch(name)
                case 1:
                    await board.put_model_to_sleep(name)
                case 2:
                    await board.pin(Pin(model=name, wait=self.rng.random() < 0.5))
                case 3:
                    board.unpin()
                case _:
                    await board.refused(name)


class EveryTick(trio.abc.Instrument):
    """Reloads as a task is about to run, at those of its steps that are chosen."""

    def __init__(self, reload: Callable[[], None], chosen: Callable[[], bool]) -> None:
        self._reload = reload
        self._chosen = chosen
        self._inside = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._inside and self._chosen():
            self._inside = True
            self._reload()
            self._inside = False


@pytest.mark.parametrize("seed", range(30))
async def test_a_reload_at_any_step_of_anything(
    autojump_clock: MockClock, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(seed)
    rng = site.rng
    count = 40
    async with trio.open_nursery() as beside:
        beside.start_soon(site.board.run)
        instrument = EveryTick(site.reload, lambda: rng.random() < 0.05)
        trio.lowlevel.add_instrument(instrument)
        try:
            with trio.fail_after(50_000):
                async with trio.open_nursery() as requests:
                    for _ in range(count):
                        requests.start_soon(site.ask, rng.choice("aabbc"), rng.choice([0, 0.5, 4]))
                        if rng.random() < 0.3:
                            beside.start_soon(site.order)
                        await trio.sleep(rng.choice([0, 0.01, 1, 5]))
                    while site.ended < count:  # an order that still runs may pin a model
                        site.board.unpin()
                        await trio.sleep(1)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        assert site.ended == count
        assert site.reloads >= 5  # as many as there were steps for
        assert site.board.is_healthy
        for each in site.board.models.values():
            assert (each.in_flight.count, each.waiters.count) == (0, 0)
        beside.cancel_scope.cancel()
    assert not [r for r in caplog.records if r.exc_info or r.levelno >= logging.CRITICAL]


@pytest.mark.parametrize("hook", ["prefetch", "verify_asleep"])
@pytest.mark.parametrize("comes", [True, False])
async def test_a_switch_runs_with_the_hooks_it_began_with(
    autojump_clock: MockClock, hook: str, comes: bool
) -> None:
    """Between "has it?" and "run it" there was a checkpoint: llmux ended with code 3."""
    for step in range(60):
        site = Site(0)
        fields: list[dict[str, Any]] = [{hook: "x"}, {}]
        before, after = reversed(fields) if comes else fields
        site.reloader.apply(site.config(before, before))
        steps = iter(range(1000))

        def reload(site: Site = site, after: dict[str, Any] = after) -> None:
            site.reloader.apply(site.config(after, after))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.board.run)
            await site.ask("a", 0)
            instrument = EveryTick(reload, lambda: next(steps) == step)  # noqa: B023
            trio.lowlevel.add_instrument(instrument)
            with trio.fail_after(1000):
                await site.ask("b", 0)
            trio.lowlevel.remove_instrument(instrument)
            assert site.board.is_healthy
            assert site.board.active_model == "b"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("prefetchers", [set[str](), {"b"}])
async def test_a_model_that_was_left_awake_comes_at_any_step_of_a_switch(
    autojump_clock: MockClock, tmp_path: Path, prefetchers: set[str]
) -> None:
    slept_first = 0
    for step in range(60):
        path = tmp_path / "awake.json"
        path.write_text('{"models": {"c": {"state": "awake"}}}')
        record = AwakeRecord(path)
        record.load(["a", "b"])
        rig = Rig(hooks=FakeHooks(prefetchers=prefetchers), record=record)
        steps = iter(range(1000))

        def add(rig: Rig = rig) -> None:
            rig.hooks.awake.add("c")  # which the GPU checks as a wake hook starts
            rig.switcher.add("c")

        async with rig.running():
            await rig.ask("a")
            instrument = EveryTick(add, lambda: next(steps) == step)  # noqa: B023
            trio.lowlevel.add_instrument(instrument)
            await rig.ask("b")
            trio.lowlevel.remove_instrument(instrument)
        slept_first += ("c", "sleep") in rig.hooks.calls
    assert slept_first >= 5  # the others came before the switch, or once b was being woken
