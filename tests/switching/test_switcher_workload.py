"""Random arrivals, departures, failures and orders; every invariant checked at every step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from llmux.errors import HookError, LlmuxError, StreamCut
from llmux.policy import POLICIES
from llmux.switching.model import Traits
from tests.fakes import FakeHooks, Rig

MODELS = "abcd"
models = st.sampled_from(MODELS)
# Coarse, so that many things happen at the same instant.
instants = st.integers(0, 20).map(float)
durations = st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0])


@dataclass(frozen=True)
class Arrival:
    at: float
    model: str
    seconds: float
    patience: float  # the client leaves after so long, wherever its request is then


@dataclass(frozen=True)
class Command:
    at: float
    what: str  # a model to switch to, "manual" or "auto"


arrivals = st.lists(
    st.builds(
        Arrival, instants, models, durations, st.sampled_from([math.inf, math.inf, 0.0, 1.0, 5.0])
    ),
    max_size=40,
)
commands = st.lists(
    st.builds(Command, instants, st.one_of(models, st.sampled_from(["manual", "auto"]))),
    max_size=5,
)
hook_keys = st.tuples(models, st.sampled_from(["wake", "sleep", "verify_asleep", "prefetch"]))
hook_sets = st.builds(
    FakeHooks,
    seconds=st.dictionaries(hook_keys, durations, max_size=6),
    failing=st.dictionaries(hook_keys, st.integers(1, 6), max_size=3),
    verifiers=st.sets(models),
    prefetchers=st.sets(models),
)
traits = st.dictionaries(
    models,
    st.builds(Traits, st.sampled_from([math.inf, 1, 2]), st.sampled_from([False, False, True])),
)
policies = st.fixed_dictionaries(
    {
        "request_timeout_secs": st.sampled_from([None, None, 5.0]),
        "min_active_secs": st.sampled_from([0.0, 0.0, 4.0]),
        "drain_timeout_secs": st.sampled_from([None, None, 2.0]),
        "drain_before_switch": st.sampled_from([True, True, True, False]),
    }
)


async def request(rig: Rig, arrival: Arrival, ends: Counter[str]) -> None:
    await trio.sleep(arrival.at)
    end = "left"
    with trio.move_on_after(arrival.patience):
        try:
            await rig.ask(arrival.model, arrival.seconds)
            end = "served"
        except LlmuxError as error:
            end = error.code
        except StreamCut:
            end = "cut"
    ends[end] += 1


async def operate(rig: Rig, command: Command) -> None:
    await trio.sleep(command.at)
    match command.what:
        case "manual" | "auto" as mode:
            rig.switcher.set_mode(mode)
            return
    try:
        await rig.switcher.force_switch(command.what)
    except HookError:
        pass
    except LlmuxError as error:
        assert error.code == "not_ready"


async def probe(rig: Rig) -> None:
    """Between any two events: at most one model awake, and the state agrees with the GPU."""
    while True:
        awake = [model.name for model in rig.switcher.models.values() if model.is_awake]
        assert len(awake) <= 1
        assert set(awake) <= rig.hooks.awake
        for model in rig.switcher.models.values():
            assert model.in_flight.count <= model.max_in_flight, f"{model} admits too many"
            has_room = model.is_awake and model.room > 0
            assert not (has_room and model.waiters.count), f"{model} keeps some waiting"
            view = model.view()
            assert view.ages.count == view.queued, f"{model} counts wrongly"
        await trio.sleep(0.25)


def run_workload(
    arrivals: list[Arrival],
    commands: list[Command],
    hooks: FakeHooks,
    settings_of_policy: dict[str, Any],
    policy: str,
    traits: dict[str, Traits],
) -> None:
    ends: Counter[str] = Counter()

    async def main() -> None:
        with trio.fail_after(10_000):
            make = POLICIES[policy]
            rig = Rig(MODELS, hooks=hooks, policy=make, traits=traits, **settings_of_policy)
            async with trio.open_nursery() as background:
                background.start_soon(probe, rig)
                async with rig.running() as tasks:
                    for arrival in arrivals:
                        tasks.start_soon(request, rig, arrival, ends)
                    for command in commands:
                        tasks.start_soon(operate, rig, command)
                    tasks.start_soon(operate, rig, Command(30.0, "auto"))
                background.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ends.total() == len(arrivals)


CASES = st.tuples(
    arrivals, commands, hook_sets, policies, st.sampled_from(sorted(POLICIES)), traits
)


@settings(max_examples=75)
@given(CASES)
def test_every_request_ends_and_every_count_returns_to_zero(case: tuple[Any, ...]) -> None:
    run_workload(*case)


@pytest.mark.slow
@settings(max_examples=500)
@given(CASES)
def test_the_same_in_many_more_cases(case: tuple[Any, ...]) -> None:
    run_workload(*case)
