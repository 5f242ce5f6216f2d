"""Ten thousand requests, eight models, three groups, and everything that can go wrong, on one clock.

Hooks fail and take too long, servers crash, clients leave, operators switch, configs are reloaded.
The GPUs below check the invariants of docs/guarantees.md wherever they could break.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmux.config import Config, HookName, parse_config
from llmux.errors import ConfigError, HookError, LlmuxError, StreamCut
from llmux.observe.events import Events
from llmux.policy import POLICIES
from llmux.switching.model import SERVES
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeModelHooks

GROUPS = {name: f"gpu{index % 3}" for index, name in enumerate("abcdefgh")}
REQUESTS_AN_HOUR = 2_500
HOURS = 4
REFUSALS = {
    "hook_failed", "switch_timeout", "queue_full", "model_not_found", "manual_mode", "model_failing", "not_ready",
}  # fmt: skip


class Refused(Exception):
    """The model's server takes no connection."""


class Crashed(Exception):
    """The model's server has ended under a request."""


class Gpus:
    """What hooks and requests do to GPUs with room for one model each; notices what must not be."""

    def __init__(self, rng: random.Random) -> None:
        self.awake: set[str] = set()
        self.inside: dict[str, set[trio.CancelScope]] = {name: set() for name in GROUPS}
        self.faults: Counter[str] = Counter()
        self._running: dict[str, tuple[str, str]] = {}
        self._rng = rng

    def of(self, model: str) -> FakeModelHooks:
        missing = frozenset() if model in "abc" else frozenset({"prefetch"})
        return FakeModelHooks(self, model, missing, {"wake": 600.0, "sleep": 600.0})

    async def end_marked(self, mark: str) -> None:
        raise AssertionError(f"nothing was left behind, and not {mark}")

    async def run(self, model: str, hook: HookName, *, source: str = "", target: str = "") -> None:
        if hook in {"wake", "sleep"}:
            group = GROUPS[model]
            assert group not in self._running, f"{model} {hook} overlaps {self._running[group]}"
            self._running[group] = (model, hook)
            try:
                await self._change(model, hook)
            finally:
                del self._running[group]
        elif hook == "prefetch":
            await trio.sleep(self._rng.expovariate(0.1))
        elif hook == "verify_asleep":
            self._fail(0.02, model, hook)
            assert model not in self.awake
        elif model not in self.awake:
            raise HookError(model, hook, "exited with 7", exit_code=7)

    async def _change(self, model: str, hook: HookName) -> None:
        others = {name for name in self.awake if GROUPS[name] == GROUPS[model]} - {model}
        if hook == "wake":
            assert not others, f"{model} wakes while {others} are awake"
        else:
            assert not self.inside[model], f"{model} sleeps with a request inside"
            self.awake.discard(model)
        await trio.sleep(self._rng.choice([0.0, 0.5, 3.0, 20.0]))
        self._fail(0.05, model, hook)
        if hook == "wake":
            self.awake.add(model)

    def _fail(self, chance: float, model: str, hook: str) -> None:
        if self._rng.random() < chance:
            self.faults[hook] += 1
            raise HookError(model, hook, "exited with 1", exit_code=1)

    def crash(self, model: str) -> None:
        """Its server ends, and with it whatever it was doing."""
        if model in self.awake:
            self.faults["crash"] += 1
            self.awake.discard(model)
            for scope in self.inside[model]:
                scope.cancel()

    @asynccontextmanager
    async def request(self, model: str) -> AsyncIterator[None]:
        if model not in self.awake:
            raise Refused
        with trio.CancelScope() as scope:
            self.inside[model].add(scope)
            try:
                yield
            finally:
                self.inside[model].discard(scope)
        if scope.cancelled_caught:
            raise Crashed


def config_of(names: str, policy: str, ports: dict[str, int]) -> Config:
    settings = {
        "name": policy,
        "alive_interval_secs": 10,
        "drain_timeout_secs": 120,
        "request_timeout_secs": 900,
        "max_wait_secs": 200,
    }
    models = {
        name: {
            "port": ports[name], "wake": "w", "sleep": "s", "alive": "a", "group": GROUPS[name],
            "verify_asleep": "v", **({"max_in_flight": 4} if name in "ad" else {}),
        }
        for name in names
    }  # fmt: skip
    data = {"state_dir": "s", "models": models, "policy": settings}
    return parse_config({**data, "limits": {"queued_per_model": 200}}, directory=Path())


class Workload:
    def __init__(self, seed: int, hours: int) -> None:
        self.hours = hours
        self.rng = random.Random(seed)
        self.gpus = Gpus(self.rng)
        self.ports = dict.fromkeys(GROUPS, 1)
        self.names = "".join(GROUPS)
        config = config_of(self.names, "adaptive", self.ports)
        self.board = Switchboard(config, self.gpus, Events())
        self.reloader = Reloader(config, self.board)
        self.ends: Counter[str] = Counter()

    async def ask(self, name: str, seconds: float, patience: float) -> None:
        end = "left"
        with trio.move_on_after(patience):
            try:
                await self._ask(name, seconds)
                end = "served"
            except LlmuxError as error:
                assert error.code in REFUSALS
                end = error.code
            except (StreamCut, Crashed, Refused) as error:
                end = type(error).__name__
        self.ends[end] += 1

    async def _ask(self, name: str, seconds: float) -> None:
        serving = self.board.serving(name)
        try:
            async with serving, self.gpus.request(name):
                await trio.sleep(seconds)
        except Refused:
            await self.board.refused(name)
            async with serving, self.gpus.request(name):
                await trio.sleep(seconds)

    async def arrive(self, nursery: trio.Nursery) -> None:
        rng = self.rng
        for _ in range(self.hours * REQUESTS_AN_HOUR):
            await trio.sleep(rng.expovariate(REQUESTS_AN_HOUR / 3600))
            name = rng.choice("aaaabbcdefgh")
            patience = rng.choice([1e9, 1e9, 1e9, 0.0, 1.0, 60.0])
            nursery.start_soon(self.ask, name, rng.expovariate(1 / 4), patience)

    async def interfere(self) -> None:
        rng = self.rng
        while True:
            await trio.sleep(rng.expovariate(1 / 20))
            match rng.randrange(8):
                case 0 | 1:
                    self.gpus.crash(rng.choice(sorted(self.gpus.awake) or ["a"]))
                case 2:
                    with suppress(LlmuxError):
                        await self.board.force_switch(rng.choice(self.names))
                case 3:
                    self.board.set_mode("manual")
                    await trio.sleep(5)
                    self.board.set_mode("auto")
                case 4:
                    self.ports[rng.choice(sorted(GROUPS))] += 1
                    self.reload()
                case 5:
                    gone = rng.choice("cdefgh")
                    self.names = "".join(name for name in GROUPS if name != gone)
                    self.reload()
                case 6:
                    self.names = "".join(GROUPS)
                    self.reload()

    def reload(self) -> None:
        policy = self.rng.choice(sorted(POLICIES))
        with suppress(ConfigError):
            self.reloader.apply(config_of(self.names, policy, self.ports))
            self.gpus.faults["reload"] += 1

    async def probe(self) -> None:
        while True:
            self.check()
            await trio.sleep(self.rng.expovariate(4))

    def check(self) -> None:
        for switcher in self.board.groups.values():
            assert sum(model.is_awake for model in switcher.models.values()) <= 1
            for model in switcher.models.values():
                assert model.in_flight.count <= model.max_in_flight
                assert not (model.in_flight.count and model.phase not in SERVES)
                assert not (model.is_awake and model.room > 0 and model.waiters.count)
                view = model.view()
                assert view.ages.count == view.queued == model.waiters.count

    async def run(self) -> None:
        async with trio.open_nursery() as beside:
            beside.start_soon(self.board.run)
            beside.start_soon(self.probe)
            async with trio.open_nursery() as requests:
                async with trio.open_nursery() as trouble:
                    trouble.start_soon(self.interfere)
                    await self.arrive(requests)
                    trouble.cancel_scope.cancel()
                self.board.set_mode("auto")
            for model in self.board.models.values():
                assert (model.in_flight.count, model.waiters.count) == (0, 0)
            beside.cancel_scope.cancel()


# All four hours, and so ten thousand requests, take half a minute.
@pytest.mark.parametrize("hours", [1, pytest.param(HOURS, marks=pytest.mark.slow)])
async def test_thousands_of_requests_through_every_kind_of_trouble(
    hours: int, autojump_clock: MockClock
) -> None:
    workload = Workload(1, hours)
    with trio.fail_after(20 * HOURS * 3600):
        await workload.run()
    ends, faults = workload.ends, workload.gpus.faults
    requests = hours * REQUESTS_AN_HOUR
    assert ends.total() == requests, "each ends exactly once"
    assert ends["served"] > requests / 3
    assert all(faults[kind] for kind in ("wake", "sleep", "crash", "reload", "verify_asleep"))
