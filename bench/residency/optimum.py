"""How well any policy could do that cannot see the future: three models of which two fit, exactly.

Poisson arrivals, exponential service one at a time, exponential wakes, and the simulator's rules: a
model that is awake admits at once; a switch drains one model, wakes another, and then its whole
line goes in. At each event the controller goes on or begins a switch, also to a model that nobody
waits for; while a model drains, it may evict the other one instead if that is idle. It begins no
switch before the last one has ended. This is a Markov decision process. Value iteration finds the
least mean number in the system, and so, by Little's law, the least mean wait.
`python -m bench.residency.optimum` prints how near `adaptive` comes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, permutations, product
from statistics import geometric_mean

from bench.table import render
from llmux.config import PolicyConfig
from llmux.policy import AdaptivePolicy, Decision, GroupView, Policy, Stay, SwitchTo
from llmux.policy.room import Memory, Needs
from llmux.simulate import Arrival, Slots, poisson
from llmux.simulate.arrivals import exponential
from llmux.simulate.coresident import simulate_coresident
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import mean

SERVICE_S = 1.0
"""Mean time of a request alone. All other times are in proportion."""

MODELS = range(3)
TOLERANCE, MARGIN = 1e-4, 1e-9
"""When values agree with those of the last sweep, and when one choice is better than another; both
relative."""

MOST_SWEEPS = 5000
SELDOM = 1e-6
"""A rate of events at which it does not pay to wait for one."""

NOBODY = "nobody"
"""A model whose one request is never served: the simulator asks a policy only while some wait."""

Counts = tuple[int, int, int]
"""Requests of each model, in line or in flight."""


@dataclass(frozen=True)
class State:
    """A state of the system.

    Attributes:
        counts: Requests of each model.
        asleep: The model that sleeps, or that wakes at the end of a switch.
        leaving: The model that leaves for it; None while no switch runs.
        draining: Requests that the leaving model still serves; at 0, its switch wakes the other.
    """

    counts: Counts
    asleep: int
    leaving: int | None = None
    draining: int = 0


@dataclass(frozen=True)
class System:
    """Three models of which two fit.

    Attributes:
        rates: Arrivals per second of each.
        wakes_s: Mean time of waking each.
        most: Most requests in the system; more are turned away.
        deepest: A model with more in flight is not told to leave.
    """

    rates: tuple[float, float, float]
    wakes_s: tuple[float, float, float]
    most: int
    deepest: int = 2

    @classmethod
    def of(
        cls, *, load: float, shares: Sequence[float], wake_s: float, costs: Sequence[float]
    ) -> System:
        """Make a system from what its grid varies; `shares` and `costs` are relative."""
        a, b, c = (load * share / (sum(shares) * SERVICE_S) for share in shares)
        x, y, z = (wake_s * len(costs) * cost / sum(costs) for cost in costs)
        # Half as many again change no mean wait by 0.1 %.
        most = 6 + round((3.3 * max(x, y, z) / SERVICE_S + 3) * load)
        return cls((a, b, c), (x, y, z), most)

    def states(self) -> Iterator[State]:
        """Yield all states, those with fewer requests first."""
        upto = range(self.most + 1)
        counts: list[Counts] = [(a, b, c) for a in upto for b in upto for c in upto]
        for each in sorted((each for each in counts if sum(each) <= self.most), key=sum):
            for asleep in MODELS:
                yield State(each, asleep)
            for leaving, asleep in permutations(MODELS, 2):
                for draining in range(min(self.deepest, each[leaving]) + 1):
                    yield State(each, asleep, leaving, draining)

    def follow(self, state: State) -> Iterator[tuple[float, State]]:
        """Yield what may happen next, with its rate."""
        counts, asleep, leaving = state.counts, state.asleep, state.leaving
        if sum(counts) < self.most:
            for model in MODELS:
                yield self.rates[model], replaced(state, _changed(counts, model, 1))
        for model in MODELS:
            if model not in (asleep, leaving) and counts[model]:
                yield 1 / SERVICE_S, replaced(state, _changed(counts, model, -1))
        if leaving is not None and state.draining:
            left = _changed(counts, leaving, -1)
            yield 1 / SERVICE_S, State(left, asleep, leaving, state.draining - 1)
        elif leaving is not None:
            yield 1 / self.wakes_s[asleep], State(counts, leaving)

    def choices(self, state: State) -> Iterator[State]:
        """Yield the states to which the controller may change at once."""
        counts, asleep = state.counts, state.asleep
        for model in MODELS:
            if model in (asleep, state.leaving):
                continue
            # While one model drains, another may leave instead, if that takes no drain.
            if counts[model] <= (self.deepest if state.leaving is None else 0) and (
                state.leaving is None or state.draining
            ):
                yield State(counts, asleep, model, counts[model])


def replaced(state: State, counts: Counts) -> State:
    return State(counts, state.asleep, state.leaving, state.draining)


def _changed(counts: Counts, model: int, by: int) -> Counts:
    changed = list(counts)
    changed[model] += by
    return changed[0], changed[1], changed[2]


class Optimum:
    """The best policy for a system.

    A cycle goes from the empty system, with models 0 and 1 awake, to its next return. Values are
    complex: seconds spent by all requests up to that return, and the seconds up to it. What counts
    is the one less the mean number in the system times the other.

    Attributes:
        system: Which.
        number: Mean number of requests in the system.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.number = 0.0
        states = list(system.states())
        self._place = {state: at for at, state in enumerate(states)}
        self._values = [0j] * len(states)
        self._start = self._place[State((0, 0, 0), 2)]
        self._steps = [self._step(state) for state in states]
        self._solve()

    @property
    def wait_s(self) -> float:
        """Mean wait, in line and inside of the server."""
        return self.number / sum(self.system.rates) - SERVICE_S

    def _step(self, state: State) -> tuple[complex, tuple[tuple[float, int], ...], tuple[int, ...]]:
        following = list(self.system.follow(state))
        # Full of requests for the model that sleeps, nothing more would ever happen: do not wait.
        total = sum(rate for rate, _ in following) or SELDOM
        moves = ((rate / total, self._place[then]) for rate, then in following)
        choices = (self._place[then] for then in self.system.choices(state))
        return (
            complex(sum(state.counts), 1) / total,
            tuple((share, at) for share, at in moves if at != self._start),  # there, a cycle ends
            tuple(choices),
        )

    def _going_on(self, at: int) -> complex:
        """Return the value of doing nothing until something happens."""
        value, moves, _ = self._steps[at]
        for share, then in moves:
            value += share * self._values[then]
        return value

    def _solve(self) -> None:
        values, up = self._values, range(len(self._values))
        for sweep in range(MOST_SWEEPS):
            changed = 0.0
            for at in up if sweep % 2 else reversed(up):
                value = self._going_on(at)
                for other in self._steps[at][2]:
                    if self._is_better(values[other], value):
                        value = values[other]
                changed = max(changed, abs(value - values[at]))
                values[at] = value
            cycle = values[self._start]
            self.number = cycle.real / cycle.imag
            if changed <= TOLERANCE * abs(cycle):
                return
        raise ArithmeticError(f"no convergence: {self.system}")

    def _is_better(self, one: complex, other: complex) -> bool:
        gain = other - one
        return gain.real - self.number * gain.imag > MARGIN * abs(other)

    def choose(self, state: State) -> State | None:
        """Return the state to change to at once; None to go on."""
        at = self._place[state]
        best, found = self._going_on(at), None
        # To begin a drain and to call it off at once is worth as much as to evict the idle model.
        for then in sorted(self.system.choices(state), key=lambda then: then.draining):
            value = self._values[self._place[then]]
            if self._is_better(value, best):
                best, found = value, then
        return found

    def decide(self, view: GroupView, /) -> Decision:
        """Decide as a policy of llmux, for the models "0", "1" and "2"."""
        state = self._state(view)
        if state is None:
            return _first_wakes(view)
        then = self.choose(state)
        if then is None:
            return Stay()
        return SwitchTo(str(then.asleep), evict=(str(then.leaving),))

    def _state(self, view: GroupView) -> State | None:
        """Return where there is something to decide, with as many requests as the table has."""
        assert view.room is not None
        models = [view.models[str(model)] for model in MODELS]
        awake = [m for m in MODELS if models[m].awake_since is not None and not models[m].is_moving]
        counts = [each.in_flight + each.queued for each in models]
        while sum(counts) > self.system.most:
            counts[counts.index(max(counts))] -= 1
        a, b, c = counts
        if len(awake) == 2:
            (asleep,) = set(MODELS) - set(awake)
            return None if models[asleep].is_moving else State((a, b, c), asleep)
        if len(awake) == 1 and view.room.switches and view.room.switches[0].draining:
            switch = view.room.switches[0]
            leaving = int(switch.draining[0])
            draining = min(models[leaving].in_flight, counts[leaving])
            return State((a, b, c), int(switch.target), leaving, draining) if draining else None
        return None


def _first_wakes(view: GroupView) -> Decision:
    """Fill the memory, which is empty at first."""
    models = [view.models[str(model)] for model in MODELS]
    if sum(each.awake_since is not None or each.is_moving for each in models) >= 2:
        return Stay()
    waiting = (each for each in models if each.queued and not each.is_moving)
    return next((SwitchTo(each.name) for each in waiting), Stay())


def simulated_wait_s(system: System, policy: Policy, requests: int, seed: int = 1) -> float:
    """Return the mean wait under a policy in the same system, simulated."""
    wakes = random.Random(seed + 1_000_000)
    needs = {name: Needs.of((1,)) for name in (*map(str, MODELS), NOBODY)}
    setup = CoresidentSetup(
        memory=Memory(("gpu",), (2,), needs),
        wake_s=lambda model: wakes.expovariate(1 / system.wakes_s[int(model)]),
        sleep_s=lambda _model: 0.0,
        server=lambda _model: Slots(1),
        policy=lambda: policy,
    )
    total = sum(system.rates)
    shares = [rate / total for rate in system.rates]
    draw, work = random.Random(seed), exponential(SERVICE_S)
    arrivals = poisson(shares, total, work, requests, draw)
    always = [Arrival(0.0, NOBODY, 1.0)] if isinstance(policy, Optimum) else []
    return mean(simulate_coresident(setup, chain(always, arrivals)).waits())


@dataclass(frozen=True)
class Comparison:
    """One line of the table; waits in seconds.

    Attributes:
        system: Which.
        best_s: The least mean wait.
        best_simulated_s: That on the simulated arrivals.
        waits_s: The mean waits of other policies on the same arrivals.
    """

    system: System
    best_s: float
    best_simulated_s: float
    waits_s: dict[str, float]

    def ratio(self, policy: str) -> float:
        """Return a policy's mean wait over the least, on the same arrivals: so luck cancels out."""
        return self.waits_s[policy] / self.best_simulated_s


def compare(system: System, requests: int, seed: int = 1) -> Comparison:
    """Simulate `adaptive` without its bound, and the optimum, on the same arrivals."""
    best = Optimum(system)
    adaptive = AdaptivePolicy(PolicyConfig(max_wait_secs=1e9))
    waits_s = {"adaptive": simulated_wait_s(system, adaptive, requests, seed)}
    return Comparison(system, best.wait_s, simulated_wait_s(system, best, requests, seed), waits_s)


LOADS = (0.2, 0.4, 0.6)
WAKES_S = (1.0, 3.0, 6.0)
SHARES = ((1.0, 1.0, 1.0), (4.0, 2.0, 1.0))
COSTS = ((1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (2.0, 1.0, 1.0))


def systems() -> Iterator[System]:
    """Yield the systems of the table.

    Where a cycle begins, model 2 sleeps: it must not be the one that is best kept awake.
    """
    for load, wake_s, shares in product(LOADS, WAKES_S, SHARES):
        for costs in (COSTS[0], COSTS[2]) if shares == SHARES[0] else COSTS[1:]:
            yield System.of(load=load, shares=shares, wake_s=wake_s, costs=costs)


def _row(found: Comparison) -> list[str]:
    system = found.system
    rates = "/".join(f"{rate:.3f}" for rate in system.rates)
    wakes = "/".join(f"{wake_s:.2g}" for wake_s in system.wakes_s)
    waits = [f"{each:.3f}" for each in (found.best_s, found.best_simulated_s)]
    return [rates, wakes, *waits, *(f"{found.ratio(name):.3f}" for name in found.waits_s)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.residency.optimum")
    parser.add_argument("--requests", type=int, default=50_000, help="of each simulation")
    parser.add_argument("--only", type=int, help="as many systems, the first")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen = list(systems())[: options.only]
    one = partial(compare, requests=options.requests)
    if options.jobs == 1:
        found = list(map(one, chosen))
    else:
        with multiprocessing.Pool(options.jobs) as pool:
            found = pool.map(one, chosen, chunksize=1)
    heads = ["arrivals/s", "wakes, s", "best, s", "simulated", "adaptive"]
    print("Mean wait over that of the best policy on the same arrivals; service takes 1 s.")
    print(render([heads, *map(_row, found)]))
    ratios = [each.ratio("adaptive") for each in found]
    print(f"adaptive: geometric mean {geometric_mean(ratios):.3f}, worst {max(ratios):.3f}")


if __name__ == "__main__":
    main()
