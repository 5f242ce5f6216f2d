"""Ten thousand requests for sixteen models on three resources, and all that can go wrong, on one clock.

Hooks fail and take long, servers crash, clients leave, operators switch and pin, configs are
reloaded. The machine of `tests.sharing` checks the invariants of docs/guarantees.md wherever they
could break; `Storm.check` compares llmux with it.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmux.config import Config
from llmux.errors import ConfigError, HookError
from llmux.observe.events import SwitchEnded
from llmux.policy import POLICIES
from tests.storm import Storm, StormHooks, config_of, is_sound

NAMES = "abcdefghijklmnop"
POPULAR = "aaaaaabbbbcccdddeeffgghhijklmnop"
REQUESTS = 10_000
GAP_S = 0.8
MAX_WAIT_S = 60


class RandomHooks(StormHooks):
    """Hooks of random lengths, of which some fail.

    Attributes:
        chance: Share of hooks that fail.
    """

    rng: random.Random
    chance: float = 0.0

    async def _take(self, key: tuple[str, str], model: str, hook: str) -> None:
        if hook == "alive":
            await super()._take(key, model, "alive")
            return
        await trio.sleep(self.rng.choice([0.0, 0.5, 2.0, 10.0]))
        if self.rng.random() < self.chance:
            raise HookError(model, hook, "exited with 1", exit_code=1)


def needs_of(rng: random.Random) -> dict[str, Any]:
    """Return what a model needs: of one GPU or of both, some of the RAM asleep."""
    sizes = {"gpu0": rng.choice([4, 10, 20, 40]), "gpu1": rng.choice([4, 10, 20, 40])}
    if rng.random() < 0.8:
        del sizes[rng.choice(["gpu0", "gpu1"])]
    model: dict[str, Any] = {"needs": dict(sizes)}
    if rng.random() < 0.2:
        model["needs"]["ram"] = 10
    if rng.random() < 0.5:
        model["needs_asleep"] = {"ram": rng.choice([5, 15])}
    if rng.random() < 0.3:
        model["needs_waking"] = {name: size + 10 for name, size in sizes.items()}
    if rng.random() < 0.5:
        model["stop"] = "x"
    if rng.random() < 0.3:
        model["max_in_flight"] = 4
    if rng.random() < 0.2:
        model["idle_sleep_secs"] = rng.choice([30, 300])
    if rng.random() < 0.5 and sum(sizes.values()) <= 4:
        model["keep"] = True
    return model


class Workload:
    """One run.

    Args:
        seed: Of all that is random.
        requests: How many come.
        is_calm: True if only requests happen.
    """

    def __init__(self, seed: int, requests: int, *, is_calm: bool = False) -> None:
        self.rng = random.Random(seed)
        self.requests = requests
        self.is_calm = is_calm
        self.models = {name: needs_of(self.rng) for name in NAMES}
        if is_calm:
            for model in self.models.values():
                for key in ("max_in_flight", "keep", "idle_sleep_secs"):
                    model.pop(key, None)
        hooks = RandomHooks(verifiers=set("abcdefgh"))
        hooks.rng, hooks.chance = self.rng, 0.0 if is_calm else 0.04
        self.storm = Storm(self.config("adaptive"), hooks)
        self.waits: list[tuple[float, int]] = []
        self.switches: list[SwitchEnded] = []
        self.storm.events.switch_ended.listen(self.switches.append)

    def config(self, policy: str) -> Config:
        """Return a config of the present models, with enough RAM for all that sleep."""
        settings: dict[str, Any] = {"name": policy, "max_wait_secs": MAX_WAIT_S}
        if not self.is_calm:
            settings |= {
                "alive_interval_secs": 10,
                "drain_timeout_secs": 120,
                "request_timeout_secs": 900,
            }
        for ram in range(60, 500, 10):  # just enough, so that models are stopped
            resources = {"gpu0": 60, "gpu1": 80, "ram": ram}
            with suppress(ConfigError):
                config = config_of(self.models, policy=settings, resources=resources)
                if is_sound(config):
                    return config
        kept = [model for model in self.models.values() if model.pop("keep", False)]
        assert kept, self.models  # which leave no room for others
        return self.config(policy)

    # ---- Clients ----

    async def ask(self, name: str, seconds: float, patience: float) -> None:
        with trio.move_on_after(patience):
            await self.storm.ask(name, seconds)

    async def ask_and_note(self, name: str, seconds: float) -> None:
        """Ask, and note the wait and how many other models had older requests in line."""
        models = self.storm.switcher.models
        older = sum(m.waiters.count > 0 for m in models.values() if m.name != name)
        async with self.storm.board.serving(name) as serving, self.storm.hooks.request(name):
            self.waits.append((serving.waited_s, older))
            await trio.sleep(seconds)

    async def arrive(self, nursery: trio.Nursery) -> None:
        rng = self.rng
        for _ in range(self.requests):
            await trio.sleep(rng.expovariate(1 / GAP_S))
            name, seconds = rng.choice(POPULAR), rng.expovariate(1 / 4)
            if self.is_calm:
                nursery.start_soon(self.ask_and_note, name, seconds)
            elif name in self.storm.board.models:
                patience = rng.choice([1e9, 1e9, 1e9, 0.0, 1.0, 60.0])
                nursery.start_soon(self.ask, name, seconds, patience)
            else:
                self.storm.asked += 1
                self.storm.ends["model_not_found"] += 1

    # ---- Trouble ----

    async def interfere(self, nursery: trio.Nursery) -> None:
        rng, storm = self.rng, self.storm
        while True:
            await trio.sleep(rng.expovariate(1 / 15))
            name = rng.choice(NAMES)
            match rng.randrange(10):
                case 0 | 1:
                    storm.hooks.crash(rng.choice(sorted(storm.hooks.awake) or ["a"]))
                case 2:
                    nursery.start_soon(storm.switch, name)
                case 3:
                    nursery.start_soon(storm.sleep, name)
                case 4:
                    await self.pin_for_a_while(nursery, name)
                case 5:
                    storm.board.set_mode("manual")
                    await trio.sleep(5)
                    storm.board.set_mode("auto")
                case 6:
                    self.models.pop(name, None)
                    self.reload()
                case 7 | 8:
                    self.models[name] = needs_of(rng)
                    self.reload()
                case 9:
                    missing = set(NAMES) - set(self.models)
                    self.models |= {each: needs_of(rng) for each in sorted(missing)}
                    self.reload()

    async def pin_for_a_while(self, nursery: trio.Nursery, name: str) -> None:
        async def pin() -> None:
            await self.storm.pin(name, wait=self.rng.random() < 0.5)

        nursery.start_soon(pin)
        await trio.sleep(20)
        self.storm.switcher.unpin(self.rng.choice([name, None]))

    def reload(self) -> None:
        policy = self.rng.choice(["adaptive", *sorted(POLICIES)])
        self.storm.reload(self.config(policy))

    async def probe(self) -> None:
        while True:
            self.storm.check()
            await trio.sleep(self.rng.expovariate(4))

    async def run(self) -> None:
        storm = self.storm
        async with trio.open_nursery() as beside:
            beside.start_soon(storm.board.run)
            beside.start_soon(self.probe)
            async with trio.open_nursery() as requests:
                async with trio.open_nursery() as trouble:
                    if not self.is_calm:
                        trouble.start_soon(self.interfere, requests)
                    await self.arrive(requests)
                    trouble.cancel_scope.cancel()
                storm.board.set_mode("auto")
                storm.switcher.unpin()
                self.models = {name: needs_of(self.rng) | {"keep": False} for name in NAMES}
                if not self.is_calm:
                    self.reload()
            for model in storm.board.models.values():
                assert (model.in_flight.count, model.waiters.count) == (0, 0)
            beside.cancel_scope.cancel()


# All of the ten thousand take a minute.
@pytest.mark.parametrize("requests", [1_000, pytest.param(REQUESTS, marks=pytest.mark.slow)])
async def test_thousands_of_requests_through_every_kind_of_trouble(
    requests: int, autojump_clock: MockClock
) -> None:
    workload = Workload(1, requests)
    with trio.fail_after(requests * 20):
        await workload.run()
    ends, faults = workload.storm.ends, workload.storm.hooks.faults
    assert ends.total() == workload.storm.asked == requests, "each ends exactly once"
    assert ends["served"] > requests / 3
    assert faults["crash"], faults
    assert faults["reload"], faults
    hooks = {hook for hook in ("wake", "sleep", "verify_asleep", "stop") if faults[hook]}
    assert len(hooks) == 4 if requests == REQUESTS else hooks, faults
    assert workload.storm.hooks.overlapped > 1


@pytest.mark.parametrize("seed", range(3))
async def test_where_nothing_fails_each_wait_has_its_bound(
    seed: int, autojump_clock: MockClock
) -> None:
    """Invariant 7, for victims.

    A request waits at most for the bound, and one turn for its own model and for each model that
    had older requests in line when it came. A turn is two switches and one drain. The longest of
    all that there were stands for each: a switch takes its wake and the sleeps of all that it
    evicted, one after the other.
    """
    workload = Workload(seed, 1_000, is_calm=True)
    with trio.fail_after(20_000):
        await workload.run()
    assert len(workload.waits) == 1_000
    switch_s = max(switch.hooks_s for switch in workload.switches)
    drain_s = max(switch.drain_s for switch in workload.switches)
    turn_s = 2 * switch_s + drain_s
    late_s = max(waited_s - MAX_WAIT_S - (1 + older) * turn_s for waited_s, older in workload.waits)
    assert late_s <= 0, (late_s, switch_s, drain_s)
    assert max(waited_s for waited_s, _ in workload.waits) > MAX_WAIT_S / 2, "it is loaded"
