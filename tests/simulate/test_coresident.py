"""Simulations of models that share memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bench.residency.baselines import BASELINES
from llmux.config import PolicyConfig
from llmux.policy import AdaptivePolicy, Policy
from llmux.policy.base import Decision, GroupView, Stay, SwitchTo
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
    zipf,
)

# Times of hooks are binary fractions, so that sums of them are exact.
WAKE_S, SLEEP_S = 8.0, 2.0


def adaptive() -> Policy:
    return AdaptivePolicy(PolicyConfig())


def run(
    sizes: Sequence[int],
    amount: int,
    arrivals: Sequence[Arrival],
    policy: Policy | None = None,
    hooks_at_once: int = 1,
    sleep_s: float = SLEEP_S,
) -> Outcome:
    needs = {str(index): Needs.of((size,)) for index, size in enumerate(sizes)}
    setup = CoresidentSetup(
        memory=Memory(("gpu",), (amount,), needs),
        wake_s=lambda _model: WAKE_S,
        sleep_s=lambda _model: sleep_s,
        server=lambda _model: Slots(8),
        policy=adaptive if policy is None else lambda: policy,
        hooks_at_once=hooks_at_once,
    )
    return simulate_coresident(setup, arrivals)


def traffic(models: int, requests: int, seed: int, per_second: float = 0.4) -> list[Arrival]:
    rng = random.Random(seed)

    def work(draw: random.Random) -> float:
        return draw.randint(1, 256) / 16

    arrivals = poisson(zipf(models), per_second, work, requests, rng)
    return [arrival._replace(at=round(arrival.at * 64) / 64) for arrival in arrivals]


@pytest.mark.parametrize("seed", range(6))
def test_with_room_for_one_all_is_as_with_one_awake_at_a_time(seed: int) -> None:
    arrivals = traffic(4, 400, seed)
    alone = simulate(
        Setup(
            models=["0", "1", "2", "3"],
            cost=lambda _source, _target: WAKE_S,
            server=lambda _model: Slots(8),
            policy=adaptive,
        ),
        arrivals,
    )
    # Without sleep hooks, since shared memory has costs for each model, and this for each pair.
    shared = run([60, 55, 70, 51], 100, arrivals, sleep_s=0.0)
    assert shared.ended_at == alone.ended_at
    assert shared.switches == alone.switches


def test_models_that_fit_wait_for_their_own_wake_only() -> None:
    arrivals = [Arrival(0.0, "0", 100.0), Arrival(1.0, "1", 1.0)]
    one_hook = run([40, 40], 80, arrivals)
    assert sorted(one_hook.waits()) == [WAKE_S, 2 * WAKE_S - 1]
    assert sorted(run([40, 40], 80, arrivals, hooks_at_once=2).waits()) == [WAKE_S, WAKE_S]


def test_a_wake_that_fits_does_not_wait_for_the_drain_of_another_model() -> None:
    arrivals = [
        Arrival(0.0, "0", 100.0),  # holds 60 of 100 until 108
        Arrival(10.0, "1", 1.0),  # needs 60: drains it
        Arrival(20.0, "2", 1.0),  # needs 30, which are free
    ]
    lru = run([60, 60, 30], 100, arrivals, BASELINES["lru"]())
    waits = dict(zip([lru.names[index] for index in lru.models], lru.waits(), strict=True))
    assert waits["2"] == WAKE_S
    assert waits["1"] == 108 + SLEEP_S + WAKE_S - 10


@pytest.mark.parametrize("hooks_at_once", [1, 8])
@pytest.mark.parametrize("policy", ["adaptive", *BASELINES])
def test_every_request_is_answered(policy: str, hooks_at_once: int) -> None:
    arrivals = traffic(7, 300, seed=3)
    made = adaptive() if policy == "adaptive" else BASELINES[policy]()
    outcome = run([40, 4, 25, 12, 30, 8, 60], 80, arrivals, made, hooks_at_once)
    assert outcome.count == 300


def test_the_same_arrivals_give_the_same_figures() -> None:
    arrivals = traffic(7, 200, seed=5)
    sizes = [40, 4, 25, 12, 30, 8, 60]
    first, second = (run(sizes, 80, arrivals) for _ in range(2))
    assert first.ended_at == second.ended_at
    # The order of sets differs from process to process, and must not matter.
    assert (first.switches, round(sum(first.waits()), 6)) == (49, 3333.739455)


class Overcommits:
    """Evicts nobody."""

    def decide(self, view: GroupView, /) -> Decision:
        wanted = [v.name for v in view.models.values() if v.queued and not v.is_moving]
        return SwitchTo(wanted[0]) if wanted else Stay()


def test_a_policy_that_overcommits_memory_is_refused() -> None:
    arrivals = [Arrival(0.0, "0", 1.0), Arrival(20.0, "1", 1.0)]
    with pytest.raises(ValueError, match="1 does not fit"):
        run([60, 60], 100, arrivals, Overcommits())
