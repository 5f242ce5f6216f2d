"""Discrete-event simulation of one group of models, running the same policies as the server.

Each model is a `ModelState`, the base class of the server's models, so that admission, lines,
frozen requests, transitions and retries have one implementation. This module simulates the rest:
time, the backends, and switches, of which only the wake can fail.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from msgspec.structs import replace

from llmux.config import PolicyConfig
from llmux.policy import GroupView, LineFirst, LookAgain, ModelView, Policy, SwitchTo
from llmux.policy.estimates import Measures
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Job, Server
from llmux.simulate.outcome import Outcome
from llmux.switching.core import ModelState, Phase, Traits
from llmux.switching.failing import trial_at
from llmux.switching.lines import Line, Occupancy

ARRIVAL, FOLLOWED, LOOK, SWITCHED = range(4)

Cost = Callable[[str | None, str], float]
"""Returns the hook time of a switch in seconds; a source of None means that nothing was awake."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The models, their costs and the policy of a simulation.

    Attributes:
        models: Their names.
        cost: Returns the hook time of a switch, in seconds; called once per switch.
        server: Creates a model's server.
        policy: Creates the policy.
        max_in_flight: Limit on requests in flight, for all models or by name; the rest wait.
        preserves_in_flight: The models (True: all) that freeze their requests instead of draining.
        failing_wakes: Share of wakes that fail. After `policy.wake_failures` in a row (its default)
            a model's requests are refused while another one is served, as by the server.
        asks_when_idle: Ask the policy even when no requests wait for another model, which built-in
            policies answer with `Stay`. A policy that always switches then needs `until`.
        on_queued: Called with the model of each request that joins a line.
    """

    models: Sequence[str]
    cost: Cost
    server: Callable[[str], Server]
    policy: Callable[[], Policy]
    max_in_flight: int | Mapping[str, int] | None = None
    preserves_in_flight: bool | Collection[str] = False
    failing_wakes: float = 0.0
    asks_when_idle: bool = False
    on_queued: Callable[[str], object] | None = None

    def traits(self, model: str) -> Traits:
        """Return the traits of one model, as its config would give them."""
        limits, freezing = self.max_in_flight, self.preserves_in_flight
        limit = limits.get(model) if isinstance(limits, Mapping) else limits
        return Traits(
            max_in_flight=math.inf if limit is None else limit,
            preserves_in_flight=freezing if isinstance(freezing, bool) else model in freezing,
        )


class Station(ModelState):
    """A model with a simulated server.

    Attributes:
        index: Its position among the models.
        server: Serves its requests.
    """

    waiters: Line[Job]

    def __init__(self, index: int, name: str, server: Server, traits: Traits) -> None:
        super().__init__(name, Line[Job](), Occupancy(), traits)
        self.index = index
        self.server = server
        self.failing_after = PolicyConfig().wake_failures or math.inf


def simulate(
    setup: Setup,
    arrivals: Iterator[Arrival] | Sequence[Arrival],
    *,
    follow: Callable[[Job, float], Arrival | None] | None = None,
    until: float = math.inf,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _count: None,
) -> Outcome:
    """Run until all requests have ended.

    Args:
        setup: The models, their costs and the policy.
        arrivals: The requests, in order of time.
        follow: Returns the request that an answer triggers, or None; for closed loops.
        until: Simulated time in seconds at which the run stops early.
        seed: Seed of the random choice of wakes that fail.
        progress: Called with the number of requests answered, every 10,000.
    """
    run = Simulation(setup, iter(arrivals), follow, random.Random(seed), progress)  # noqa: S311
    run.run(until)
    return run.outcome


class Simulation:
    """The state of one run; see `simulate`."""

    def __init__(
        self,
        setup: Setup,
        arrivals: Iterator[Arrival],
        follow: Callable[[Job, float], Arrival | None] | None,
        rng: random.Random,
        progress: Callable[[int], None],
    ) -> None:
        self.outcome = Outcome(list(setup.models))
        self._setup = setup
        self._measures = Measures()
        self._estimates = self._measures.estimates
        self._policy = LineFirst(setup.policy(), PolicyConfig(), self._measures)
        self._on_queued = setup.on_queued
        self._arrivals = arrivals
        self._follow = follow
        self._rng = rng
        self._progress = progress
        self._stations = {
            name: Station(index, name, setup.server(name), setup.traits(name))
            for index, name in enumerate(setup.models)
        }
        self._views = {name: station.view() for name, station in self._stations.items()}
        self._changed: set[Station] = set()  # stations whose view is outdated
        self._serving: Station | None = None  # awake or draining
        self._target: Station | None = None  # of the running switch
        self._source: Station | None = None
        self._waiting = 0  # in all lines, and frozen
        self._events: list[tuple[float, int, int, Arrival | None]] = []
        self._has_begun = False
        self._now = 0.0
        self._count = 0
        self._coming = 0  # number of arrivals among the events
        self._look_at = math.inf
        self._drain_began = 0.0
        self._draining = 0  # number of requests when it began
        self._hooks_s = 0.0
        self._seconds = dict.fromkeys(("serving", "draining", "switching", "idle"), 0.0)

    # ---- Time ----

    def run(self, until: float) -> None:
        """Process events in order of time, up to `until`."""
        self.advance(until)
        if self._target is None and self._serving is not None:
            span = self._serving.index, self._serving.awake_since, self._now
            self.outcome.spans.append(span)
        self.outcome.seconds = self._seconds

    def advance(self, until: float) -> None:
        """Process events in order of time, up to `until`; more may follow."""
        if not self._has_begun:
            self._has_begun = True
            self._draw_arrival()
        events, now = self._events, self._now
        while True:
            serving = self._serving
            done_at = serving.server.done_at if serving else math.inf
            at = min(done_at, events[0][0] if events else math.inf)
            if at == math.inf or at > until or self._is_over(done_at):
                break
            self._seconds[self._activity()] += at - now
            now = at
            if done_at <= at and serving is not None:
                self._end(serving, now)
            else:
                _, _, kind, arrival = heapq.heappop(events)
                if arrival is not None:
                    self._coming -= 1
                    if kind == ARRIVAL:
                        self._draw_arrival()
                    self._arrive(arrival, now)
                elif kind == SWITCHED:
                    self._switched(now)
                elif now < self._look_at:
                    continue  # superseded by a later LookAgain
            if self._target is None:
                self._ask(now)
        self._now = now

    def _is_over(self, done_at: float) -> bool:
        """Return whether only superseded `LookAgain` events are left."""
        return (
            not self._coming and done_at == math.inf and self._target is None and not self._waiting
        )

    def _activity(self) -> str:
        if self._target is not None:
            return "draining" if self._serving else "switching"
        return "serving" if self._serving and self._serving.in_flight.in_use else "idle"

    def _schedule(self, at: float, kind: int, arrival: Arrival | None = None) -> None:
        self._count += 1
        self._coming += arrival is not None
        heapq.heappush(self._events, (at, self._count, kind, arrival))

    def _draw_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._schedule(arrival.at, ARRIVAL, arrival)

    # ---- Requests ----

    def _arrive(self, arrival: Arrival, now: float) -> None:
        station = self._stations[arrival.model]
        job = Job(arrival.model, now, arrival.work_s, arrival.lost_s)
        self._measures.note_arrival(station.name, now)
        if station.admits:
            self._admit(station, job, now)
            return
        if self._is_barred(station, now):
            self.outcome.failed += 1
            return
        self._waiting += 1
        station.waiters.add(job)
        self._changed.add(station)
        if self._on_queued is not None:
            self._on_queued(station.name)

    def _admit(self, station: Station, job: Job, now: float) -> None:
        in_flight = station.in_flight
        in_flight.in_use += 1
        job.admitted_at = now
        job.frozen_s = -in_flight.frozen_s
        job.in_flight = in_flight.in_use
        station.server.add(job, now)
        self._changed.add(station)

    def _admit_line(self, station: Station, now: float) -> None:
        for job in station.waiters.take_first(station.room):
            self._waiting -= 1
            self._admit(station, job, now)
            station.waiters.settle(job)

    def _end(self, station: Station, now: float) -> None:
        job = station.server.pop(now)
        in_flight = station.in_flight
        in_flight.in_use -= 1
        station.used_at = now
        self._changed.add(station)
        job.frozen_s += in_flight.frozen_s
        self.outcome.add(station.index, job, now)
        served_s = now - job.admitted_at - job.frozen_s
        self._measures.note_served(station.name, job.in_flight, served_s)
        if self.outcome.count % 10_000 == 0:
            self._progress(self.outcome.count)
        if self._follow is not None and (arrival := self._follow(job, now)) is not None:
            self._schedule(arrival.at, FOLLOWED, arrival)
        if self._target is None:  # still awake: it drains only during a switch
            if station.waiters.count:
                self._admit_line(station, now)
        elif not in_flight.in_use:
            self._drained(station, now)

    # ---- Switches ----

    def _is_barred(self, station: Station, now: float) -> bool:
        """Return whether requests may not wait for a model, since it is failing."""
        if not station.is_failing or station.is_awake or self._target is station:
            return False
        return self._trial_at(station) > now

    def _trial_at(self, station: Station) -> float:
        return trial_at(station, self._stations.values())

    def _ask(self, now: float) -> None:
        if self._setup.failing_wakes:
            for station in self._stations.values():
                if station.waiters.count and self._is_barred(station, now):
                    self._refuse_line(station)
        active = self._serving
        in_own_line = active.waiters.count if active else 0
        if self._waiting == in_own_line and not self._setup.asks_when_idle:
            return
        decision = self._policy.decide(self._view(active, now))
        if isinstance(decision, SwitchTo):
            self._begin(self._stations[decision.model], now)
        elif isinstance(decision, LookAgain) and (at := decision.next_at(now)) != self._look_at:
            self._look_at = at
            self._schedule(at, LOOK)

    def _view(self, active: Station | None, now: float) -> GroupView:
        # Usually one model changes between two decisions: the views of the others are reused.
        for station in self._changed:
            self._views[station.name] = self._shown(station)
        self._changed = {station for station in self._changed if station.is_failing}
        return GroupView(
            now,
            active.name if active else None,
            active.awake_since if active else None,
            MappingProxyType(self._views.copy()),
            self._estimates,
        )

    def _shown(self, station: Station) -> ModelView:
        view = station.view()
        if not station.is_failing or station.is_awake:
            return view
        return replace(view, retry_at=self._trial_at(station))

    def _begin(self, target: Station, now: float) -> None:
        self._target = target
        self._look_at = math.inf
        source = self._source = self._serving
        if source is None:
            self._run_hooks(now)
            return
        self.outcome.spans.append((source.index, source.awake_since, now))
        source.move_to(Phase.DRAINING, now)
        self._measures.note_closed(source.name, now)
        if source.is_drained and source.in_flight.in_use:
            self._drain_began, self._draining = now, source.in_flight.in_use
        else:
            self._put_to_sleep(source, now)

    def _drained(self, station: Station, now: float) -> None:
        began = self._drain_began
        seconds = self._measures.note_drained(station.name, self._draining, now - began)
        self.outcome.longest_drain_s = max(self.outcome.longest_drain_s, seconds)
        self.outcome.drains.append((station.index, began, now))
        self._put_to_sleep(station, now)

    def _put_to_sleep(self, station: Station, now: float) -> None:
        self._serving = None
        station.move_to(Phase.SLEEPING, now)
        self._changed.add(station)
        if not station.is_drained:
            station.server.freeze(now)
            self._waiting += station.in_flight.in_use
        self._run_hooks(now)

    def _run_hooks(self, now: float) -> None:
        assert self._target is not None
        source = self._source.name if self._source else None
        self._hooks_s = self._setup.cost(source, self._target.name)
        self._schedule(now + self._hooks_s, SWITCHED)

    def _switched(self, now: float) -> None:
        target, source = self._target, self._source
        assert target is not None
        self._target = None
        self._changed.add(target)
        # Both hooks are simulated as one delay, so the sleep ends only now.
        if source is not None:
            source.move_to(Phase.ASLEEP, now)
        target.move_to(Phase.WAKING, now)
        if self._setup.failing_wakes and self._rng.random() < self._setup.failing_wakes:
            self._fail(target, now)
            return
        self._measures.note_switched(source.name if source else None, target.name, self._hooks_s)
        self._measures.note_open(target.name, now, target.oldest)
        self.outcome.switches += 1
        target.note_woken()
        if not target.is_drained:
            target.server.thaw(now)
            self._waiting -= target.in_flight.in_use
        target.move_to(Phase.AWAKE, now)
        target.used_at = now
        self._serving = target
        self._admit_line(target, now)

    def _fail(self, target: Station, now: float) -> None:
        target.move_to(Phase.SLEEPING, now)
        target.move_to(Phase.FAILED, now)
        target.note_wake_failed(now)
        self._refuse_line(target)

    def _refuse_line(self, station: Station) -> None:
        refused = station.waiters.take_first()  # frozen requests keep waiting
        for job in refused:
            station.waiters.settle(job)
        self._changed.add(station)
        self.outcome.failed += len(refused)
        self._waiting -= len(refused)
