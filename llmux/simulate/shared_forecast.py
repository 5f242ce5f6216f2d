"""How long a request that arrives now would wait, where the models of its group share memory.

As `llmux.simulate.forecast`, from the present state: phases, lines, running hooks, the ledger with
its planned switches, and the policy.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from llmux.policy import Policy
from llmux.policy.estimates import Measures
from llmux.policy.placing import Placing
from llmux.simulate.backends import Job, Sharing
from llmux.simulate.coresident import LOOK, Coresident
from llmux.simulate.expected import Works, expected_arrivals
from llmux.simulate.forecast import (
    EVENTS_A_SLICE,
    MOST_EVENTS,
    ModelScene,
    Moment,
    Rollout,
    Scene,
    copy_of,
    hook_left_s,
    model_scene,
    speed_by_latency,
)
from llmux.simulate.hosts import CoresidentSetup, Host
from llmux.simulate.moves import Switch, Then
from llmux.switching.core import SERVES, ModelState, Phase
from llmux.switching.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits of a group whose models share memory, as of `CoresidentSetup`."""

    touches: Mapping[str, frozenset[str]] = field(default_factory=dict)
    overlapping_hooks: bool = False
    keep: Collection[str] = ()
    busy: float = math.inf

    @classmethod
    def of(cls, setup: CoresidentSetup) -> Rules:
        """Return the limits of a simulation."""
        return cls(
            touches=setup.touches,
            overlapping_hooks=setup.overlapping_hooks,
            keep=setup.keep,
            busy=setup.busy,
        )


@dataclass(frozen=True, kw_only=True)
class SharedScene(Moment):
    """A group whose models share memory, at one moment.

    Attributes:
        ledger: A copy of its ledger, which a rollout may change.
        rules: See `Rules`.
    """

    ledger: Ledger
    rules: Rules


def shared_scene_of(
    models: Iterable[ModelState],
    ledger: Ledger,
    policy: Policy,
    measures: Measures,
    *,
    now: float,
    rules: Rules,
) -> SharedScene:
    """Copy a group.

    Args:
        models: Its models; those that the ledger does not know are left out.
        ledger: Who holds what; its plans are the switches whose target does not wake yet.
        policy: The policy that decides.
        measures: Those that it decides on.
        now: The time, in seconds of the models' clock.
        rules: See `Rules`.

    Raises:
        TypeError: The policy cannot be copied, as one of a user's may hold a file or a lock.
    """
    copied = measures.copy()
    known = ledger.memory.needs
    return SharedScene(
        now=now,
        models=tuple(model_scene(model) for model in models if model.name in known),
        policy=copy_of(policy, measures, copied),
        measures=copied,
        ledger=copy.deepcopy(ledger, {id(ledger.memory): ledger.memory}),
        rules=rules,
    )


class SharedRollout(Coresident):
    """A forecast for one model; see `Rollout`.

    Args:
        scene: Where to start; its ledger, policy and measurements change.
        model: The model of the request that arrives now.

    Attributes:
        wait_s: As `Rollout.wait_s`.
    """

    def __init__(self, scene: SharedScene, model: str) -> None:
        measures, rules = scene.measures, scene.rules
        memory = scene.ledger.memory
        works = self._works = Works(measures, memory.needs)
        names = [each.name for each in scene.models]
        policy = Placing(scene.policy)
        super().__init__(
            CoresidentSetup(
                memory=memory,
                wake_s=measures.usual_wake_s,
                sleep_s=measures.usual_sleep_s,
                server=lambda name: Sharing(speed_by_latency(measures, name)),
                policy=lambda: policy,
                hooks_at_once=math.inf,
                touches=rules.touches,
                overlapping_hooks=rules.overlapping_hooks,
                traits={each.name: each.traits for each in scene.models},
                keep=rules.keep,
                busy=rules.busy,
            ),
            expected_arrivals(names, measures, works, scene.now),
            policy=policy,
            measures=measures,
            ledger=scene.ledger,
            rng=random.Random(0),  # noqa: S311 - unused: no wake fails
        )
        self.wait_s: float | None = None
        self._left = MOST_EVENTS
        self._slice_ends = 0
        self._scene = scene
        self._leaving: list[Host] = []  # that sleep without a switch
        self._asked = Job(model, scene.now, works.usual_s(model))
        self._resume()

    def slices(self) -> Iterator[None]:
        """Run to the end, with a break every few events."""
        while self.wait_s is None and self._left > 0:
            before = self._left
            self._slice_ends = before - EVENTS_A_SLICE
            self.advance(math.inf)
            if self._left == before:
                return  # nothing is left to happen
            yield
        if self.wait_s is None and self._events:
            self.wait_s = self._events[0].at - self._scene.now

    # ---- The start ----

    def _resume(self) -> None:
        now, asked = self._scene.now, self._asked
        for scene in self._scene.models:
            self._fill(self._hosts[scene.name], scene)
        for plan in list(self._ledger.plans):
            if plan.target in self._hosts:
                self._moves.switches.append(Switch(plan, self._hosts[plan.target]))
                for name in plan.evict:
                    self._claim(self._hosts[name])
            else:  # a command that only puts models to sleep
                self._ledger.drop(plan)
                self._leaving += (self._hosts[name] for name in plan.evict)
        planned = {name for switch in self._moves.switches for name in switch.plan.evict}
        self._leaving += (
            host
            for host in self._hosts.values()
            if host.phase is Phase.DRAINING and host.name not in planned
        )
        self._moves.changed.update(self._hosts.values())
        host = self._hosts[asked.model]
        if host.admits and not host.waiters.count and self._turns.may_admit(host, now, now):
            self.wait_s = 0.0
            return
        host.waiters.add(asked)
        self._look_at = now
        self._schedule(now, LOOK, None)

    def _fill(self, host: Host, scene: ModelScene) -> None:
        """Bring a host into a model's phase, and its requests into the line or in flight."""
        host.drains, host.retry_at, host.used_at = scene.drains, scene.retry_at, scene.used_at
        for arrived_at, weight in scene.waiting:
            job = Job(scene.name, arrived_at, self._works.new_s(scene.name))
            job.weight = weight
            host.waiters.add(job)
        phase, at = scene.phase, scene.entered_at
        if phase in SERVES or scene.in_flight:
            self._serve(host, scene)
        if phase is Phase.DRAINING:
            host.move_to(phase, at)
            host.closed_at, host.to_drain = at, scene.in_flight
        elif phase is not Phase.AWAKE and host.phase is Phase.AWAKE:  # with frozen requests
            host.move_to(Phase.SLEEPING, at)
            host.server.freeze(at)
        if phase is Phase.SLEEPING:
            self._resume_sleep(host, scene)
        elif phase not in SERVES and host.phase is Phase.SLEEPING:
            host.move_to(Phase.ASLEEP, at)
        if phase is Phase.WAKING:
            host.move_to(phase, at)
            usual_s = self._measures.usual_wake_s(host.name)
            self._resume_hook(host, usual_s, at, partial(self._moves.woke, host, usual_s))

    def _serve(self, host: Host, scene: ModelScene) -> None:
        host.move_to(Phase.AWAKE, scene.awake_since)
        now = self._scene.now
        for left_s in self._works.left_s(host.name, scene.in_flight):
            self._admit(host, Job(host.name, now, left_s), now)

    def _resume_sleep(self, host: Host, scene: ModelScene) -> None:
        if host.phase is Phase.ASLEEP:
            host.move_to(Phase.AWAKE, scene.awake_since)
            host.move_to(Phase.SLEEPING, scene.entered_at)
        usual_s = self._measures.usual_sleep_s(host.name)
        then = partial(self._moves.slept, host, usual_s)
        self._resume_hook(host, usual_s, scene.entered_at, then)

    def _resume_hook(self, host: Host, usual_s: float, since: float, then: Then) -> None:
        now = self._scene.now
        self._moves.run_hook(host, now + hook_left_s(usual_s, now - since), then)

    def _claim(self, victim: Host) -> None:
        """Let in the line of a model that a switch evicts, but none that arrives now."""
        if victim.is_awake:
            victim.leaves_since = math.nextafter(self._scene.now, -math.inf)
            victim.to_drain = victim.in_flight.in_use + victim.waiters.count

    # ---- On the way ----

    def _settle(self, now: float) -> None:
        for host in list(self._leaving):
            if host.is_awake:
                self._moves.close(host, now)
            if (
                host.may_be_put_to_sleep
                and self._ledger.may_sleep(host.name)
                and self._moves.lanes.are_free_for(host.name)
            ):
                self._leaving.remove(host)
                self._moves.put_to_sleep(host, now)
        super()._settle(now)

    def _is_over(self) -> bool:
        if self.wait_s is not None or self._left <= self._slice_ends:
            return True
        self._left -= 1
        return False

    def _admit(self, host: Host, job: Job, now: float) -> None:
        if job is self._asked:
            self.wait_s = now - self._scene.now
        super()._admit(host, job, now)


def rollout_of(scene: Scene | SharedScene, model: str) -> Rollout | SharedRollout:
    """Return a forecast for a model, in a group of either kind."""
    if isinstance(scene, SharedScene):
        return SharedRollout(scene, model)
    return Rollout(scene, model)


def shared_forecast_s(scene: SharedScene, model: str) -> float | None:
    """Return how long a request for the model that arrives now would wait; None if not known."""
    rollout = SharedRollout(scene, model)
    for _ in rollout.slices():
        pass
    return rollout.wait_s
