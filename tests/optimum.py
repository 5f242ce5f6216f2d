"""How well any policy could do that cannot see the future: two models on one GPU, exactly.

Poisson arrivals, exponential service in K slots, exponential switch times, and the simulator's rules:
an open model admits at once, a switch drains and takes its time, then the whole line goes in. At each
event of an open model the controller stays or begins a switch, also to a model that nobody waits for.
This is a Markov decision process. Policy iteration finds the least mean number in the system, and so,
by Little's law, the least mean wait. `python -m tests.optimum` prints how near llmux's policies come.

A step of the iteration is not one event but a visit to each model, which takes no iterating: `Visit`.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from bench.table import render
from llmux.config import PolicyConfig
from llmux.policy import POLICIES, Decision, Policy, Snapshot, Stay, SwitchTo
from llmux.simulate import Setup, Slots, poisson, simulate
from llmux.simulate.arrivals import exponential
from llmux.simulate.outcome import mean

SERVICE_S = 1.0
"""Mean time of a request alone. All other times are in proportion."""

TOLERANCE, MARGIN = 1e-7, 1e-6
"""When values agree, and when one choice is better than another; of what a round costs."""

MOST_ROUNDS = 2000

Values = list[list[complex]]
"""By two counts. Real: seconds spent by all requests from here on; imaginary: seconds that passed.

Both are summed at once, since what counts is the one less the mean number times the other."""

Leaves = list[list[bool]]
"""By requests in flight and in the other line: whether to begin a switch there."""


@dataclass(frozen=True)
class System:
    """Two models on one GPU.

    Attributes:
        rates: Arrivals per second of each.
        slots: Requests that a server works on at a time.
        switch_s: Mean time of a switch.
        cut_off: Longest line, and most in flight; more are turned away.
        deepest: With more in flight than this no switch is begun.
    """

    rates: tuple[float, float]
    slots: int
    switch_s: float
    cut_off: int
    deepest: int = 4

    @classmethod
    def of(cls, *, load: float, ratio: float, switch_s: float, slots: int) -> System:
        """By what its grid varies; `ratio` is that of the rates."""
        rate = load * slots / SERVICE_S
        # Ten times what comes in a switch: half as much again changes no mean wait by 0.1 %.
        cut_off = 20 + round(rate * (10 * switch_s + 4 * SERVICE_S / (1 - load)))
        return cls((rate * ratio / (1 + ratio), rate / (1 + ratio)), slots, switch_s, cut_off)

    @property
    def size(self) -> int:
        """Of each axis of a table."""
        return self.cut_off + 1

    def served_per_s(self, in_flight: int) -> float:
        """Ends per second with so many in flight."""
        return min(in_flight, self.slots) / SERVICE_S


@dataclass(frozen=True)
class Solution:
    """A policy for a system, and what comes of it.

    Attributes:
        system: Which.
        leaves: When it leaves each model.
        wait_s: Mean wait, in line and inside of the server.
    """

    system: System
    leaves: tuple[Leaves, Leaves]
    wait_s: float

    def decide(self, snapshot: Snapshot) -> Decision:
        """As a policy of llmux, for the models "0" and "1"."""
        if snapshot.active is None:
            return SwitchTo("0")
        other = "1" if snapshot.active == "0" else "0"
        in_flight = snapshot.models[snapshot.active].in_flight
        queued = min(snapshot.models[other].queued, self.system.cut_off)
        leaves = self.leaves[int(snapshot.active)]
        return SwitchTo(other) if in_flight < len(leaves) and leaves[in_flight][queued] else Stay()


def exhaustive(system: System) -> Leaves:
    """Leave for those who wait when nothing is in flight."""
    return [[not n and q > 0 for q in range(system.size)] for n in range(system.deepest + 1)]


def evaluate(system: System, leaves: tuple[Leaves, Leaves]) -> Solution:
    """What comes of a policy."""
    return Solution(system, leaves, _settle(system, leaves, _nothing(system)).wait_s)


def optimum(system: System) -> Solution:
    """The best policy, by policy iteration."""
    leaves = (exhaustive(system), exhaustive(system))
    first = _nothing(system)
    while True:
        found = _settle(system, leaves, first)
        better = found.better()
        if better == leaves:
            return Solution(system, leaves, found.wait_s)
        leaves, first = better, found.visits[0].opened


class Visit:
    """One model from its opening to that of the other.

    Within a visit lines only grow, so that all values follow from those at its end, line by line.

    Attributes:
        leaves: When it ends.
        left: Values when it has just been told to end, where that is allowed.
        opened: Values while it is open. All are by requests in flight and in the other line.
    """

    def __init__(self, system: System, model: int, leaves: Leaves, after: Values) -> None:
        self._system = system
        self._own, self._other = system.rates[model], system.rates[1 - model]
        self.leaves = leaves
        self.left = self._close(after)
        self.opened = self._open()

    def _close(self, after: Values) -> Values:
        ends = self._stage(after, 1 / self._system.switch_s, 0)
        left = [[row[0] for row in ends]]
        for n in range(1, self._system.deepest + 1):
            ends = self._stage(ends, self._system.served_per_s(n), n)
            left.append([row[0] for row in ends])
        return left

    def _stage(self, after: Values, rate: float, in_flight: int) -> Values:
        """Values in a time that ends at this rate; by the other line and the own, which both grow.

        Growing beyond the cut-off ends it, too.
        """
        total = rate + self._other + self._own
        end, other, own = rate / total, self._other / total, self._own / total
        above, rows = after[-1], []
        for queued in reversed(range(len(after))):
            value, row = after[queued][-1], []
            cost = complex(in_flight + queued + len(above), 1) / total
            for ended, more in zip(reversed(after[queued]), reversed(above), strict=True):
                cost -= 1 / total
                value = cost + end * ended + other * more + own * value
                row.append(value)
            above = row[::-1]
            rows.append(above)
        return rows[::-1]

    def _open(self) -> Values:
        later: list[complex] = []
        columns = [
            later := self._column(queued, later) for queued in reversed(range(self._system.size))
        ]
        return [list(row) for row in zip(*reversed(columns), strict=True)]

    def _column(self, queued: int, later: list[complex]) -> list[complex]:
        """Values while open with so many in the other line, by requests in flight.

        Each depends on its neighbours, a tridiagonal system: from the top each is told as
        `fixed + share * (value of one less)`; then all follow from the bottom.
        """
        other = self._other if later else 0.0
        terms = []
        fixed, share, own = 0j, 0.0, 0.0
        for n in reversed(range(self._system.size)):
            if n < len(self.leaves) and self.leaves[n][queued]:
                fixed, share = self.left[n][queued], 0.0
            else:
                served = self._system.served_per_s(n)
                total = own + other + served - own * share
                cost = complex(n + queued, 1) + own * fixed
                fixed = (cost + other * later[n] if later else cost) / total
                share = served / total
            own = self._own
            terms.append((fixed, share))
        value = 0j
        return [value := fixed + share * value for fixed, share in reversed(terms)]

    def better(self, number: float, margin: float) -> Leaves:
        """When to leave, if the values are right; as it was where that makes no difference."""
        better = [row.copy() for row in self.leaves]
        # What happens at the cut-off itself is not the system's.
        for n, queued in product(range(len(better)), range(self._system.cut_off)):
            gain = self._stay(n, queued) - self.left[n][queued]
            gained = gain.real - number * gain.imag
            if abs(gained) > margin:
                better[n][queued] = gained > 0
        return better

    def _stay(self, n: int, queued: int) -> complex:
        """Value of staying until something happens."""
        served = self._system.served_per_s(n)
        value = complex(n + queued, 1) + self._own * self.opened[n + 1][queued]
        value += self._other * self.opened[n][queued + 1]
        if n:
            value += served * self.opened[n - 1][queued]
        return value / (self._own + self._other + served)


@dataclass(frozen=True)
class Round:
    """A visit to each model, from values that hold after it as well as before.

    Attributes:
        visits: To each.
        total: What comes between two such rounds, as `Values` has it.
    """

    visits: tuple[Visit, Visit]
    total: complex

    @property
    def wait_s(self) -> float:
        """Mean wait."""
        system = self.visits[0]._system
        return self._number / sum(system.rates) - SERVICE_S

    @property
    def _number(self) -> float:
        """Mean number in the system."""
        return self.total.real / self.total.imag

    def better(self) -> tuple[Leaves, Leaves]:
        """A better policy, or the same."""
        margin = MARGIN * self.total.real
        first, second = (visit.better(self._number, margin) for visit in self.visits)
        return first, second


def _nothing(system: System) -> Values:
    return [[0j] * system.size for _ in range(system.size)]


def _settle(system: System, leaves: tuple[Leaves, Leaves], first: Values) -> Round:
    """Go round until it makes no difference in which state a round began."""
    for _ in range(MOST_ROUNDS):
        second = Visit(system, 1, leaves[1], first)
        visits = Visit(system, 0, leaves[0], second.opened), second
        total = visits[0].opened[0][0] - first[0][0]
        number = total.real / total.imag
        differences = (
            new - old - total
            for news, olds in zip(visits[0].opened, first, strict=True)
            for new, old in zip(news, olds, strict=True)
        )
        spread = max(abs(each.real - number * each.imag) for each in differences)
        base = visits[0].opened[0][0]
        first = [[value - base for value in row] for row in visits[0].opened]
        if spread <= TOLERANCE * total.real:
            return Round(visits, total)
    raise ArithmeticError(f"no convergence: {system}")


def simulated_wait_s(
    system: System, policy: Callable[[], Policy], requests: int, seed: int = 1
) -> float:
    """Mean wait under a policy in the same system, simulated."""
    switches = random.Random(seed + 1_000_000)
    setup = Setup(
        models=["0", "1"],
        cost=lambda _source, _target: switches.expovariate(1 / system.switch_s),
        server=lambda _model: Slots(system.slots),
        policy=policy,
        asks_when_idle=True,
    )
    total = sum(system.rates)
    shares = [rate / total for rate in system.rates]
    work = exponential(SERVICE_S)
    return mean(
        simulate(setup, poisson(shares, total, work, requests, random.Random(seed))).waits()
    )


def of_llmux(name: str) -> Callable[[], Policy]:
    """A policy of llmux without its bound."""
    return partial(POLICIES[name], PolicyConfig(name=name, max_wait_secs=1e9))


@dataclass(frozen=True)
class Comparison:
    """One line of the table; waits in seconds.

    Attributes:
        system: Which.
        best: Its optimum.
        best_simulated_s: The optimum's mean wait on the simulated arrivals.
        waits_s: The mean waits of llmux's policies on the same arrivals.
    """

    system: System
    best: Solution
    best_simulated_s: float
    waits_s: dict[str, float]

    def ratio(self, policy: str) -> float:
        """The policy's mean wait over the optimum's, on the same arrivals: so luck cancels out."""
        return self.waits_s[policy] / self.best_simulated_s


def compare(system: System, policies: Sequence[str], requests: int, seed: int = 1) -> Comparison:
    """Simulate policies of llmux, and the optimum, on the same arrivals."""
    best = optimum(system)
    waits_s = {name: simulated_wait_s(system, of_llmux(name), requests, seed) for name in policies}
    return Comparison(system, best, simulated_wait_s(system, lambda: best, requests, seed), waits_s)


LOADS = (0.2, 0.4, 0.6, 0.8)
SWITCHES_S = (1.0, 5.0, 20.0)
RATIOS = (1.0, 4.0)
SLOTS = (1, 2)
SHOWN = ("fifo", "exhaustive", "adaptive")


def grid() -> Iterator[System]:
    """The systems of the table."""
    for slots, ratio, switch_s, load in product(SLOTS, RATIOS, SWITCHES_S, LOADS):
        yield System.of(load=load, ratio=ratio, switch_s=switch_s, slots=slots)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(mean([math.log(value) for value in values]))


def switching_curve(leaves: Leaves) -> str:
    """The shortest other line for which it leaves, by requests in flight."""
    firsts = [next((str(q) for q, go in enumerate(row) if go), "") for row in leaves]
    return " ".join(firsts).strip() or "never"


def _row(found: Comparison) -> list[str]:
    system = found.system
    first, second = system.rates
    what = f"K {system.slots}, {first / second:.0f}:1, switch {system.switch_s:g} s"
    load = f"{sum(system.rates) * SERVICE_S / system.slots:.1f}"
    exact, drawn = f"{found.best.wait_s:.3f}", f"{found.best_simulated_s:.3f}"
    ratios = [f"{found.ratio(name):.3f}" for name in found.waits_s]
    return [what, load, exact, drawn, *ratios, *map(switching_curve, found.best.leaves)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.optimum")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    one = partial(compare, policies=SHOWN, requests=options.requests)
    with multiprocessing.Pool(options.jobs) as pool:
        found = pool.map(one, grid(), chunksize=1)
    heads = ["system", "load", "best, s", "simulated", *SHOWN, "leaves 0 at", "leaves 1 at"]
    print("Mean wait over that of the best policy on the same arrivals; service takes 1 s.")
    print(render([heads, *map(_row, found)]))
    for name in SHOWN:
        ratios = [comparison.ratio(name) for comparison in found]
        print(f"{name}: geometric mean {geometric_mean(ratios):.3f}, worst {max(ratios):.3f}")


if __name__ == "__main__":
    main()
