"""How long a request that arrives now would wait: what happens next, with a copy of the policy.

A policy may stay with the model that is awake, wake others first, or end a drain early. Rules of
thumb leave that out, and are wrong by multiples. So a forecast continues from the present state in
the simulator: the same policy decides, on copies of the same estimates, and everything else happens
as measured: requests arrive at their present rates, and take as long as the latest ones did.

    Scene       a group at one moment, copied, so that it may be read later
    Rollout     a simulation that starts from a scene with one more request, and ends as that one
                is admitted

`llmux.simulate.shared_forecast` does the same for groups whose models share memory.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

from llmux.policy import LineFirst, Policy
from llmux.policy.estimates import Measures
from llmux.simulate.backends import Job, Sharing
from llmux.simulate.engine import LOOK, SWITCHED, Setup, Simulation, Station
from llmux.simulate.expected import Works, expected_arrivals
from llmux.switching.core import ModelState, Phase, Traits

MOST_EVENTS = 1500
"""Limit for the events of one forecast, which take 20 to 60 us each."""

EVENTS_A_SLICE = 25

OVERDUE_SHARE = 0.1
"""Share of its usual time that a hook is expected to take still, once it has taken longer."""


class ModelScene(NamedTuple):
    """One model at one moment.

    Attributes:
        name: Its name.
        phase: Its phase.
        entered_at: When it entered that phase.
        awake_since: When it woke.
        traits: See `Traits`.
        drains: See `ModelState.is_drained`.
        waiting: When the requests in its line arrived, and their weights.
        in_flight: Number of requests in flight or frozen.
        retry_at: Earliest time at which it may be chosen.
        used_at: When it was woken, or when its last request ended.
    """

    name: str
    phase: Phase
    entered_at: float
    awake_since: float
    traits: Traits
    drains: bool
    waiting: tuple[tuple[float, float], ...]
    in_flight: int
    retry_at: float
    used_at: float


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the scenes of all groups have.

    Attributes:
        now: The time of the scene, in seconds of the clock of all times here.
        models: The group's models.
        policy: A copy of the policy, which a rollout may change.
        measures: A copy of the measurements.
    """

    now: float
    models: tuple[ModelScene, ...]
    policy: Policy
    measures: Measures


@dataclass(frozen=True, kw_only=True)
class Scene(Moment):
    """A group with one model awake at a time, at one moment.

    Attributes:
        target: The model that a running switch wakes; None without one.
    """

    policy: LineFirst
    target: str | None


def scene_of(
    models: Iterable[ModelState],
    policy: LineFirst,
    measures: Measures,
    *,
    now: float,
    target: str | None,
) -> Scene:
    """Copy a group.

    Raises:
        TypeError: The policy cannot be copied, as one of a user's may hold a file or a lock.
    """
    copied = measures.copy()
    return Scene(
        now=now,
        models=tuple(map(model_scene, models)),
        target=target,
        policy=copy_of(policy, measures, copied),
        measures=copied,
    )


PolicyT = TypeVar("PolicyT", bound=Policy)


def copy_of(policy: PolicyT, measures: Measures, copied: Measures) -> PolicyT:
    """Return a copy of a policy that decides on copied measurements.

    Raises:
        TypeError: It cannot be copied.
    """
    copies = {id(measures): copied, id(measures.estimates): copied.estimates}
    return copy.deepcopy(policy, copies)


def model_scene(model: ModelState) -> ModelScene:
    """Return what a rollout needs of a model, as it is now."""
    traits = Traits(model.max_in_flight, model.preserves_in_flight)
    return ModelScene(
        model.name,
        model.phase,
        model.entered_at,
        model.awake_since,
        traits,
        model.drains,
        tuple((request.arrived_at, request.weight) for request in model.waiters),
        model.in_flight.in_use,
        model.retry_at,
        model.used_at,
    )


class Rollout(Simulation):
    """A forecast for one model.

    Args:
        scene: Where to start; its policy and measurements change.
        model: The model of the request that arrives now.

    Attributes:
        wait_s: The wait of that request in seconds, or, after `MOST_EVENTS`, how long it has waited
            until then; None: it is never admitted.
    """

    def __init__(self, scene: Scene, model: str) -> None:
        measures = scene.measures
        by_name = {each.name: each for each in scene.models}
        works = self._works = Works(measures, by_name)
        super().__init__(
            Setup(
                models=list(by_name),
                cost=measures.cost_s,
                server=lambda name: Sharing(speed_by_latency(measures, name)),
                policy=lambda: scene.policy,
            ),
            expected_arrivals(by_name, measures, works, scene.now),
            None,
            random.Random(0),  # noqa: S311 - unused: no wake fails
            lambda _count: None,
        )
        self.wait_s: float | None = None
        self._left = MOST_EVENTS
        self._scene = scene
        self._measures, self._estimates = measures, measures.estimates
        self._policy = scene.policy
        self._asked = Job(model, scene.now, works.usual_s(model))
        self._stations: dict[str, _Start] = {  # type: ignore[assignment]
            name: _Start(index, each, Sharing(speed_by_latency(measures, name)))
            for index, (name, each) in enumerate(by_name.items())
        }
        self._views = {name: station.view() for name, station in self._stations.items()}
        self._resume()

    def slices(self) -> Iterator[None]:
        """Run to the end, with a break every few events."""
        while self.wait_s is None and self._left > 0:
            self._slice_ends = self._left - EVENTS_A_SLICE
            before = self._left
            self.advance(math.inf)
            if self._left == before:
                return  # nothing is left to happen
            yield
        if self.wait_s is None and self._events:
            self.wait_s = self._events[0][0] - self._scene.now

    # ---- The start ----

    def _resume(self) -> None:
        now, asked = self._scene.now, self._asked
        for scene in self._scene.models:
            self._fill(self._stations[scene.name], scene)
        self._changed.update(self._stations.values())
        station = self._stations[asked.model]
        if station.admits:
            self.wait_s = 0.0
            return
        station.waiters.add(asked)
        self._waiting += 1
        if self._target is None:
            self._look_at = now
            self._schedule(now, LOOK)
        elif self._serving is None:
            self._schedule(now + self._hooks_left_s(), SWITCHED)
        elif not self._serving.in_flight.in_use:
            self._put_to_sleep(self._serving, now)

    def _fill(self, station: _Start, scene: ModelScene) -> None:
        """Bring a station into a model's phase, and its requests into the line or in flight."""
        for arrived_at, weight in scene.waiting:
            job = Job(scene.name, arrived_at, self._works.new_s(scene.name))
            job.weight = weight
            station.waiters.add(job)
        self._waiting += len(scene.waiting)
        target = self._stations.get(self._scene.target or "")
        is_leaving = scene.phase in {Phase.DRAINING, Phase.SLEEPING} and target is not None
        if scene.phase is Phase.AWAKE or is_leaving or (scene.in_flight and station.freezes):
            station.move_to(Phase.AWAKE, scene.awake_since)
            self._put_in_flight(station, scene.in_flight)
            if scene.phase is Phase.AWAKE:
                self._serving = station
                return
            station.move_to(Phase.DRAINING, scene.entered_at)
            if is_leaving:
                self._source, self._target = station, target
            if is_leaving and scene.phase is Phase.DRAINING:
                self._serving = station
                self._drain_began, self._draining = scene.entered_at, scene.in_flight
                return
            station.move_to(Phase.SLEEPING, scene.entered_at)
            if station.freezes:
                station.server.freeze(scene.entered_at)
                self._waiting += station.in_flight.in_use
            if is_leaving:
                return
            station.move_to(Phase.ASLEEP, scene.entered_at)
        if scene.phase is Phase.WAKING:
            self._target = station

    def _put_in_flight(self, station: Station, count: int) -> None:
        """Add requests that are in flight already."""
        now = self._scene.now
        for left_s in self._works.left_s(station.name, count):
            self._admit(station, Job(station.name, now, left_s), now)

    def _hooks_left_s(self) -> float:
        assert self._target is not None
        target, source = self._target.name, self._source
        of_target = next(each for each in self._scene.models if each.name == target)
        if source is not None:
            usual_s = self._measures.cost_s(source.name, target)
            began_at = source.entered_at
        else:
            known_s = self._measures.wake_s(target)
            usual_s = self._measures.typical_cost_s(target) if known_s is None else known_s
            began_at = of_target.entered_at
        self._hooks_s = usual_s
        return hook_left_s(usual_s, self._scene.now - began_at)

    # ---- The end ----

    def _is_over(self, done_at: float) -> bool:
        if self.wait_s is not None or self._left <= self._slice_ends:
            return True
        self._left -= 1
        return super()._is_over(done_at)

    def _admit(self, station: Station, job: Job, now: float) -> None:
        if job is self._asked:
            self.wait_s = now - self._scene.now
        super()._admit(station, job, now)


def hook_left_s(usual_s: float, runs_for_s: float) -> float:
    """Return how much longer a hook is expected to run."""
    return max(usual_s - runs_for_s, OVERDUE_SHARE * usual_s)


class _Start(Station):
    """A station as a model of a scene; `Rollout` puts its requests there."""

    def __init__(self, index: int, scene: ModelScene, server: Sharing) -> None:
        super().__init__(index, scene.name, server, scene.traits)
        self.drains = scene.drains
        self.retry_at = scene.retry_at

    @property
    def freezes(self) -> bool:
        """True if sleep freezes its requests."""
        return not self.is_drained


def speed_by_latency(measures: Measures, model: str) -> Callable[[int], float]:
    """Return the progress of each of n requests per second of work, from latencies (`replay`)."""
    latencies = measures.served(model).latencies

    @cache
    def speed(count: int) -> float:
        alone_s, together_s = latencies.estimate(1), latencies.estimate(count)
        return alone_s / together_s if alone_s and together_s else 1.0

    return speed


def forecast_s(scene: Scene, model: str) -> float | None:
    """Return how long a request for the model that arrives now would wait; None if not known."""
    rollout = Rollout(scene, model)
    for _ in rollout.slices():
        pass
    return rollout.wait_s
