"""Closed loops: agents that think, ask, and wait for their answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from bench.policy_cases.setup import SERVICE_S, SLOTS, SWITCHES_S, Figures, fleet
from bench.policy_cases.waits import wait_figures
from llmux.simulate import Arrival, Closed, simulate
from llmux.simulate.arrivals import exponential
from llmux.simulate.backends import Job

AGENTS = 12
THINK_S = (5.0, 20.0)
"""Mean times between a response and the next request: a tool runs, or a person reads."""

STAYING = 0.95
"""Probability of asking the same model again: 20 requests in a row on average, about one task."""


class Agents(Closed):
    """A closed loop whose agents ask the same model again with some probability."""

    def __init__(self, staying: float, think_s: float, seed: int) -> None:
        rng = random.Random(seed)
        super().__init__(AGENTS, [0.25] * 4, exponential(think_s), exponential(SERVICE_S), rng)
        self._dice = random.Random(seed + 1)
        self._staying = staying

    def follow(self, job: Job, now: float) -> Arrival:
        """Return the next request of an agent whose last one was answered at `now`."""
        asked = super().follow(job, now)
        stays = self._dice.random() < self._staying
        return asked._replace(model=job.model) if stays else asked


@dataclass(frozen=True)
class ClosedCase:
    """Twelve agents that wait for each response, and four models with equal shares.

    Attributes:
        agents: "roaming" ones pick a model for each request, "staying" ones keep it for a while.
        think_s: Mean time between a response and the next request.
        switch_s: Hook time of every switch.
        hours: Simulated time.
        seed: Seed of all random numbers.
    """

    agents: str
    think_s: float
    switch_s: float
    hours: float
    seed: int

    def __str__(self) -> str:
        agents = f"{self.agents}, thinking {self.think_s:g} s"
        return f"{agents}, {self.switch_s:g} s, seed {self.seed}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        return {"agents": self.agents, "think_s": self.think_s, "switch_s": self.switch_s}

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        staying = STAYING if self.agents == "staying" else 0.0
        loop = Agents(staying, self.think_s, self.seed)
        setup = fleet([str(index) for index in range(4)], self.switch_s, SLOTS, policy)
        outcome = simulate(setup, loop.first(), follow=loop.follow, until=3600 * self.hours)
        figures = wait_figures(outcome, self.switch_s)
        return {**figures, "requests_per_hour": outcome.count / self.hours}


def closed(hours: float, seeds: Sequence[int]) -> list[ClosedCase]:
    """Both kinds of agents at each switch cost."""
    axes = product(("roaming", "staying"), THINK_S, SWITCHES_S, seeds)
    return [ClosedCase(*axis[:3], hours, axis[3]) for axis in axes]
