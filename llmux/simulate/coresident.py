"""Discrete-event simulation of models that share memory: several are awake at a time.

Like `llmux.simulate.engine`, but each hook takes a time of its own, and switches overlap: a switch
waits for its drains, for earlier switches and for a free hook lane. Memory is kept by the server's
own `Ledger`, so that a policy that overcommits cannot be simulated.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from msgspec.structs import replace

from llmux.policy.base import (
    GroupView,
    LookAgain,
    Policy,
    RoomView,
    RunningSwitch,
    SwitchTo,
)
from llmux.policy.estimates import Measures
from llmux.policy.room import Memory
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Job, Server
from llmux.simulate.outcome import Outcome
from llmux.switching.core import ModelState, Phase
from llmux.switching.ledger import Ledger, Plan
from llmux.switching.lines import Line, Occupancy

ARRIVAL, LOOK, HOOK = range(3)


@dataclass(frozen=True, kw_only=True)
class CoresidentSetup:
    """The models, their costs and the policy of a simulation.

    Attributes:
        memory: The memory that the models share, and what each of them needs.
        wake_s: Returns the time of a wake, in seconds.
        sleep_s: Returns the time of putting a model to sleep, in seconds.
        server: Creates a model's server.
        policy: Creates the policy.
        hooks_at_once: Number of hooks that may run at a time.
    """

    memory: Memory
    wake_s: Callable[[str], float]
    sleep_s: Callable[[str], float]
    server: Callable[[str], Server]
    policy: Callable[[], Policy]
    hooks_at_once: int = 1


class Host(ModelState):
    """A model with a simulated server.

    Attributes:
        index: Its position among the models.
        server: Serves its requests.
        closed_at: When it last began to drain, and with how many requests.
    """

    waiters: Line[Job]

    def __init__(self, index: int, name: str, server: Server) -> None:
        super().__init__(name, Line[Job](), Occupancy())
        self.index = index
        self.server = server
        self.closed_at = (0.0, 0)


@dataclass(eq=False)
class Switch:
    """A running switch.

    Attributes:
        plan: Its place in the ledger.
        target: The model to wake.
    """

    plan: Plan
    target: Host


def simulate_coresident(
    setup: CoresidentSetup,
    arrivals: Iterator[Arrival] | Sequence[Arrival],
    *,
    until: float = math.inf,
) -> Outcome:
    """Run until all requests have ended, or up to `until`."""
    run = _Run(setup, iter(arrivals))
    run.run(until)
    return run.outcome


@dataclass(order=True)
class _Event:
    at: float
    count: int
    kind: int
    what: Callable[[float], None] | Arrival | None = field(compare=False)


class _Run:
    def __init__(self, setup: CoresidentSetup, arrivals: Iterator[Arrival]) -> None:
        names = list(setup.memory.needs)
        self.outcome = Outcome(names)
        self._setup = setup
        self._arrivals = arrivals
        self._ledger = Ledger(setup.memory)
        self._measures = Measures()
        self._policy = setup.policy()
        self._hosts = {
            name: Host(index, name, setup.server(name)) for index, name in enumerate(names)
        }
        self._views = {name: host.view() for name, host in self._hosts.items()}
        self._changed = set[Host]()  # those whose view is outdated
        self._switches: list[Switch] = []
        self._hooks = 0  # number that run
        self._events: list[_Event] = []
        self._count = 0
        self._look_at = math.inf
        self._waiting = 0

    # ---- Time ----

    def run(self, until: float) -> None:
        self._draw_arrival()
        hosts = list(self._hosts.values())
        now = 0.0
        while True:
            first = min(hosts, key=_done_at)
            done_at = first.server.done_at
            at = min(done_at, self._events[0].at if self._events else math.inf)
            if at == math.inf or at > until:
                break
            now = at
            if done_at <= at:
                self._end(first, now)
            else:
                event = heapq.heappop(self._events)
                if event.kind == LOOK and now < self._look_at:
                    continue  # superseded
                if isinstance(event.what, Arrival):
                    self._draw_arrival()
                    self._arrive(event.what, now)
                elif event.what is not None:
                    event.what(now)
            self._go_on(now)
            self._ask(now)
        for host in hosts:
            if host.is_awake:
                self.outcome.spans.append((host.index, host.awake_since, now))

    def _schedule(
        self, at: float, kind: int, what: Callable[[float], None] | Arrival | None
    ) -> None:
        self._count += 1
        heapq.heappush(self._events, _Event(at, self._count, kind, what))

    def _draw_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._schedule(arrival.at, ARRIVAL, arrival)

    # ---- Requests ----

    def _arrive(self, arrival: Arrival, now: float) -> None:
        host = self._hosts[arrival.model]
        job = Job(arrival.model, now, arrival.work_s)
        self._measures.note_arrival(host.name, now)
        self._changed.add(host)
        if host.admits:
            self._admit(host, job, now)
        else:
            self._waiting += 1
            host.waiters.add(job)

    def _admit(self, host: Host, job: Job, now: float) -> None:
        host.in_flight.in_use += 1
        job.admitted_at = now
        job.in_flight = host.in_flight.in_use
        host.server.add(job, now)

    def _admit_line(self, host: Host, now: float) -> None:
        for job in host.waiters.take_first():
            self._waiting -= 1
            self._admit(host, job, now)
            host.waiters.settle(job)

    def _end(self, host: Host, now: float) -> None:
        job = host.server.pop(now)
        host.in_flight.in_use -= 1
        host.used_at = now
        self._changed.add(host)
        self.outcome.add(host.index, job, now)
        self._measures.note_served(host.name, job.in_flight, now - job.admitted_at)
        if host.phase is Phase.DRAINING and not host.in_flight.in_use:
            began_at, in_flight = host.closed_at
            seconds = self._measures.note_drained(host.name, in_flight, now - began_at)
            self.outcome.drains.append((host.index, began_at, now))
            self.outcome.longest_drain_s = max(self.outcome.longest_drain_s, seconds)

    # ---- Switches ----

    def _ask(self, now: float) -> None:
        while self._waiting:
            decision = self._policy.decide(self._view(now))
            if isinstance(decision, SwitchTo):
                self._begin(decision, now)
                self._go_on(now)
                continue
            if isinstance(decision, LookAgain) and (at := decision.next_at(now)) != self._look_at:
                self._look_at = at
                self._schedule(at, LOOK, None)
            return

    def _view(self, now: float) -> GroupView:
        moving = {host.name for host in self._hosts.values() if _is_between(host)}
        switches = []
        for switch in self._switches:
            plan = switch.plan
            moving.update((plan.target, *plan.evict))
            draining = [v for v in plan.evict if self._hosts[v].phase is Phase.DRAINING]
            may_change = bool(draining) and self._ledger.may_drop(plan)
            switches.append(
                RunningSwitch(plan.target, plan.evict, tuple(draining), may_change=may_change)
            )
        for host in self._changed:
            self._views[host.name] = replace(
                host.view(),
                awake_since=host.awake_since if host.is_awake else None,
                used_at=host.used_at,
            )
        self._changed.clear()
        views = {
            name: replace(view, is_moving=True) if name in moving else view
            for name, view in self._views.items()
        }
        room = RoomView(self._setup.memory, self._ledger.projected(), tuple(switches))
        active = next((h for h in self._hosts.values() if h.is_awake), None)
        return GroupView(
            now,
            active.name if active else None,
            active.awake_since if active else None,
            MappingProxyType(views),
            self._measures.estimates,
            room,
        )

    def _begin(self, decision: SwitchTo, now: float) -> None:
        target = self._hosts[decision.model]
        for switch in self._switches:
            if switch.target is target:
                self._call_off(switch, decision.evict, now)
        plan = self._ledger.plan(target.name, decision.evict)
        self._switches.append(Switch(plan, target))
        self._look_at = math.inf
        for name in decision.evict:
            victim = self._hosts[name]
            if victim.is_awake:
                self._close(victim, now)

    def _close(self, victim: Host, now: float) -> None:
        self.outcome.spans.append((victim.index, victim.awake_since, now))
        victim.move_to(Phase.DRAINING, now)
        self._changed.add(victim)
        self._measures.note_closed(victim.name, now)
        victim.closed_at = now, victim.in_flight.in_use

    def _call_off(self, switch: Switch, instead: Sequence[str], now: float) -> None:
        self._ledger.drop(switch.plan)
        self._switches.remove(switch)
        for name in switch.plan.evict:
            victim = self._hosts[name]
            if name not in instead and victim.phase is Phase.DRAINING:
                victim.move_to(Phase.AWAKE, now)
                self._changed.add(victim)
                self._measures.note_reopened(name)
                self._admit_line(victim, now)

    def _go_on(self, now: float) -> None:
        """Start the hooks that may start now, in the order of the switches."""
        while self._hooks < self._setup.hooks_at_once and self._start_a_hook(now):
            pass

    def _start_a_hook(self, now: float) -> bool:
        for switch in self._switches:
            for name in switch.plan.evict:
                victim = self._hosts[name]
                if victim.phase is Phase.DRAINING and not victim.in_flight.in_use:
                    self._put_to_sleep(victim, now)
                    return True
            if self._are_asleep(switch.plan.evict) and self._ledger.may_wake(switch.plan):
                self._wake(switch, now)
                return True
        return False

    def _are_asleep(self, names: Sequence[str]) -> bool:
        return all(self._hosts[name].phase is Phase.ASLEEP for name in names)

    def _put_to_sleep(self, victim: Host, now: float) -> None:
        seconds = self._setup.sleep_s(victim.name)
        self._ledger.sleep(victim.name)
        victim.move_to(Phase.SLEEPING, now)
        self._changed.add(victim)
        self._hooks += 1

        def slept(then: float) -> None:
            self._hooks -= 1
            self._ledger.slept(victim.name)
            victim.move_to(Phase.ASLEEP, then)
            self._changed.add(victim)
            self._measures.note_slept(victim.name, seconds)

        self._schedule(now + seconds, HOOK, slept)

    def _wake(self, switch: Switch, now: float) -> None:
        target = switch.target
        seconds = self._setup.wake_s(target.name)
        self._ledger.wake(switch.plan)
        self._switches.remove(switch)
        target.move_to(Phase.WAKING, now)
        self._changed.add(target)
        self._hooks += 1

        def woke(then: float) -> None:
            self._hooks -= 1
            self._ledger.woke(target.name)
            self._measures.note_woken(target.name, seconds)
            self._measures.note_open(target.name, then, target.oldest)
            self.outcome.switches += 1
            target.note_woken()
            target.move_to(Phase.AWAKE, then)
            target.used_at = then
            self._changed.add(target)
            self._admit_line(target, then)

        self._schedule(now + seconds, HOOK, woke)


def _done_at(host: Host) -> float:
    return host.server.done_at


def _is_between(host: Host) -> bool:
    return host.phase in {Phase.WAKING, Phase.DRAINING, Phase.SLEEPING}
