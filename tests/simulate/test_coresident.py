"""Simulations of models that share memory."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pytest

from bench.residency.baselines import BASELINES, Lru
from llmux.config import PolicyConfig
from llmux.policy import AdaptivePolicy, Policy
from llmux.policy.base import Decision, GroupView, LookAgain, Stay, SwitchTo
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
from llmux.simulate.arrivals import exponential
from llmux.simulate.backends import Crowd
from llmux.switching.core import Traits

# Times of hooks are binary fractions, so that sums of them are exact.
WAKE_S, SLEEP_S = 8.0, 2.0


def adaptive() -> Policy:
    return AdaptivePolicy(PolicyConfig())


def run(
    sizes: Sequence[int],
    amount: int,
    arrivals: Sequence[Arrival],
    policy: Policy | None = None,
    hooks_at_once: float = 1,
    sleep_s: float = SLEEP_S,
    seed: int = 0,
    **more: Any,
) -> Outcome:
    needs = {str(index): Needs.of((size,)) for index, size in enumerate(sizes)}
    more.setdefault("server", lambda _model: Slots(8))
    setup = CoresidentSetup(
        memory=Memory(("gpu",), (amount,), needs),
        wake_s=lambda _model: WAKE_S,
        sleep_s=lambda _model: sleep_s,
        policy=adaptive if policy is None else lambda: policy,
        hooks_at_once=hooks_at_once,
        **more,
    )
    return simulate_coresident(setup, arrivals, seed=seed)


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
    """Evicts what is too small."""

    def decide(self, view: GroupView, /) -> Decision:
        wanted = [v.name for v in view.models.values() if v.queued and not v.is_moving]
        evict = [v.name for v in view.models.values() if v.awake_since is not None]
        return SwitchTo(wanted[0], evict=tuple(evict[1:])) if wanted else Stay()


def test_a_policy_that_overcommits_memory_is_refused() -> None:
    arrivals = [Arrival(0.0, "0", 1.0), Arrival(20.0, "1", 1.0), Arrival(40.0, "2", 1.0)]
    with pytest.raises(ValueError, match="2 does not fit even without 1"):
        run([60, 30, 60], 100, arrivals, Overcommits())


# ---- Slots, freezing, failures, kept models ----


def waits_of(outcome: Outcome) -> list[tuple[str, float, float]]:
    """Return model, arrival and wait of each request, in order of arrival."""
    names = [outcome.names[index] for index in outcome.models]
    return sorted(zip(names, outcome.arrived_at, outcome.waits(), strict=True), key=itemgetter(1))


def test_those_in_line_for_slots_at_a_decision_are_let_in_before_the_drain() -> None:
    arrivals = [
        *(Arrival(0.0, "0", 10.0) for _ in range(3)),  # one slot: 8 to 18, 18 to 28, 28 to 38
        Arrival(9.0, "1", 1.0),  # claims 0 at once
        Arrival(12.0, "0", 10.0),  # came after the decision: waits until 0 is back
    ]
    outcome = run([60, 60], 100, arrivals, Lru(), traits={"0": Traits(max_in_flight=1)})
    leaves_at = 38.0
    woken_at = leaves_at + SLEEP_S + WAKE_S
    back_at = woken_at + 1 + SLEEP_S + WAKE_S
    assert waits_of(outcome) == [
        ("0", 0.0, WAKE_S),
        ("0", 0.0, 18.0),
        ("0", 0.0, 28.0),
        ("1", 9.0, woken_at - 9),
        ("0", 12.0, back_at - 12),
    ]
    assert outcome.longest_drain_s == leaves_at - 9  # the line is part of the drain
    assert outcome.drains[0] == (0, 28.0, 38.0)


def test_a_model_whose_line_goes_first_may_stay_after_all() -> None:
    arrivals = [
        Arrival(0.0, "1", 20.0),  # busy from 8 to 28
        *(Arrival(1.0, "0", 50.0) for _ in range(3)),
        Arrival(29.0, "2", 1.0),  # 1 is idle again, and will do
    ]

    class First(Policy):
        """Evicts 0 at once, and in place of it 1 once that is idle."""

        def decide(self, view: GroupView, /) -> Decision:
            assert view.room is not None
            for switch in view.room.switches:
                if switch.may_change and switch.target == "2" and view.now >= 30:
                    assert switch.draining == ("0",)
                    assert view.models["0"].awake_since == 16
                    return SwitchTo("2", evict=("1",))
            asleep = [v for v in view.models.values() if v.queued and v.awake_since is None]
            ready = [v.name for v in asleep if not v.is_moving]
            if not ready:
                return LookAgain(30) if view.now < 30 else Stay()
            return SwitchTo(ready[0], evict=("0",) if ready[0] == "2" else ())

    outcome = run([50, 50, 50], 100, arrivals, First(), traits={"0": Traits(max_in_flight=1)})
    waits = {(model, at): wait for model, at, wait in waits_of(outcome)}
    assert waits["2", 29.0] == 1 + SLEEP_S + WAKE_S
    assert [index for index, _, _ in outcome.drains] == []
    assert outcome.switches == 3


def test_frozen_requests_go_on_where_they_were() -> None:
    arrivals = [Arrival(0.0, "0", 20.0), Arrival(10.0, "1", 4.0)]
    traits = {"0": Traits(preserves_in_flight=True)}
    outcome = run([60, 60], 100, arrivals, Lru(), traits=traits)
    there, back = SLEEP_S + WAKE_S, 4 + SLEEP_S + WAKE_S
    assert waits_of(outcome) == [("0", 0.0, WAKE_S + there + back), ("1", 10.0, there)]
    assert sorted(outcome.frozen_s) == [0.0, there + back]


def test_a_failed_wake_is_cleaned_up_and_refuses_its_line() -> None:
    arrivals = [Arrival(0.0, "0", 1.0), Arrival(9.0, "0", 1.0), Arrival(30.0, "0", 1.0)]
    outcome = run([60], 100, arrivals, failing_wakes=0.5, seed=1)
    # The first wake fails at 8, and its server is gone at 10. The next try begins then.
    assert outcome.failed == 1
    assert waits_of(outcome) == [("0", 9.0, 10 + WAKE_S - 9), ("0", 30.0, 0.0)]


def test_every_request_ends_though_wakes_fail() -> None:
    outcome = run([40, 60, 25, 60], 80, traffic(4, 200, seed=6), failing_wakes=0.3, seed=1)
    assert outcome.failed > 0
    assert outcome.count + outcome.failed == 200


@pytest.mark.parametrize(("amount", "is_tried"), [(120, True), (100, False)])
def test_a_failing_model_is_tried_beside_others_if_it_fits(amount: int, is_tried: bool) -> None:
    # Wakes 0, which is asked every 10 s; the next five wakes are those of 1, and fail.
    arrivals = [Arrival(10.0 * at, "0", 1.0) for at in range(200)]
    arrivals += [Arrival(25.0 + 10 * at, "1", 1.0) for at in range(197)]
    outcome = run([60, 60], amount, sorted(arrivals), failing_wakes=0.5, seed=94)
    assert outcome.count + outcome.failed == 397
    answered = Counter(outcome.models)
    assert (answered[1] > 0) is is_tried
    if is_tried:
        assert answered[0] == 200


def test_a_kept_model_is_never_evicted() -> None:
    arrivals = traffic(4, 200, seed=7)
    outcome = run([20, 60, 60, 60], 80, arrivals, keep=("0",))
    stays = [index for index, _, _ in outcome.spans]
    assert stays.count(0) == 1
    assert outcome.count == 200


# ---- Lanes and turns ----


def test_hooks_that_touch_the_same_resource_run_one_at_a_time_and_others_overlap() -> None:
    touches = {"0": frozenset({"gpu0"}), "1": frozenset({"gpu0"}), "2": frozenset({"gpu1"})}
    arrivals = [Arrival(0.0, name, 1.0) for name in "012"]
    outcome = run([10, 10, 10], 80, arrivals, hooks_at_once=math.inf, touches=touches)
    assert [wait for _, _, wait in sorted(waits_of(outcome))] == [WAKE_S, 2 * WAKE_S, WAKE_S]


def test_a_hook_that_waits_for_a_lane_is_not_overtaken_there() -> None:
    both = frozenset({"gpu0", "gpu1"})
    touches = {"0": frozenset({"gpu0"}), "1": both, "2": frozenset({"gpu1"})}
    arrivals = [Arrival(0.0, "0", 1.0), Arrival(1.0, "1", 1.0), Arrival(2.0, "2", 1.0)]
    outcome = run([10, 10, 10], 80, arrivals, hooks_at_once=math.inf, touches=touches)
    waits = {model: wait for model, _, wait in waits_of(outcome)}
    assert waits == {"0": WAKE_S, "1": 2 * WAKE_S - 1, "2": 3 * WAKE_S - 2}


def test_turns_go_by_the_age_of_the_oldest_request() -> None:
    gpu = {name: frozenset({"gpu"}) for name in "012"}
    arrivals = [
        *(Arrival(0.0, name, 0.0) for name in "012"),  # wakes them: 24 s
        Arrival(100.0, "0", 10.0),
        Arrival(101.0, "1", 10.0),  # waits for its turn
        Arrival(102.0, "2", 10.0),
        Arrival(103.0, "0", 10.0),  # 0 has its turn, and those of 1 and 2 come first
        Arrival(104.0, "1", 10.0),  # is in line when the turn of 1 begins
    ]
    outcome = run([10, 10, 10], 80, arrivals, touches=gpu, busy=1)
    admitted = {(m, at): at + wait for m, at, wait in waits_of(outcome) if at}
    assert admitted == {
        ("0", 100.0): 100.0,
        ("1", 101.0): 110.0,
        ("2", 102.0): 120.0,
        ("0", 103.0): 130.0,
        ("1", 104.0): 110.0,
    }
    two = run([10, 10, 10], 80, arrivals, touches=gpu, busy=2)
    waits = {(m, at): wait for m, at, wait in waits_of(two) if at}
    assert waits["1", 101.0] == 0
    assert waits["2", 102.0] == 110 - 102


@pytest.mark.parametrize("busy", [1, 2])
def test_no_more_than_the_cap_are_at_work_on_a_resource(busy: int) -> None:
    touches = {
        str(index): frozenset({"gpu0"} if index % 3 else {"gpu0", "gpu1"}) for index in range(7)
    }
    sizes = [40, 4, 25, 12, 30, 8, 60]
    outcome = run(
        sizes, 80, traffic(7, 300, seed=3), busy=busy, touches=touches,
        traits={"1": Traits(max_in_flight=2)},
    )  # fmt: skip
    assert outcome.count == 300
    changes = sorted(
        [(at, 1, model) for at, model in zip(outcome.admitted_at, outcome.models, strict=True)]
        + [(at, -1, model) for at, model in zip(outcome.ended_at, outcome.models, strict=True)]
    )
    running: Counter[int] = Counter()
    for _, by, model in changes:
        running[model] += by
        assert sum(count > 0 for count in running.values()) <= busy


def test_turns_serve_enough_for_one_model_at_a_time_to_keep_up() -> None:
    # Half of what eight slots can do: turns of single requests would serve an eighth.
    touches = {name: frozenset({"gpu"}) for name in "0123"}
    arrivals = list(poisson(zipf(4), 0.5, exponential(8.0), 1000, random.Random(2)))
    outcome = run([10] * 4, 80, arrivals, touches=touches, busy=1)
    assert max(outcome.waits()) < 400


def test_models_at_work_slow_each_other() -> None:
    crowd = Crowd(lambda own, others: 1 / (own + others))
    touches = {"0": frozenset({"a"}), "1": frozenset({"a", "b"}), "2": frozenset({"b"})}
    arrivals = [
        *(Arrival(0.0, name, 0.0) for name in "012"),
        Arrival(100.0, "0", 10.0),
        Arrival(105.0, "1", 10.0),
        Arrival(300.0, "0", 10.0),
        Arrival(300.0, "2", 10.0),
    ]
    outcome = run([10, 10, 10], 80, arrivals, server=lambda name: crowd.server(touches[name]))
    waits = {(m, at): wait for m, at, wait in waits_of(outcome) if at}
    # Both run at half the speed from 105 to 115, where 0 ends; 1 has 5 s of work left then.
    assert waits == {("0", 100.0): 5, ("1", 105.0): 5, ("0", 300.0): 0, ("2", 300.0): 0}


def test_the_use_of_the_time_adds_up() -> None:
    outcome = run([60, 60], 100, [Arrival(0.0, "0", 4.0), Arrival(9.0, "1", 1.0)], Lru())
    # Wakes 0 until 8, serves until 9, drains until 12, switches until 22, serves until 23.
    assert outcome.seconds == {"serving": 2.0, "draining": 3.0, "switching": 18.0, "idle": 0.0}
