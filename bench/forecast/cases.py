"""Traffic for which waits are foretold: synthetic, traces, and journals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.forecast.asking import Asked, Asking, ask_one, ask_shared
from bench.policy_cases.setup import SLOTS
from bench.policy_cases.traces import TRACES, TraceCase
from llmux.config import PolicyConfig
from llmux.policy import Policy, load_policy
from llmux.policy.room import Memory, Needs
from llmux.simulate import Arrival, Setup, Sharing, Slots, poisson, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.recordings import load_recordings
from llmux.simulate.replay import Recording
from llmux.simulate.shared_replay import SharedRecording

SERVICE_S = 3.0
SIZES = (50, 40, 35, 30, 25)
"""What the models need of a memory of 80, where they share it."""

MEMORY = 80
ASKED = 300
"""Number of requests that ask, about, of those that wait."""


@dataclass(frozen=True)
class Case:
    """One kind of traffic under one policy.

    Attributes:
        label: What it is.
        policy: The policy.
        run: Simulates it.
    """

    label: str
    policy: str
    run: Callable[[Asking], Sequence[Asked]]


def policy_of(name: str) -> Callable[[], Policy]:
    """Return what makes a built-in policy."""
    return partial(load_policy, PolicyConfig(name=name), Path.cwd())


def speed(running: int) -> float:
    """Progress of each request, by their number: each costs the others 5 %."""
    return 1 / (1 + 0.05 * (running - 1))


@dataclass(frozen=True)
class Synthetic:
    """Poisson arrivals, shares by Zipf's law, exponential service times of `SERVICE_S`.

    Attributes:
        rate: Requests per second.
        switch_s: Hook time of a switch, in seconds.
        models: Number of models.
        limit: `max_in_flight`; None: none.
        shares_memory: True if several may be awake (`SIZES`).
        requests: Number of requests.
    """

    rate: float
    switch_s: float
    models: int = 3
    limit: int | None = None
    shares_memory: bool = False
    requests: int = 1500

    def __str__(self) -> str:
        limit = f", {self.limit} slots" if self.limit else ""
        shared = ", shared memory" if self.shares_memory else ""
        about = f"{self.rate:g}/s, switch {self.switch_s:g} s"
        return f"{about}, {self.models} models{limit}{shared}"

    @property
    def names(self) -> list[str]:
        """The models, in the order of their shares."""
        return [str(index) for index in range(self.models)]

    def arrivals(self) -> Iterator[Arrival]:
        """Return the requests, the same each time."""
        rng = random.Random(3)
        service = exponential(SERVICE_S)
        return poisson(zipf(self.models), self.rate, service, self.requests, rng)

    def run(self, policy: str, asking: Asking) -> Sequence[Asked]:
        """Simulate it under a policy."""
        if self.shares_memory:
            return ask_shared(self._shared(policy), self.arrivals(), asking)
        setup = Setup(
            models=self.names,
            cost=lambda *_: self.switch_s,
            server=lambda _: Sharing(speed),
            policy=policy_of(policy),
            max_in_flight=self.limit,
        )
        return ask_one(setup, self.arrivals(), asking)

    def _shared(self, policy: str) -> CoresidentSetup:
        sizes = dict(zip(self.names, SIZES, strict=True))
        return CoresidentSetup(
            memory=Memory(("gpu",), (MEMORY,), {n: Needs.of((size,)) for n, size in sizes.items()}),
            wake_s=lambda _: 0.7 * self.switch_s,
            sleep_s=lambda _: 0.3 * self.switch_s,
            server=lambda _: Sharing(speed),
            policy=policy_of(policy),
            hooks_at_once=math.inf,
            touches=dict.fromkeys(self.names, frozenset({"gpu"})),
        )


SYNTHETIC = (
    Synthetic(0.3, 2),
    Synthetic(0.5, 5),
    Synthetic(1, 2),
    Synthetic(1, 10),
    Synthetic(1.5, 5),
    Synthetic(1, 5, limit=4),
    Synthetic(0.7, 3, models=8),
    Synthetic(1, 3, models=5, shares_memory=True),
    Synthetic(1.5, 8, models=5, shares_memory=True),
)


def synthetic(policies: Sequence[str]) -> Iterator[Case]:
    """The synthetic cases."""
    for policy in policies:
        for one in SYNTHETIC:
            yield Case(str(one), policy, partial(one.run, policy))


def traces(directory: Path, policies: Sequence[str], requests: int) -> Iterator[Case]:
    """The traces whose files exist, with short and long switches."""
    for policy in policies:
        for name, files in TRACES.items():
            paths = tuple(directory / file for file in files)
            if all(path.is_file() for path in paths):
                for switch_s, load in ((2.0, 0.3), (10.0, 0.6)):
                    case = TraceCase(name, switch_s, load, paths, requests)
                    yield Case(str(case), policy, partial(_run_trace, case, policy))


def _run_trace(case: TraceCase, policy: str, asking: Asking) -> Sequence[Asked]:
    arrivals = case.arrivals()
    setup = Setup(
        models=sorted({arrival.model for arrival in arrivals}),
        cost=lambda *_: case.switch_s,
        server=lambda _: Slots(SLOTS),
        policy=policy_of(policy),
    )
    return ask_one(setup, arrivals, asking)


def journals(files: Sequence[Path]) -> Iterator[Case]:
    """Recorded traffic under the policy that was in use, as `llmux replay` reads it."""
    for group, recording in load_recordings(files, print).items():
        policy = recording.started.policy
        yield Case(f"journal, group {group}", policy, partial(_replay, recording, policy))


def _replay(recording: Recording, policy: str, asking: Asking) -> Sequence[Asked]:
    if isinstance(recording, SharedRecording):
        return ask_shared(recording.shared_setup(policy), recording.arrivals(), asking)
    return ask_one(recording.setup(policy), recording.arrivals(), asking)
