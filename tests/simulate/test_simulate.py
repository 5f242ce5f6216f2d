"""The simulator: against queueing theory, and against the rules of the switcher."""

from __future__ import annotations

import dataclasses
import math
import random
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.config import PolicyConfig
from llmux.policy import POLICIES, Decision, GroupView, LookAgain, Policy, Stay, SwitchTo
from llmux.policy.estimates import Estimates
from llmux.policy.fifo import FifoPolicy
from llmux.simulate import (
    Arrival,
    Closed,
    Outcome,
    Setup,
    Sharing,
    Slots,
    bursty,
    one_hot,
    poisson,
    simulate,
    zipf,
)
from llmux.simulate.arrivals import Draw, constant, exponential
from llmux.simulate.backends import Job, Server
from llmux.simulate.engine import Simulation
from llmux.simulate.outcome import mean

REQUESTS = 50_000
ONE_SLOT = partial(Slots, 1)


def setup(
    models: str = "a",
    policy: str = "fifo",
    cost_s: float = 0.0,
    server: Callable[[], Server] = ONE_SLOT,
    *,
    max_wait_secs: float = 300.0,
    max_in_flight: int | None = None,
    preserves_in_flight: bool = False,
    failing_wakes: float = 0.0,
) -> Setup:
    return Setup(
        models=list(models),
        cost=lambda _source, _target: cost_s,
        server=lambda _model: server(),
        policy=partial(POLICIES[policy], PolicyConfig(max_wait_secs=max_wait_secs)),
        max_in_flight=max_in_flight,
        preserves_in_flight=preserves_in_flight,
        failing_wakes=failing_wakes,
    )


# ---- Against theory ----
#
# Formulas get the moments that the drawn requests really have, not those of their distribution:
# half of the noise is in these.


@dataclasses.dataclass(frozen=True)
class Moments:
    """What theory needs to know of some requests: rate, and moments of the service time."""

    rate: float
    service_s: float
    service_s2: float

    @property
    def load(self) -> float:
        return self.rate * self.service_s

    @classmethod
    def of(cls, arrivals: Sequence[Arrival]) -> Moments:
        works = [arrival.work_s for arrival in arrivals]
        rate = len(arrivals) / arrivals[-1].at
        return cls(rate, mean(works), mean([work * work for work in works]))


def two_points(rng: random.Random) -> float:
    return 0.5 if rng.random() < 0.75 else 2.5


def drawn(rate: float, work: Draw, seed: int, models: int = 1) -> list[Arrival]:
    return list(poisson([1 / models] * models, rate, work, REQUESTS, random.Random(seed)))


def measured_over_theory(
    samples: Sequence[Sequence[Arrival]],
    measure: Callable[[Sequence[Arrival]], float],
    theory: Callable[[Moments], float],
) -> float:
    return mean([measure(sample) / theory(Moments.of(sample)) for sample in samples])


def pollaczek_khinchine(moments: Moments) -> float:
    return moments.rate * moments.service_s2 / (2 * (1 - moments.load))


def erlang_c(servers: int, moments: Moments) -> float:
    """The mean wait of M/M/K."""
    load = moments.load
    terms = [load**n / math.factorial(n) for n in range(servers + 1)]
    last = terms.pop() * servers / (servers - load)
    return last / (sum(terms) + last) * moments.service_s / (servers - load)


@pytest.mark.parametrize(
    ("load", "seeds"), [(0.3, 4), pytest.param(0.7, 5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("work", [exponential(1.0), constant(1.0), two_points])
def test_one_slot_waits_as_pollaczek_and_khinchine_say(work: Draw, load: float, seeds: int) -> None:
    samples = [drawn(load, work, seed) for seed in range(seeds)]
    ratio = measured_over_theory(
        samples, lambda sample: mean(simulate(setup("0"), sample).waits()), pollaczek_khinchine
    )
    assert ratio == pytest.approx(1, abs=0.02)


def test_one_slot_is_lindleys_recursion() -> None:
    sample = drawn(0.7, exponential(1.0), seed=1)[:5000]
    free_at = 0.0
    expected = []
    for arrival in sample:
        free_at = max(free_at, arrival.at) + arrival.work_s
        expected.append(free_at)
    assert list(simulate(setup("0"), sample).ended_at) == pytest.approx(expected)


def test_three_slots_wait_as_erlang_says() -> None:
    samples = [drawn(2.1, exponential(1.0), seed) for seed in range(3)]
    three = setup("0", server=partial(Slots, 3))
    ratio = measured_over_theory(
        samples, lambda sample: mean(simulate(three, sample).waits()), partial(erlang_c, 3)
    )
    assert ratio == pytest.approx(1, abs=0.02)


def test_a_shared_server_answers_as_processor_sharing_does() -> None:
    samples = [drawn(0.7, exponential(1.0), seed) for seed in range(3)]
    shared = setup("0", server=partial(Sharing, lambda busy: 1 / busy))
    ratio = measured_over_theory(
        samples,
        lambda sample: mean(simulate(shared, sample).responses()),
        lambda moments: moments.service_s / (1 - moments.load),
    )
    assert ratio == pytest.approx(1, abs=0.03)


def test_a_server_that_never_slows_delays_nobody() -> None:
    sample = drawn(5.0, exponential(1.0), seed=1)[:5000]
    outcome = simulate(setup("0", server=partial(Sharing, lambda _busy: 1.0)), sample)
    assert max(outcome.waits()) < 1e-6


class Gated:
    """Polls in a circle; who comes after a model has opened waits for its next turn.

    To close at once is that: those in flight, and nobody else, are served by the drain.
    """

    def decide(self, snapshot: GroupView) -> Decision:
        here = -1 if snapshot.active is None else int(snapshot.active)
        return SwitchTo(str((here + 1) % 4))


class Cyclic(Gated):
    """Polls in a circle; leaves a model once it is empty."""

    def decide(self, snapshot: GroupView) -> Decision:
        active = snapshot.active
        if active is not None and snapshot.models[active].in_flight:
            return Stay()
        return super().decide(snapshot)


@pytest.mark.parametrize(
    ("policy", "sign"), [(Cyclic, -1), pytest.param(Gated, 1, marks=pytest.mark.slow)]
)
def test_polling_waits_as_takagi_says(policy: Callable[[], Policy], sign: int) -> None:
    """Takagi, Analysis of Polling Systems: symmetric queues, constant switchover times."""
    switchover_s = 1.0
    polling = Setup(
        models=list("0123"),
        cost=lambda _source, _target: switchover_s,
        server=lambda _model: Slots(1),
        policy=policy,
        asks_when_idle=True,
    )

    def theory(moments: Moments) -> float:
        walking = switchover_s * (4 + sign * moments.load)
        return (moments.rate * moments.service_s2 + walking) / (2 * (1 - moments.load))

    samples = [drawn(0.6, exponential(1.0), seed, models=4) for seed in range(3)]
    ratio = measured_over_theory(
        samples,
        # They walk for ever: the end of the arrivals is the end.
        lambda sample: mean(simulate(polling, sample, until=sample[-1].at).waits()),
        theory,
    )
    assert ratio == pytest.approx(1, abs=0.03)


# ---- Arrivals ----


def test_the_same_seed_gives_the_same_outcome() -> None:
    def run(seed: int) -> Outcome:
        rng = random.Random(seed)
        arrivals = [
            arrival._replace(model="abc"[int(arrival.model)])
            for arrival in bursty(zipf(3), 1.0, exponential(0.5), 500, rng)
        ]
        return simulate(setup("abc", "adaptive", 2.0, failing_wakes=0.2), arrivals, seed=seed)

    outcome = run(1)
    assert outcome.failed
    assert outcome == run(1)
    assert outcome != run(2)


def test_shares() -> None:
    assert zipf(3) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert one_hot(3) == pytest.approx([0.8, 0.1, 0.1])
    assert one_hot(1) == [1.0]


def test_bursts_keep_the_rate_and_the_shares() -> None:
    arrivals = list(bursty([0.75, 0.25], 10.0, constant(1.0), 40_000, random.Random(1)))
    assert arrivals == sorted(arrivals)
    assert len(arrivals) / arrivals[-1].at == pytest.approx(10, rel=0.1)
    first = sum(arrival.model == "0" for arrival in arrivals)
    assert first / len(arrivals) == pytest.approx(0.75, rel=0.1)


def test_a_closed_loop_asks_again_once_it_is_answered() -> None:
    rng = random.Random(1)
    agents = Closed(3, [1.0], constant(4.0), constant(1.0), rng)
    named = [arrival._replace(model="a") for arrival in agents.first()]

    def follow(job: Job, now: float) -> Arrival:
        return agents.follow(job, now)._replace(model="a")

    outcome = simulate(
        setup(server=partial(Slots, 3), cost_s=10.0), named, follow=follow, until=39.0
    )
    # Each asks at 4, is answered at 15, asks at 19, 24, 29, 34 and is answered a second later.
    assert list(outcome.arrived_at) == [4] * 3 + [19] * 3 + [24] * 3 + [29] * 3 + [34] * 3
    assert list(outcome.ended_at) == [15] * 3 + [20] * 3 + [25] * 3 + [30] * 3 + [35] * 3


def test_an_answer_need_not_be_followed() -> None:
    more = iter([Arrival(7.0, "a", 1.0)])
    outcome = simulate(
        setup(), [Arrival(0.0, "a", 5.0)], follow=lambda _job, _now: next(more, None)
    )
    assert list(outcome.ended_at) == [5, 8]


# ---- Rules ----


def test_requests_for_the_open_model_go_in_and_the_others_wait_for_drain_and_hooks() -> None:
    outcome = simulate(
        setup("ab", cost_s=10.0, server=partial(Slots, 8)),
        [
            Arrival(0, "a", 30),  # 10: open
            Arrival(12, "a", 8),  # at once; until 20
            Arrival(15, "b", 1),  # fifo: drains until 40, hooks until 50
            Arrival(16, "a", 1),  # during the drain: 51, and hooks until 61
            Arrival(45, "b", 2),  # during the hooks
        ],
    )
    assert list(zip(outcome.models, outcome.arrived_at, outcome.admitted_at, strict=True)) == [
        (0, 12, 12),
        (0, 0, 10),
        (1, 15, 50),
        (1, 45, 50),
        (0, 16, 62),
    ]
    assert outcome.line_waits() == [0, 10, 35, 5, 46]
    assert outcome.waits() == [0, 10, 35, 5, 46]
    assert outcome.spans == [(0, 10, 15), (1, 50, 50), (0, 62, 63)]
    assert outcome.drains == [(0, 15, 40), (1, 50, 52)]
    assert outcome.switches == 3
    assert outcome.seconds == {"serving": 6, "draining": 27, "switching": 30, "idle": 0}


def test_drains_are_measured_by_how_many_were_in_flight() -> None:
    seen: list[Estimates] = []

    class Watching(FifoPolicy):
        def decide(self, snapshot: GroupView) -> Decision:
            seen.append(snapshot.measures)
            return super().decide(snapshot)

    work = [(0, "a", 10), (1, "b", 1), *[(20, "a", 100)] * 4, (21, "b", 1)]
    watched = dataclasses.replace(
        setup("ab", server=partial(Slots, 8)), policy=lambda: Watching(PolicyConfig())
    )
    simulate(watched, [Arrival(*arrival) for arrival in work])
    assert [seen[-1].drain_ahead_s("a", count) for count in (0, 1, 4)] == [0, 18, 99]


def test_the_rest_wait_in_order_where_only_so_many_may_be_in_flight() -> None:
    arrivals = [Arrival(number / 10, "a", 4.0) for number in range(5)]
    outcome = simulate(
        setup(cost_s=1.0, server=partial(Slots, 8), max_in_flight=2),
        [*arrivals, Arrival(5.5, "a", 1.0)],
    )
    in_line = sorted(zip(outcome.arrived_at, outcome.admitted_at, strict=True))
    assert [admitted_at for _, admitted_at in in_line] == [1, 1, 5, 5, 9, 9]
    assert max(outcome.ended_at) == 13


@pytest.mark.parametrize("server", [partial(Slots, 1), partial(Sharing, lambda busy: 1 / busy)])
def test_a_frozen_request_goes_on_where_it_was(server: Callable[[], Server]) -> None:
    def decide(snapshot: GroupView) -> Decision:
        wanted = {None: "a", "a": "b", "b": "a"}[snapshot.active]
        since = snapshot.active_since or 0.0
        at = since + 4 if snapshot.active == "a" else since
        return SwitchTo(wanted) if snapshot.now >= at else LookAgain(at)

    class Pendulum:
        def decide(self, snapshot: GroupView) -> Decision:
            return decide(snapshot)

    outcome = simulate(
        Setup(
            models=["a", "b"],
            cost=lambda _source, _target: 10.0,
            server=lambda _model: server(),
            policy=Pendulum,
            preserves_in_flight=True,
            asks_when_idle=True,
        ),
        [Arrival(0, "a", 10.0)],
        until=100,
    )
    # Open from 10 to 14, from 34 to 38, and from 58: each time away for 20 s.
    assert list(outcome.ended_at) == [60]
    assert outcome.drains == []


def test_failing_wakes_refuse_their_line_and_are_tried_ever_later() -> None:
    tries: list[float] = []

    class Noted:
        def __init__(self) -> None:
            self._policy = POLICIES["fifo"](PolicyConfig())

        def decide(self, snapshot: GroupView) -> Decision:
            decision = self._policy.decide(snapshot)
            if isinstance(decision, SwitchTo):
                tries.append(snapshot.now)
            return decision

    outcome = simulate(
        Setup(
            models=["a"],
            cost=lambda _source, _target: 0.0,
            server=lambda _model: Slots(1),
            policy=Noted,
            failing_wakes=1.0,
        ),
        [Arrival(number / 2, "a", 1.0) for number in range(500)],
    )
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps[:5] == [2, 4, 8, 16, 32]
    assert set(gaps[5:]) == {60}
    assert (outcome.failed, outcome.count, outcome.switches) == (500, 0, 0)


def test_a_failed_wake_refuses_nobody_who_comes_later() -> None:
    arrivals = [Arrival(float(number), "a", 0.5) for number in range(20)]
    outcome = simulate(setup(failing_wakes=0.5), arrivals, seed=1)
    # By this seed the first wake fails and the second succeeds. Refused at 0; who comes at 1 waits for the next try, at 2.
    assert (outcome.failed, outcome.count, outcome.switches) == (1, 19, 1)
    assert list(outcome.admitted_at) == [2, 2, *range(3, 20)]


def test_a_failing_model_takes_the_gpu_from_nobody() -> None:
    targets: list[str] = []

    def cost(_source: str | None, target: str) -> float:
        targets.append(target)
        return 1.0

    class OnlyB(random.Random):
        def random(self) -> float:
            return 0.0 if targets[-1] == "b" else 1.0

    run = Simulation(
        Setup(
            models="ab",
            cost=cost,
            server=lambda _model: Slots(1),
            policy=lambda: POLICIES["fifo"](PolicyConfig()),
            failing_wakes=0.5,
        ),
        iter([Arrival(float(number), "ab"[number % 2], 0.5) for number in range(2000)]),
        None,
        OnlyB(),
        lambda _count: None,
    )
    run.run(math.inf)
    assert targets.count("b") == 3
    assert (run.outcome.count, run.outcome.failed) == (1000, 1000)


def test_progress_is_told_every_ten_thousand() -> None:
    told: list[int] = []
    simulate(setup("0"), drawn(0.3, constant(1.0), seed=1)[:25_000], progress=told.append)
    assert told == [10_000, 20_000]


def test_fairness() -> None:
    outcome = Outcome(["a", "b"])
    assert outcome.fairness() == 1
    for index, wait in ((0, 4.0), (0, 2.0), (1, 0.0)):
        job = Job("ab"[index], 0.0, 1.0)
        job.admitted_at = wait
        outcome.add(index, job, wait + 1.0)
    assert outcome.fairness() == pytest.approx(0.5)


# ---- What must hold whatever comes ----

gaps = st.sampled_from([0.0, 0.001, 0.25, 1.0, 7.5, 60.0, 400.0])
works = st.sampled_from([0.0, 0.01, 0.5, 3.0, 20.0])
requests = st.lists(st.tuples(gaps, st.sampled_from("abc"), works), max_size=40)


@given(
    requests=requests,
    policy=st.sampled_from(sorted(POLICIES)),
    cost_s=st.sampled_from([0.0, 1.0, 30.0]),
    server=st.sampled_from(
        [partial(Slots, 1), partial(Slots, 4), partial(Sharing, lambda n: 1 / n)]
    ),
    max_in_flight=st.sampled_from([None, 1, 3]),
    preserves_in_flight=st.booleans(),
    failing_wakes=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 3),
)
def test_every_request_ends_once_and_only_while_its_model_is_open(
    requests: list[tuple[float, str, float]],
    policy: str,
    cost_s: float,
    server: Callable[[], Server],
    max_in_flight: int | None,
    preserves_in_flight: bool,
    failing_wakes: float,
    seed: int,
) -> None:
    now = 0.0
    arrivals = []
    for gap_s, model, work_s in requests:
        now += gap_s
        arrivals.append(Arrival(now, model, work_s))
    outcome = simulate(
        setup(
            "abc",
            policy,
            cost_s,
            server,
            max_in_flight=max_in_flight,
            preserves_in_flight=preserves_in_flight,
            failing_wakes=failing_wakes,
        ),
        arrivals,
        seed=seed,
    )
    assert outcome.count + outcome.failed == len(arrivals)
    assert failing_wakes or not outcome.failed
    assert min(outcome.line_waits(), default=0) >= 0
    for index, admitted_at in zip(outcome.models, outcome.admitted_at, strict=True):
        spans = [(start, end) for at, start, end in outcome.spans if at == index]
        assert any(start <= admitted_at <= end for start, end in spans)
    stays = sorted((start, end) for _, start, end in [*outcome.spans, *outcome.drains])
    assert all(end <= start for (_, end), (start, _) in pairwise(stays))
    assert all(seconds >= 0 for seconds in outcome.seconds.values())
    if not preserves_in_flight:
        over = max([*outcome.ended_at, *(end for _, end in stays)], default=0.0)
        assert sum(outcome.seconds.values()) >= over - 1e-6


def test_a_failed_wake_keeps_the_frozen() -> None:
    # By this seed the wakes of a and b succeed, and a's second fails.
    outcome = simulate(
        setup("ab", cost_s=1.0, preserves_in_flight=True, failing_wakes=0.5),
        [Arrival(0, "a", 50), Arrival(5, "b", 1)],
        seed=24,
    )
    assert outcome.count == 2


@pytest.mark.parametrize("load", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("shares", [zipf(4), one_hot(4), [0.25] * 4])
def test_freezing_requests_is_no_worse_than_waiting_for_them(
    shares: Sequence[float], load: float
) -> None:
    """A model that is left with many in flight has much to lose: else all go round in slices."""
    means = []
    for freezes in (True, False):
        one = Setup(
            models=list("0123"),
            cost=lambda _source, _target: 2.0,
            server=lambda _model: Slots(8),
            policy=lambda: POLICIES["adaptive"](PolicyConfig()),
            preserves_in_flight=freezes,
        )
        traffic = poisson(shares, load, exponential(8.0), 3000, random.Random(1))
        means.append(mean(simulate(one, traffic).responses()))
    assert means[0] < 1.05 * means[1]


def test_models_that_freeze_and_models_that_drain_stand_side_by_side() -> None:
    outcome = simulate(
        dataclasses.replace(setup("ab", cost_s=1.0), preserves_in_flight=["a"]),
        [Arrival(0, "a", 30.0), Arrival(1, "b", 30.0), Arrival(20.0, "a", 1.0)],
    )
    assert [outcome.names[index] for index, _, _ in outcome.drains] == ["b"]
    assert [round(seconds) for seconds in outcome.frozen_s] == [0, 32, 0]


def test_frozen_requests_get_on_though_switches_cost_nothing() -> None:
    asked = 0

    class Counted:
        def __init__(self) -> None:
            self._policy = POLICIES["fifo"](PolicyConfig())

        def decide(self, snapshot: GroupView) -> Decision:
            nonlocal asked
            asked += 1
            assert asked < 1000
            return self._policy.decide(snapshot)

    outcome = simulate(
        dataclasses.replace(setup("ab", preserves_in_flight=True), policy=Counted),
        [Arrival(0, "a", 0.01), Arrival(0, "b", 0.01)],
    )
    assert outcome.count == 2


# ---- Nobody starves ----


def bounds_s(outcome: Outcome, max_wait_s: float, cost_s: float) -> list[tuple[float, float]]:
    """Of each cold request, what it has waited in line, and what invariant 7 lets it wait."""
    drain_s = max((end - start for _, start, end in outcome.drains), default=0.0)
    jobs = sorted(zip(outcome.arrived_at, outcome.admitted_at, outcome.models, strict=True))
    arrived = [job[0] for job in jobs]
    longest_s = max(outcome.line_waits())
    found = []
    for position, (arrived_at, admitted_at, model) in enumerate(jobs):
        if model:
            first = bisect(arrived, arrived_at - longest_s - 1)
            older = {job[2] for job in jobs[first:position] if job[1] > arrived_at}
            turns = len(older | {model})
            allowed_s = max_wait_s + turns * (2 * cost_s + drain_s)
            found.append((admitted_at - arrived_at, allowed_s))
    return found


def hot_and_cold(cold_models: int, cold_gap_s: float, seed: int) -> list[Arrival]:
    """One model with 0.8 of eight slots, others with a request now and then, all of 8 s."""
    rng = random.Random(seed)
    work = exponential(8.0)
    hot = [a._replace(model="a") for a in poisson([1.0], 0.8, work, 10_000, rng)]
    cold: list[Arrival] = []
    for model in "bcdefgh"[:cold_models]:
        for arrival in poisson([1.0], 1 / cold_gap_s, work, 10_000, rng):
            if arrival.at > hot[-1].at:
                break
            cold.append(arrival._replace(model=model))
    return sorted([*hot, *cold])


@pytest.mark.parametrize("policy", ["adaptive", "exhaustive", "time_slice", "cost_aware"])
@pytest.mark.parametrize(("cost_s", "cold_models"), [(2.0, 3), (60.0, 1), (10.0, 2)])
def test_a_few_cold_requests_do_not_starve(policy: str, cost_s: float, cold_models: int) -> None:
    arrivals = hot_and_cold(cold_models, cold_gap_s=1000.0, seed=2)
    outcome = simulate(
        setup("abcd"[: cold_models + 1], policy, cost_s, partial(Slots, 8)), arrivals
    )
    assert outcome.count == len(arrivals)
    for waited_s, allowed_s in bounds_s(outcome, 300.0, cost_s):
        assert waited_s <= allowed_s
