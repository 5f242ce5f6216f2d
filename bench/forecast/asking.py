"""Simulations in which some requests ask, as they arrive, how long they will wait."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from llmux.config import PolicyConfig
from llmux.policy import LineFirst
from llmux.policy.estimates import Measures
from llmux.policy.placing import Placing
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Job
from llmux.simulate.coresident import Coresident
from llmux.simulate.engine import Setup, Simulation
from llmux.simulate.forecast import Scene, scene_of
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.shared_forecast import Rules, SharedScene, rollout_of, shared_scene_of
from llmux.switching.core import ModelState
from llmux.switching.ledger import Ledger

FLOOR_S = 0.5
"""Waits below it are divided by it instead: of such a wait nobody asks for its percentage."""

WARM_S = 200.0
"""Simulated time, in seconds, before which nothing is asked: rates and costs are not known yet."""


class Asked(NamedTuple):
    """What a request that had to wait was told, and how long it did wait, in seconds."""

    expected_s: float | None
    waited_s: float

    @property
    def error(self) -> float:
        """The relative error; 1 if nothing was foretold."""
        if self.expected_s is None:
            return 1.0
        return abs(self.expected_s - self.waited_s) / max(self.waited_s, FLOOR_S)


@dataclass
class Asking:
    """Asks for a share of the requests that have to wait.

    Attributes:
        share: The share.
        since: Simulated time before which nothing is asked.
        took_s: CPU time of each forecast.
    """

    share: float
    since: float = WARM_S
    took_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(7)
        self._found: list[tuple[float | None, Job]] = []

    def is_wanted(self, now: float) -> bool:
        """Return whether to ask for a request that arrives now."""
        return now >= self.since and self._rng.random() < self.share

    def foretell(self, scene: Scene | SharedScene, model: str) -> float | None:
        """Make a forecast."""
        began_at = time.thread_time()
        rollout = rollout_of(scene, model)
        for _ in rollout.slices():
            pass
        self.took_s.append(time.thread_time() - began_at)
        return rollout.wait_s

    def note(self, expected_s: float | None, job: Job) -> None:
        """Remember what a request was told that now waits."""
        self._found.append((expected_s, job))

    def found(self) -> list[Asked]:
        """Return the requests that were admitted since."""
        return [
            Asked(expected_s, job.admitted_at - job.arrived_at)
            for expected_s, job in self._found
            if job.admitted_at >= job.arrived_at
        ]


class AskedOne(Simulation):
    """One model awake at a time."""

    asking: Asking

    def _arrive(self, arrival: Arrival, now: float) -> None:
        station = self._stations[arrival.model]
        is_asked = not station.admits and self.asking.is_wanted(now)
        expected_s = self._foretell(arrival.model, now) if is_asked else None
        super()._arrive(arrival, now)
        if is_asked:
            self.asking.note(expected_s, _last(station))

    def _foretell(self, model: str, now: float) -> float | None:
        target = self._target.name if self._target else None
        scene = scene_of(
            self._stations.values(), self._policy, self._measures, now=now, target=target
        )
        return self.asking.foretell(scene, model)


class AskedShared(Coresident):
    """Several models awake, as far as there is memory."""

    asking: Asking

    def _arrive(self, arrival: Arrival, now: float) -> None:
        host = self._hosts[arrival.model]
        is_asked = not (host.admits and not host.waiters.count) and self.asking.is_wanted(now)
        expected_s = self._foretell(arrival.model, now) if is_asked else None
        super()._arrive(arrival, now)
        if is_asked and host.waiters.count:
            self.asking.note(expected_s, _last(host))

    def _foretell(self, model: str, now: float) -> float | None:
        rules = Rules.of(self._setup)
        scene = shared_scene_of(
            self._hosts.values(), self._ledger, self._policy, self._measures, now=now, rules=rules
        )
        return self.asking.foretell(scene, model)


def _last(model: ModelState) -> Job:
    job: Job = list(model.waiters)[-1]
    return job


def _nothing(_count: int) -> None:
    pass


def ask_one(setup: Setup, arrivals: Iterable[Arrival], asking: Asking) -> list[Asked]:
    """Simulate a group with one model awake at a time."""
    run = AskedOne(setup, iter(arrivals), None, random.Random(1), _nothing)
    run.asking = asking
    run.run(math.inf)
    return asking.found()


def ask_shared(setup: CoresidentSetup, arrivals: Iterable[Arrival], asking: Asking) -> list[Asked]:
    """Simulate a group whose models share memory."""
    measures = Measures()
    run = AskedShared(
        setup,
        iter(arrivals),
        policy=LineFirst(Placing(setup.policy()), PolicyConfig(), measures),
        measures=measures,
        ledger=Ledger(setup.memory),
        rng=random.Random(1),
    )
    run.asking = asking
    run.run(math.inf)
    return asking.found()
