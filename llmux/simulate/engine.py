"""One group of models, simulated event by event, under the very policies that the server runs.

The rules are those of `llmux.switching.switcher`: requests for the open model go in, the others
stand in line; a switch drains, takes its hooks' time, lets the line in; then the
policy is asked again.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmux.config import PolicyConfig
from llmux.policy import LineFirst, LookAgain, ModelView, Policy, Snapshot, SwitchTo
from llmux.policy.estimates import Measures
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Job, Server
from llmux.simulate.outcome import Outcome

FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
"""As in `llmux.switching.model`."""

ARRIVAL, FOLLOWED, LOOK, SWITCHED = range(4)

Cost = Callable[[str | None, str], float]
"""Seconds of hook time of a switch; from None: nothing was awake."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is simulated.

    Attributes:
        models: Their names.
        cost: Hook time of a switch from one (None: nothing awake) to another, in seconds; asked
            once for each switch.
        server: Makes a model's server.
        policy: Makes the policy.
        max_in_flight: Most requests in flight on a model, for all or by name; the rest wait.
        preserves_in_flight: The models (True: all) that sleep with their requests, undrained.
        failing_wakes: Share of wakes that fail.
        asks_when_idle: Ask the policy also when nobody waits for another model; real ones then
            have nothing to say. One that always has goes on for ever: then say `until`.
    """

    models: Sequence[str]
    cost: Cost
    server: Callable[[str], Server]
    policy: Callable[[], Policy]
    max_in_flight: int | Mapping[str, int] | None = None
    preserves_in_flight: bool | Collection[str] = False
    failing_wakes: float = 0.0
    asks_when_idle: bool = False

    def limit(self, model: str) -> float:
        """Most requests in flight on a model."""
        given = self.max_in_flight
        limit = given.get(model) if isinstance(given, Mapping) else given
        return math.inf if limit is None else limit

    def freezes(self, model: str) -> bool:
        """Whether a model sleeps with its requests."""
        given = self.preserves_in_flight
        return given if isinstance(given, bool) else model in given


class Station:
    """One simulated model.

    Attributes:
        frozen_at: When its requests were frozen the last time.
        frozen_s: For how long they were before that, in all.
    """

    __slots__ = (
        "failures", "frozen_at", "frozen_s", "index", "limit", "line", "name", "server", "view",
    )  # fmt: skip

    def __init__(
        self, index: int, name: str, server: Server, limit: float, *, freezes: bool
    ) -> None:
        self.index = index
        self.name = name
        self.server = server
        self.line: deque[Job] = deque()
        self.limit = limit
        self.view = ModelView(name, has_slots=limit != math.inf, freezes=freezes)
        self.frozen_at = math.nan
        self.frozen_s = 0.0
        self.failures = 0


def simulate(
    setup: Setup,
    arrivals: Iterator[Arrival] | Sequence[Arrival],
    *,
    follow: Callable[[Job, float], Arrival | None] | None = None,
    until: float = math.inf,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _count: None,
) -> Outcome:
    """Run to the end of the arrivals and of all that they asked for.

    Args:
        setup: The models, their costs and the policy.
        arrivals: In order of time.
        follow: What comes because a request was answered; for closed loops.
        until: Seconds of simulated time after which nothing is done any more.
        seed: Of what is drawn at random here: which wakes fail.
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
        policy = setup.policy()
        self._policy = LineFirst(policy, PolicyConfig())
        self._note_queued = getattr(policy, "note_queued", None)
        self._arrivals = arrivals
        self._follow = follow
        self._rng = rng
        self._progress = progress
        self._stations = {
            name: Station(
                index,
                name,
                setup.server(name),
                setup.limit(name),
                freezes=setup.freezes(name),
            )
            for index, name in enumerate(setup.models)
        }
        self._snapshot = Snapshot(
            now=0.0,
            active=None,
            active_since=None,
            models={name: station.view for name, station in self._stations.items()},
            measures=Measures(),
        )
        self._measures = self._snapshot.measures
        self._open: Station | None = None  # admits requests
        self._leaving: Station | None = None  # drains; its server still works
        self._target: Station | None = None  # being switched to
        self._source: Station | None = None
        self._waiting = 0  # in all lines
        self._events: list[tuple[float, int, int, Arrival | None]] = []
        self._count = 0
        self._coming = 0  # arrivals among the events
        self._look_at = math.inf
        self._drain_began = 0.0
        self._draining = 0  # requests, when it began
        self._hooks_s = 0.0
        self._seconds = dict.fromkeys(("serving", "draining", "switching", "idle"), 0.0)

    # ---- Time ----

    def run(self, until: float) -> None:
        """Go from event to event."""
        self._draw_arrival()
        events = self._events
        now = 0.0
        while True:
            working = self._open or self._leaving
            done_at = working.server.done_at if working else math.inf
            at = min(done_at, events[0][0] if events else math.inf)
            if at == math.inf or at > until or self._is_over(done_at):
                break
            self._seconds[self._doing()] += at - now
            now = self._snapshot.now = at
            if done_at <= at and working is not None:
                self._end(working, now)
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
                    continue  # a look that was put off
            if self._target is None:
                self._ask(now)
        if self._open is not None and self._snapshot.active_since is not None:
            self.outcome.spans.append((self._open.index, self._snapshot.active_since, now))
        self.outcome.seconds = self._seconds

    def _is_over(self, done_at: float) -> bool:
        """Whether nothing is left but looks that were put off."""
        return (
            not self._coming and done_at == math.inf and self._target is None and not self._waiting
        )

    def _doing(self) -> str:
        if self._target is not None:
            return "draining" if self._leaving else "switching"
        return "serving" if self._open and self._open.view.in_flight else "idle"

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
        job = Job(arrival.model, now, arrival.work_s)
        self._measures.note_arrival(station.name, now)
        has_room = station.view.in_flight < station.limit and not station.line
        if station is self._open and has_room:
            self._admit(station, job, now)
            return
        self._waiting += 1
        station.line.append(job)
        view = station.view
        view.queued += 1
        view.ages.add(now)
        if view.oldest_arrival is None:
            view.oldest_arrival = now
        if self._note_queued is not None:
            self._note_queued(station.name)

    def _admit(self, station: Station, job: Job, now: float) -> None:
        view = station.view
        view.in_flight += 1
        job.admitted_at = now
        job.frozen_s = -station.frozen_s
        job.in_flight = view.in_flight
        station.server.add(job, now)

    def _admit_line(self, station: Station, now: float) -> None:
        view, line = station.view, station.line
        while line and view.in_flight < station.limit:
            job = line.popleft()
            view.queued -= 1
            view.ages.remove(job.arrived_at)
            self._waiting -= 1
            self._admit(station, job, now)
        view.oldest_arrival = line[0].arrived_at if line else None

    def _end(self, station: Station, now: float) -> None:
        job = station.server.pop(now)
        view = station.view
        view.in_flight -= 1
        job.frozen_s += station.frozen_s
        self.outcome.add(station.index, job, now)
        served_s = now - job.admitted_at - job.frozen_s
        self._measures.note_served(station.name, job.in_flight, served_s)
        if self.outcome.count % 10_000 == 0:
            self._progress(self.outcome.count)
        if self._follow is not None and (arrival := self._follow(job, now)) is not None:
            self._schedule(arrival.at, FOLLOWED, arrival)
        if station is self._open:
            if station.line:
                self._admit_line(station, now)
        elif not view.in_flight:
            self._drained(station, now)

    # ---- Switches ----

    def _ask(self, now: float) -> None:
        here = self._open.view.queued if self._open else 0
        if self._waiting == here and not self._setup.asks_when_idle:
            return
        decision = self._policy.decide(self._snapshot)
        if isinstance(decision, SwitchTo):
            self._begin(self._stations[decision.model], now)
        elif isinstance(decision, LookAgain):
            assert decision.at > now, decision
            if decision.at != self._look_at:
                self._look_at = decision.at
                self._schedule(decision.at, LOOK)

    def _begin(self, target: Station, now: float) -> None:
        self._target = target
        self._look_at = math.inf
        source = self._source = self._open
        self._open = None
        if source is None:
            self._run_hooks(now)
            return
        assert self._snapshot.active_since is not None
        self.outcome.spans.append((source.index, self._snapshot.active_since, now))
        self._snapshot.active = self._snapshot.active_since = None
        self._measures.note_closed(source.name, now)
        if source.view.freezes:
            self._freeze(source, now)
            self._run_hooks(now)
        elif source.view.in_flight:
            self._leaving = source
            self._drain_began, self._draining = now, source.view.in_flight
        else:
            self._run_hooks(now)

    def _freeze(self, station: Station, now: float) -> None:
        """Its requests wait now, too."""
        station.server.freeze(now)
        station.frozen_at = now
        view = station.view
        view.queued += view.in_flight
        self._waiting += view.in_flight
        for _ in range(view.in_flight):
            view.ages.add(now)
        if view.in_flight and view.oldest_arrival is None:
            view.oldest_arrival = now

    def _thaw(self, station: Station, now: float) -> None:
        station.server.thaw(now)
        view = station.view
        if view.in_flight:
            station.frozen_s += now - station.frozen_at
        view.queued -= view.in_flight
        self._waiting -= view.in_flight
        for _ in range(view.in_flight):
            view.ages.remove(station.frozen_at)

    def _drained(self, station: Station, now: float) -> None:
        self._leaving = None
        began = self._drain_began
        seconds = self._measures.note_drained(station.name, self._draining, now - began)
        self.outcome.longest_drain_s = max(self.outcome.longest_drain_s, seconds)
        self.outcome.drains.append((station.index, began, now))
        self._run_hooks(now)

    def _run_hooks(self, now: float) -> None:
        assert self._target is not None
        source = self._source.name if self._source else None
        self._hooks_s = self._setup.cost(source, self._target.name)
        self._schedule(now + self._hooks_s, SWITCHED)

    def _switched(self, now: float) -> None:
        target = self._target
        assert target is not None
        self._target = None
        source = self._source.name if self._source else None
        if self._setup.failing_wakes and self._rng.random() < self._setup.failing_wakes:
            self._fail(target, now)
            return
        self._measures.costs.record(source, target.name, self._hooks_s)
        self._measures.note_open(target.name, now, target.view.oldest_arrival)
        self.outcome.switches += 1
        target.failures = 0
        target.view.retry_at = -math.inf
        self._open = target
        self._snapshot.active, self._snapshot.active_since = target.name, now
        if target.view.freezes:
            self._thaw(target, now)
        self._admit_line(target, now)

    def _fail(self, target: Station, now: float) -> None:
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0**target.failures)
        target.failures += 1
        view = target.view
        view.retry_at = now + delay_s
        self.outcome.failed += len(target.line)
        self._waiting -= len(target.line)
        for job in target.line:
            view.ages.remove(job.arrived_at)
        target.line.clear()
        # Those frozen with it wait on.
        view.queued = view.in_flight
        view.oldest_arrival = target.frozen_at if view.in_flight else None
