"""Discrete-event simulation of models that share memory: several are awake at a time.

Like `llmux.simulate.engine`, but each hook takes a time of its own, and switches overlap
(`llmux.simulate.moves`). This module simulates time and requests.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from msgspec.structs import replace

from llmux.config import PolicyConfig
from llmux.policy import GroupView, LineFirst, LookAgain, ModelView, Policy, SwitchTo
from llmux.policy.base import RoomView
from llmux.policy.estimates import Measures
from llmux.policy.placing import Placing
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Job
from llmux.simulate.hosts import CoresidentSetup, Host
from llmux.simulate.moves import Moves, Then
from llmux.simulate.outcome import Outcome
from llmux.switching.core import NO_TRAITS, ModelState, Phase
from llmux.switching.failing import trial_at
from llmux.switching.ledger import Ledger
from llmux.switching.turns import Turns

ARRIVAL, LOOK, HOOK, FOLLOWED = range(4)

Follow = Callable[[Job, float], Arrival | None]
"""Returns the request that an answer triggers, or None."""


def simulate_coresident(
    setup: CoresidentSetup,
    arrivals: Iterator[Arrival] | Sequence[Arrival],
    *,
    follow: Follow | None = None,
    until: float = math.inf,
    seed: int = 0,
    progress: Callable[[int], object] = lambda _count: None,
) -> Outcome:
    """Run until all requests have ended.

    Args:
        setup: The models, their costs and the policy.
        arrivals: The requests, in order of time.
        follow: For closed loops.
        until: Simulated time in seconds at which the run stops early.
        seed: Seed of the random choice of wakes that fail.
        progress: Called with the number of requests answered, every 10,000.

    Raises:
        ValueError: The policy names evictions that do not make room.
    """
    rng = random.Random(seed)  # noqa: S311
    policy = LineFirst(Placing(setup.policy()), PolicyConfig(), measures := Measures())
    run = Coresident(
        setup,
        iter(arrivals),
        policy=policy,
        measures=measures,
        ledger=Ledger(setup.memory),
        rng=rng,
    )
    run.follow, run.progress = follow, progress
    run.run(until)
    return run.outcome


@dataclass(order=True)
class _Event:
    at: float
    count: int
    kind: int
    what: Then | Arrival | None = field(compare=False)


class Coresident:
    """The state of one run; see `simulate_coresident`.

    Args:
        setup: The models, their costs; its policy is not used.
        arrivals: The requests, in order of time.
        policy: Decides.
        measures: Those that the policy decides on.
        ledger: The memory, which no model holds yet, unless they are moved to match.
        rng: Chooses the wakes that fail.

    Attributes:
        outcome: What has happened.
        follow, progress: See `simulate_coresident`.
    """

    def __init__(
        self,
        setup: CoresidentSetup,
        arrivals: Iterator[Arrival],
        *,
        policy: Policy,
        measures: Measures,
        ledger: Ledger,
        rng: random.Random,
    ) -> None:
        names = list(setup.memory.needs)
        self.outcome = Outcome(names)
        self.follow: Follow | None = None
        self.progress: Callable[[int], object] = lambda _count: None
        self._setup = setup
        self._arrivals = arrivals
        self._ledger = ledger
        self._measures = measures
        self._policy = policy
        self._hosts = {
            name: Host(
                index,
                name,
                setup.server(name),
                setup.traits.get(name, NO_TRAITS),
                is_kept=name in setup.keep,
            )
            for index, name in enumerate(names)
        }
        self._views: dict[str, ModelView] = {}
        self._moves = Moves(
            setup,
            self._hosts,
            ledger,
            measures=measures,
            outcome=self.outcome,
            schedule=lambda at, then: self._schedule(at, HOOK, then),
            let_in=self._admit_line,
            rng=rng,
        )
        self._turns = Turns(self._hosts.values(), setup.touches, setup.busy, self._latency_s)
        self._events: list[_Event] = []
        self._has_begun = False
        self._now = 0.0
        self._count = 0
        self._look_at = math.inf
        self._seconds = dict.fromkeys(("serving", "draining", "switching", "idle"), 0.0)

    # ---- Time ----

    def run(self, until: float) -> None:
        """Process events in order of time, up to `until`."""
        self.advance(until)
        for host in self._hosts.values():
            if host.is_awake:
                self.outcome.spans.append((host.index, host.awake_since, self._now))
        self.outcome.seconds = self._seconds

    def advance(self, until: float) -> None:
        """Process events in order of time, up to `until`; more may follow."""
        if not self._has_begun:
            self._has_begun = True
            self._draw_arrival()
        hosts, now = list(self._hosts.values()), self._now
        while True:
            first = min(hosts, key=_done_at)
            done_at = first.server.done_at
            at = min(done_at, self._events[0].at if self._events else math.inf)
            if at == math.inf or at > until or self._is_over():
                break
            self._seconds[self._activity()] += at - now
            now = at
            if done_at <= at:
                self._end(first, now)
            else:
                event = heapq.heappop(self._events)
                if event.kind == LOOK and now < self._look_at:
                    continue  # superseded
                if isinstance(event.what, Arrival):
                    if event.kind == ARRIVAL:
                        self._draw_arrival()
                    self._arrive(event.what, now)
                elif event.what is not None:
                    event.what(now)
            self._settle(now)
            self._ask(now)
        self._now = now

    def _is_over(self) -> bool:
        """Return whether to stop although something is left to happen."""
        return False

    def _settle(self, now: float) -> None:
        """Do all that may be done without asking the policy."""
        if self._turns.are_limited:
            while (model := self._turns.next(now)) is not None:
                self._admit_first(self._hosts[model.name], 1, now)
        self._moves.close_served(now)
        self._moves.go_on(now)

    def _activity(self) -> str:
        """Return what the time is spent on: serving, if any model that is awake serves."""
        phases = {host.phase for host in self._hosts.values() if host.in_flight.in_use}
        if Phase.AWAKE in phases:
            return "serving"
        if Phase.DRAINING in phases:
            return "draining"
        return "idle" if self._moves.lanes.are_empty else "switching"

    def _schedule(self, at: float, kind: int, what: Then | Arrival | None) -> None:
        self._count += 1
        heapq.heappush(self._events, _Event(at, self._count, kind, what))

    def _draw_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._schedule(arrival.at, ARRIVAL, arrival)

    # ---- Requests ----

    def _arrive(self, arrival: Arrival, now: float) -> None:
        host = self._hosts[arrival.model]
        job = Job(arrival.model, now, arrival.work_s, arrival.lost_s)
        self._measures.note_arrival(host.name, now)
        self._moves.changed.add(host)
        if host.admits and not host.waiters.count and self._turns.may_admit(host, now, now):
            self._admit(host, job, now)
        elif self._is_barred(host, now):
            self.outcome.failed += 1
        else:
            host.waiters.add(job)

    def _latency_s(self, model: ModelState) -> float:
        return self._measures.latency_s(model.name, max(1, model.in_flight.in_use)) or 0.0

    def _admit(self, host: Host, job: Job, now: float) -> None:
        self._turns.note_admitted(host, now)
        host.in_flight.in_use += 1
        job.admitted_at = now
        job.frozen_s = -host.in_flight.frozen_s
        job.in_flight = host.in_flight.in_use
        host.server.add(job, now)
        self._moves.changed.add(host)

    def _admit_line(self, host: Host, now: float) -> None:
        """Let in as many as there are slots for; with a cap on models, `_settle` lets in."""
        if not self._turns.are_limited:
            self._admit_first(host, host.room, now)

    def _admit_first(self, host: Host, count: float, now: float) -> None:
        for job in host.waiters.take_first(count):
            self._admit(host, job, now)
            host.waiters.settle(job)

    def _end(self, host: Host, now: float) -> None:
        job = host.server.pop(now)
        in_flight = host.in_flight
        in_flight.in_use -= 1
        host.used_at = now
        self._moves.changed.add(host)
        job.frozen_s += in_flight.frozen_s
        self.outcome.add(host.index, job, now)
        served_s = now - job.admitted_at - job.frozen_s
        self._measures.note_served(host.name, job.in_flight, served_s)
        if self.outcome.count % 10_000 == 0:
            self.progress(self.outcome.count)
        if self.follow is not None and (arrival := self.follow(job, now)) is not None:
            self._schedule(arrival.at, FOLLOWED, arrival)
        if host.is_awake:
            if host.waiters.count:
                self._admit_line(host, now)
        elif host.phase is Phase.DRAINING and not in_flight.in_use:
            self._moves.note_drained(host, now)

    # ---- Failing models ----

    def _is_barred(self, host: Host, now: float) -> bool:
        """Return whether requests may not wait for a model, since it is failing."""
        if not host.is_failing or host.phase in {Phase.AWAKE, Phase.WAKING}:
            return False
        is_target = any(switch.target is host for switch in self._moves.switches)
        return not is_target and self._trial_at(host) > now

    def _trial_at(self, host: Host) -> float:
        """Return when a failing model may be tried: nobody need spare what fits beside it."""
        needs = self._setup.memory.needs[host.name]
        fits = min(map(int.__sub__, self._ledger.projected(), needs.moving)) >= 0
        return host.retry_at if fits else trial_at(host, self._hosts.values())

    # ---- Decisions ----

    def _ask(self, now: float) -> None:
        if self._setup.failing_wakes:
            for host in self._hosts.values():
                if host.waiters.count and self._is_barred(host, now):
                    self._moves.refuse_line(host)
        while any(host.wanted_by for host in self._hosts.values()):
            decision = self._policy.decide(self._view(now))
            if isinstance(decision, SwitchTo):
                self._look_at = math.inf
                self._moves.begin(decision, now)
                self._settle(now)
                continue
            if isinstance(decision, LookAgain) and (at := decision.next_at(now)) != self._look_at:
                self._look_at = at
                self._schedule(at, LOOK, None)
            return

    def _view(self, now: float) -> GroupView:
        changed = self._moves.changed
        for host in changed:
            self._views[host.name] = self._shown(host)
        # A failing one may be tried depending on what others do.
        self._moves.changed = {host for host in changed if host.is_failing}
        moving = self._moves.moving()
        views = {
            name: replace(self._views[name], is_moving=True)
            if name in moving
            else self._views[name]
            for name in self._hosts
        }
        room = RoomView(self._setup.memory, self._ledger.projected(), self._moves.running())
        active = next((h for h in self._hosts.values() if h.is_awake), None)
        return GroupView(
            now,
            active.name if active else None,
            active.awake_since if active else None,
            MappingProxyType(views),
            self._measures.estimates,
            room,
        )

    def _shown(self, host: Host) -> ModelView:
        view = host.shown()
        if not host.is_failing or host.is_awake:
            return view
        return replace(view, retry_at=self._trial_at(host))


def _done_at(host: Host) -> float:
    return host.server.done_at
