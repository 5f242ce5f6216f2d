"""Built-in policies and users' own in simulations of models that share memory."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Sequence

import pytest

from llmux.config import PolicyConfig
from llmux.policy import (
    POLICIES,
    Decision,
    GroupView,
    LookAgain,
    Policy,
    Stay,
    SwitchTo,
    load_policy,
)
from llmux.policy.room import Memory, Needs
from llmux.simulate import (
    Arrival,
    CoresidentSetup,
    Outcome,
    Setup,
    Slots,
    poisson,
    simulate,
    simulate_coresident,
)
from llmux.simulate.arrivals import exponential
from llmux.switching.core import Traits
from tests.simulate.test_coresident import WAKE_S, run, traffic

SIZES = [40, 4, 25, 12, 30, 8, 60]


def built_in(name: str, **config: float) -> Policy:
    return load_policy(PolicyConfig(name=name, **config))  # type: ignore[arg-type]


@pytest.mark.parametrize("min_active_s", [0.0, 16.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_with_room_for_one_all_is_as_with_one_awake_at_a_time(
    policy: str, min_active_s: float
) -> None:
    arrivals = traffic(4, 400, seed=8)
    alone = simulate(
        Setup(
            models=["0", "1", "2", "3"],
            cost=lambda _source, _target: WAKE_S,
            server=lambda _model: Slots(8),
            policy=lambda: built_in(policy, min_active_secs=min_active_s),
        ),
        arrivals,
    )
    made = built_in(policy, min_active_secs=min_active_s)
    # Without sleep hooks, since shared memory has costs for each model, and this for each pair.
    shared = run([60, 55, 70, 51], 100, arrivals, made, sleep_s=0.0)
    assert shared.ended_at == alone.ended_at
    assert shared.switches == alone.switches


@pytest.mark.parametrize("policy", POLICIES)
def test_with_room_for_one_slots_are_served_as_with_one_awake_at_a_time(policy: str) -> None:
    arrivals = traffic(3, 300, seed=9)
    alone = simulate(
        Setup(
            models=["0", "1", "2"],
            cost=lambda _source, _target: WAKE_S,
            server=lambda _model: Slots(8),
            policy=lambda: built_in(policy),
            max_in_flight=2,
        ),
        arrivals,
    )
    traits = {name: Traits(max_in_flight=2) for name in "012"}
    shared = run([60, 55, 70], 100, arrivals, built_in(policy), sleep_s=0.0, traits=traits)
    assert shared.ended_at == alone.ended_at


@pytest.mark.parametrize("hooks_at_once", [1, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered(policy: str, hooks_at_once: int) -> None:
    outcome = run(SIZES, 80, traffic(7, 300, seed=3), built_in(policy), hooks_at_once)
    assert outcome.count == 300


@pytest.mark.parametrize("policy", POLICIES)
def test_room_for_several_is_better_than_room_for_one(policy: str) -> None:
    arrivals = traffic(7, 400, seed=4)
    one = run(SIZES, 60, arrivals, built_in(policy))
    several = run(SIZES, 120, arrivals, built_in(policy))
    assert sum(several.waits()) < 0.7 * sum(one.waits())
    assert several.switches < one.switches


class NightShift:
    """As in docs/policies.md: it knows nothing of shared memory."""

    def decide(self, view: GroupView) -> Decision:
        waiting = [m for m in view.models.values() if m.queued and m.name != view.active]
        ready = [m for m in waiting if m.retry_at <= view.now]
        if not ready:
            return LookAgain(min(m.retry_at for m in waiting)) if waiting else Stay()
        first = min(ready, key=lambda m: m.oldest_arrival or math.inf)
        assert first.oldest_arrival is not None
        due = first.oldest_arrival + 30
        if view.active is None or due <= view.now:
            return SwitchTo(first.name, "a request has waited long enough")
        return LookAgain(due)


def test_a_policy_that_names_no_evictions_answers_every_request() -> None:
    outcome = run(SIZES, 80, traffic(7, 300, seed=5), NightShift())
    assert outcome.count == 300


# ---- Nobody starves ----

SMALL = {"0": 12, "1": 14, "2": 16, "3": 18}
BIG = "4"
MAX_WAIT_S, SWITCH_S = 120.0, 10.0


def hot_and_big(seed: int) -> list[Arrival]:
    """Four small models that are asked all the time; one that needs everything, now and then."""
    rng = random.Random(seed)
    work = exponential(8.0)
    hot = list(poisson([1.0] * 4, 1.2, work, 4000, rng))
    big: list[Arrival] = []
    for arrival in poisson([1.0], 1 / 400, work, 4000, rng):
        if arrival.at > hot[-1].at:
            break
        big.append(arrival._replace(model=BIG))
    return sorted([*hot, *big])


def bounds_s(outcome: Outcome, arrivals: Sequence[Arrival]) -> list[tuple[float, float]]:
    """Of each request, what it has waited in line, and what invariant 7 lets it wait.

    A switch has the wake of its target and the sleeps of all that leave for it.
    """
    drain_s = max((end - start for _, start, end in outcome.drains), default=0.0)
    switch_s = SWITCH_S * len(SMALL)
    jobs = sorted(zip(outcome.arrived_at, outcome.admitted_at, outcome.models, strict=True))
    arrived = [job[0] for job in jobs]
    longest_s = max(outcome.line_waits())
    found = []
    for position, (arrived_at, admitted_at, model) in enumerate(jobs):
        first = bisect(arrived, arrived_at - longest_s - 1)
        older = {job[2] for job in jobs[first:position] if job[1] > arrived_at}
        turns = len(older | {model})
        found.append((admitted_at - arrived_at, MAX_WAIT_S + turns * (2 * switch_s + drain_s)))
    assert len(found) == len(arrivals)
    return found


@pytest.mark.parametrize("hooks_at_once", [1, 8])
@pytest.mark.parametrize("amount", [32, 60])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_that_needs_everything_does_not_starve(
    policy: str, amount: int, hooks_at_once: int
) -> None:
    arrivals = hot_and_big(seed=3)
    needs = {name: Needs.of((size,)) for name, size in SMALL.items()}
    needs[BIG] = Needs.of((amount,))
    setup = CoresidentSetup(
        memory=Memory(("gpu",), (amount,), needs),
        wake_s=lambda _model: 0.75 * SWITCH_S,
        sleep_s=lambda _model: 0.25 * SWITCH_S,
        server=lambda _model: Slots(8),
        policy=lambda: built_in(policy, max_wait_secs=MAX_WAIT_S),
        hooks_at_once=hooks_at_once,
    )
    outcome = simulate_coresident(setup, arrivals)
    for waited_s, allowed_s in bounds_s(outcome, arrivals):
        assert waited_s <= allowed_s
