"""A random workload on shared memory: failures, reloads and operators, and each request ends."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from llmux.errors import LlmuxError
from llmux.observe.schemas import Pin
from llmux.policy.room import Needs
from llmux.switching.memory import GroupMemory
from llmux.switching.model import Traits
from tests.sharing import SharedRig, shared

NAMES = [f"m{number}" for number in range(16)]
HOOKS = ("wake", "sleep", "verify_asleep", "stop")


def memory_of(rng: random.Random, ram: int) -> GroupMemory:
    """Return two GPUs and some RAM: small models, large ones, and some over both GPUs."""
    needs = {}
    for number, name in enumerate(NAMES):
        size = rng.choice([4, 8, 20, 40, 60])
        awake = (size, size, 0) if number % 8 == 7 else (size, 0, 0)
        if number % 2 and number % 8 != 7:
            awake = (0, size, 0)
        asleep = (0, 0, 5) if number % 3 == 0 else None
        needs[name] = Needs.of(
            awake, asleep, tuple(min(80, each + 2 * (each > 0)) for each in awake)
        )
    return shared({"gpu0": 80, "gpu1": 80, "ram": ram}, needs)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_each_request_of_a_random_workload_ends(
    seed: int, count: int, autojump_clock: MockClock
) -> None:
    rng = random.Random(seed)
    traits = {
        name: Traits(
            max_in_flight=rng.choice([1.0, 4.0, float("inf")]),
            idle_sleep_s=rng.choice([60.0, float("inf")]),
            is_kept=name == "m1",
            stops=int(name[1:]) % 3 == 0,
        )
        for name in NAMES
    }
    rig = SharedRig(
        memory_of(rng, 60),
        traits=traits,
        seconds={(name, hook): rng.uniform(0.1, 4) for name in NAMES for hook in HOOKS},
        verifiers={name for name in NAMES if rng.random() < 0.5},
        max_wait_secs=60,
        request_timeout_secs=600,
    )
    ended = 0

    async def ask(model: str) -> None:
        nonlocal ended
        with trio.move_on_after(rng.choice([2, 1e6])):
            try:
                await rig.ask(model, rng.expovariate(1 / 2))
            except LlmuxError:
                pass
        ended += 1

    async def meddle() -> None:
        switcher = rig.switcher
        while True:
            await trio.sleep(rng.expovariate(1 / 40))
            model, what = rng.choice(NAMES), rng.random()
            try:
                with trio.move_on_after(100):
                    if what < 0.3:
                        hook = rng.choice(HOOKS)
                        rig.hooks.failing[model, hook] = rng.randint(1, 2)
                    elif what < 0.5:
                        rig.use(memory_of(rng, rng.choice([60, 40])))
                    elif what < 0.65:
                        await switcher.force_switch(model)
                    elif what < 0.75:
                        await switcher.put_model_to_sleep(model)
                    elif what < 0.85:
                        await switcher.pin(Pin(model=model, wait=rng.random() < 0.5))
                    else:
                        switcher.unpin()
            except LlmuxError:
                pass

    async with rig.running() as requests:
        async with trio.open_nursery() as beside:
            beside.start_soon(meddle)
            for _ in range(count):
                await trio.sleep(rng.expovariate(2))
                requests.start_soon(ask, min(rng.choice(NAMES), rng.choice(NAMES)))
            beside.cancel_scope.cancel()
        rig.switcher.unpin()
        rig.hooks.failing.clear()
    assert ended == count
    assert sum(rig.hooks.served.values()) > count / 3
    assert rig.hooks.overlapped > 1
