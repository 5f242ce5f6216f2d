"""Switches of models that share memory, in a simulation: drains, hooks and calling off.

A switch waits for its drains, for earlier switches and for its hooks' lanes. Memory is kept by the
server's own `Ledger`, so that a policy that overcommits cannot be simulated.

Of the hooks that may start, those of earlier switches come first; a hook that waits for a lane
keeps later ones from the resources that it touches, so that none is overtaken for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from llmux.policy import SwitchTo
from llmux.policy.base import RunningSwitch
from llmux.policy.estimates import Measures
from llmux.simulate.hosts import CoresidentSetup, Host
from llmux.simulate.lanes import Lanes
from llmux.simulate.outcome import Outcome
from llmux.switching.core import AT_REST, Phase
from llmux.switching.ledger import Ledger, Plan

Then = Callable[[float], None]
"""Called at the time for which it was scheduled, with that time."""


@dataclass(eq=False)
class Switch:
    """A switch whose target does not wake yet.

    Attributes:
        plan: Its place in the ledger.
        target: The model to wake.
    """

    plan: Plan
    target: Host


class Moves:
    """Moves models between their phases.

    Args:
        setup: Times and limits of hooks.
        hosts: The models.
        ledger: The memory.
        measures: Receives what hooks and drains take.
        outcome: Receives what is counted.
        schedule: Has a function called at a time.
        let_in: Lets in the requests in line that may be let in.
        rng: Chooses the wakes that fail.

    Attributes:
        switches: The running ones, in order, whose target does not wake yet.
        lanes: The hooks that run.
        changed: The models whose view is outdated.
    """

    def __init__(
        self,
        setup: CoresidentSetup,
        hosts: Mapping[str, Host],
        ledger: Ledger,
        *,
        measures: Measures,
        outcome: Outcome,
        schedule: Callable[[float, Then], object],
        let_in: Callable[[Host, float], object],
        rng: random.Random,
    ) -> None:
        self._setup = setup
        self._hosts = hosts
        self._ledger = ledger
        self._measures = measures
        self._outcome = outcome
        self._schedule = schedule
        self._let_in = let_in
        self._rng = rng
        self.switches: list[Switch] = []
        touches = {} if setup.overlapping_hooks else setup.touches
        self.lanes = Lanes(touches, setup.hooks_at_once)
        self.changed = set[Host](hosts.values())

    # ---- What policies see ----

    def moving(self) -> set[str]:
        """Return the names of the models that switches move."""
        moving = {host.name for host in self._hosts.values() if _is_between(host)}
        for switch in self.switches:
            moving.update((switch.plan.target, *switch.plan.evict))
        return moving

    def running(self) -> tuple[RunningSwitch, ...]:
        """Return the switches whose target does not wake yet."""
        return tuple(self._shown(switch.plan) for switch in self.switches)

    def _shown(self, plan: Plan) -> RunningSwitch:
        draining = tuple(name for name in plan.evict if _may_stay(self._hosts[name]))
        may_change = bool(draining) and self._ledger.may_drop(plan)
        return RunningSwitch(plan.target, plan.evict, draining, may_change=may_change)

    # ---- Begin and call off ----

    def begin(self, decision: SwitchTo, now: float) -> None:
        """Begin a switch, or have one that runs evict other models."""
        target = self._hosts[decision.model]
        for switch in self.switches:
            if switch.target is target:
                self._call_off(switch, decision.evict, now)
                break
        self.switches.append(Switch(self._ledger.plan(target.name, decision.evict), target))
        for name in decision.evict:
            victim = self._hosts[name]
            if victim.is_awake and victim.leaves_since is None:
                self._evict(victim, now)

    def _evict(self, victim: Host, now: float) -> None:
        """Close a model; first let in its line, as `LineFirst` does where one model is awake."""
        victim.to_drain = victim.in_flight.in_use
        if victim.waiters.count and victim.is_drained:
            victim.leaves_since = now
            victim.to_drain += victim.waiters.count
        else:
            self.close(victim, now)

    def close_served(self, now: float) -> None:
        """Close the models to evict whose line has been let in."""
        for switch in self.switches:
            for name in switch.plan.evict:
                victim = self._hosts[name]
                if victim.leaves_since is not None and victim.has_let_in_its_line:
                    lasted_s = now - victim.leaves_since
                    self._measures.note_line_first(name, lasted_s, victim.to_drain)
                    victim.leaves_since = None
                    victim.to_drain = victim.in_flight.in_use
                    self.close(victim, now)

    def close(self, victim: Host, now: float) -> None:
        """Let nobody in to a model any more, so that it drains."""
        self._outcome.spans.append((victim.index, victim.awake_since, now))
        self._move(victim, Phase.DRAINING, now)
        self._measures.note_closed(victim.name, now)
        victim.closed_at = now

    def _call_off(self, switch: Switch, instead: Sequence[str], now: float) -> None:
        self._ledger.drop(switch.plan)
        self.switches.remove(switch)
        for name in switch.plan.evict:
            victim = self._hosts[name]
            if name in instead or not _may_stay(victim):
                continue
            victim.leaves_since = None
            if victim.phase is Phase.DRAINING:
                self._move(victim, Phase.AWAKE, now)
                self._measures.note_reopened(name)
                self._let_in(victim, now)

    def note_drained(self, victim: Host, now: float) -> None:
        """Note that the last request of a model that drains has ended."""
        began_at = victim.closed_at
        seconds = self._measures.note_drained(victim.name, victim.to_drain, now - began_at)
        self._outcome.drains.append((victim.index, began_at, now))
        self._outcome.longest_drain_s = max(self._outcome.longest_drain_s, seconds)

    # ---- Hooks ----

    def go_on(self, now: float) -> None:
        """Start the hooks that may start now, in the order of the switches."""
        while not self.lanes.are_full and self._start_a_hook(now):
            pass

    def _start_a_hook(self, now: float) -> bool:
        wanted: set[str] = set()
        for host, start in self._ready():
            touched = self.lanes.touched_by(host.name)
            if wanted.isdisjoint(touched) and self.lanes.are_free_for(host.name):
                start(now)
                return True
            wanted |= touched
        return False

    def _ready(self) -> Iterator[tuple[Host, Then]]:
        """Yield the models whose hook only waits for a lane, and what starts it."""
        for switch in self.switches:
            for name in switch.plan.evict:
                victim = self._hosts[name]
                if victim.may_be_put_to_sleep and self._ledger.may_sleep(name):
                    yield victim, partial(self.put_to_sleep, victim)
            if self._are_asleep(switch.plan.evict) and self._ledger.may_wake(switch.plan):
                yield switch.target, partial(self._wake, switch)

    def _are_asleep(self, names: Sequence[str]) -> bool:
        return all(self._hosts[name].phase in AT_REST for name in names)

    def put_to_sleep(self, victim: Host, now: float) -> None:
        """Start a model's sleep hook; requests in flight are frozen."""
        self._ledger.sleep(victim.name)
        self._move(victim, Phase.SLEEPING, now)
        if victim.in_flight.in_use:
            victim.server.freeze(now)
        seconds = self._setup.sleep_s(victim.name)
        self.run_hook(victim, now + seconds, partial(self.slept, victim, seconds))

    def slept(self, victim: Host, seconds: float, now: float) -> None:
        """Note that a model sleeps, after a hook of so many seconds."""
        self._ledger.slept(victim.name)
        self._move(victim, Phase.ASLEEP, now)
        self._measures.note_slept(victim.name, seconds)

    def _wake(self, switch: Switch, now: float) -> None:
        target = switch.target
        self._ledger.wake(switch.plan)
        self.switches.remove(switch)
        self._move(target, Phase.WAKING, now)
        seconds = self._setup.wake_s(target.name)
        self.run_hook(target, now + seconds, partial(self.woke, target, seconds))

    def woke(self, target: Host, seconds: float, now: float) -> None:
        """Note that a wake hook of so many seconds has ended."""
        share = self._setup.failing_wakes
        if share and self._rng.random() < share:
            self._clean_up(target, now)
            return
        self._ledger.woke(target.name)
        self._measures.note_woken(target.name, seconds)
        self._measures.note_open(target.name, now, target.oldest)
        self._outcome.switches += 1
        target.note_woken()
        if target.in_flight.in_use:
            target.server.thaw(now)
        self._move(target, Phase.AWAKE, now)
        target.used_at = now
        self._let_in(target, now)

    def _clean_up(self, target: Host, now: float) -> None:
        """Put a model to sleep whose wake has failed, before anything else runs in its lane."""
        self._ledger.sleep(target.name)
        self._move(target, Phase.SLEEPING, now)
        target.note_wake_failed(now)
        self.refuse_line(target)

        def failed(then: float) -> None:
            self._ledger.slept(target.name)
            self._move(target, Phase.FAILED, then)

        self.run_hook(target, now + self._setup.sleep_s(target.name), failed)

    def refuse_line(self, host: Host) -> None:
        """Refuse the requests in line; frozen ones keep waiting."""
        refused = host.waiters.take_first()
        for job in refused:
            host.waiters.settle(job)
        self.changed.add(host)
        self._outcome.failed += len(refused)

    def run_hook(self, host: Host, until: float, then: Then) -> None:
        """Have a hook run in its lanes until then, and something happen at its end."""
        self.lanes.enter(host.name)
        self._schedule(until, partial(self._end_hook, host, then))

    def _end_hook(self, host: Host, then: Then, now: float) -> None:
        self.lanes.leave(host.name)
        then(now)

    def _move(self, host: Host, phase: Phase, now: float) -> None:
        host.move_to(phase, now)
        self.changed.add(host)


def _is_between(host: Host) -> bool:
    return host.phase in {Phase.WAKING, Phase.DRAINING, Phase.SLEEPING}


def _may_stay(victim: Host) -> bool:
    """Return whether a model to evict could still stay."""
    return victim.phase is Phase.DRAINING or victim.leaves_since is not None
