"""What the policies are worth, simulated: `python -m bench.policies`.

Every configuration is one run of `llmux.simulate` for each policy on the same arrivals; figures are
ratios to the original llmux's FIFO on them, and their geometric means over a grid.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from llmux.config import PolicyConfig
from llmux.policy import POLICIES, Decision, Policy, Snapshot, Stay, SwitchTo
from llmux.simulate import Arrival, Outcome, Setup, Slots, bursty, one_hot, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential

BASELINE = "original"
"""What all ratios are to."""


class OriginalFifo:
    """FIFO as the original llmux (2.4, Rust) does it; only for comparison.

    Each request that finds its model not active tries a switch of its own; the tries stand in line
    for one lock. One whose turn it is gives up if its model is active, or if nobody waits for it.
    """

    def __init__(self) -> None:
        self._tries: deque[str] = deque()

    def note_queued(self, model: str) -> None:
        """A request has joined a line."""
        self._tries.append(model)

    def decide(self, snapshot: Snapshot) -> Decision:
        """Say what to do now."""
        while self._tries:
            model = self._tries.popleft()
            if model != snapshot.active and snapshot.models[model].queued:
                return SwitchTo(model)
        return Stay()


def make_policy(name: str, **settings: object) -> Policy:
    """A policy of llmux by its name, or the baseline."""
    if name == BASELINE:
        return OriginalFifo()
    return POLICIES[name](PolicyConfig(name=name, **settings))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """One configuration: a fleet of models, what a switch costs, and who asks how.

    Attributes:
        models: How many there are.
        switch_s: Hook time of every switch.
        popularity: zipf or one_hot.
        pattern: poisson or bursty.
        load: Of the slots, if there were no switches.
        slots: Requests that a backend works on at a time.
        service_s: Mean of the (exponential) service time.
        requests: How many come.
        seed: Of all that is drawn at random.
    """

    models: int
    switch_s: float
    popularity: str
    pattern: str
    load: float
    slots: int
    service_s: float
    requests: int
    seed: int

    def arrivals(self) -> Iterator[Arrival]:
        """The same, each time."""
        shares = {"zipf": zipf, "one_hot": one_hot}[self.popularity](self.models)
        arrive = {"poisson": poisson, "bursty": bursty}[self.pattern]
        rate = self.load * self.slots / self.service_s
        work = exponential(self.service_s)
        return arrive(shares, rate, work, self.requests, random.Random(self.seed))

    def run(self, policy: Callable[[], Policy]) -> Outcome:
        """Simulate it under a policy."""
        setup = Setup(
            models=[str(index) for index in range(self.models)],
            cost=lambda _source, _target: self.switch_s,
            server=lambda _model: Slots(self.slots),
            policy=policy,
        )
        return simulate(setup, self.arrivals(), seed=self.seed)


def grid_a(requests: int = 4000, seed: int = 1) -> list[Case]:
    """Long requests in large batches, as in a chat service: 180 configurations."""
    axes = product(
        (2, 4, 8),
        (2.0, 10.0, 60.0),
        ("zipf", "one_hot"),
        ("poisson", "bursty"),
        (0.3, 0.5, 0.7, 0.85, 0.95),
    )
    return [Case(*axis, 8, 8.0, requests, seed + i) for i, axis in enumerate(axes)]


def grid_b(requests: int = 4000, seed: int = 1) -> list[Case]:
    """Short requests, two at a time, mostly little load: 216 configurations."""
    axes = product(
        (2, 4, 8),
        (2.0, 10.0, 60.0),
        ("zipf", "one_hot"),
        ("poisson", "bursty"),
        (0.03, 0.1, 0.2, 0.4, 0.6, 0.85),
    )
    return [Case(*axis, 2, 1.0, requests, seed + i) for i, axis in enumerate(axes)]
