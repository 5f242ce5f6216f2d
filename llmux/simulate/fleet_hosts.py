"""The hosts of a simulated fleet: simulations that are continued, and say what they expect."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from msgspec.structs import replace as replace_in

from llmux.config import PolicyConfig
from llmux.observe.schemas.outlook import ModelOutlook, Outlook
from llmux.policy import LineFirst
from llmux.policy.estimates import Measures
from llmux.policy.placing import Placing
from llmux.simulate.arrivals import Arrival
from llmux.simulate.coresident import FOLLOWED as FOLLOWED_THERE
from llmux.simulate.coresident import Coresident
from llmux.simulate.engine import FOLLOWED, Setup, Simulation
from llmux.simulate.forecast import Scene, copy_of, scene_of
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import Outcome
from llmux.simulate.shared_forecast import Rules, SharedScene, rollout_of, shared_scene_of
from llmux.switching.core import ModelState, Phase
from llmux.switching.ledger import Ledger

HostSetup = Setup | CoresidentSetup


class FleetHost(Protocol):
    """A host of a simulated fleet.

    Attributes:
        outcome: What it has answered so far.
    """

    outcome: Outcome

    def advance(self, until: float) -> None:
        """Process its events up to a time."""
        ...

    def run(self, until: float) -> None:
        """Process its events up to a time, for the last time."""
        ...

    def offer(self, arrival: Arrival) -> None:
        """Give it a request; the next `advance` past its arrival processes it."""
        ...

    def models(self) -> Sequence[ModelState]:
        """Return its models."""
        ...

    def measured(self) -> Measures:
        """Return its measurements."""
        ...

    def cost_s(self, model: str) -> float | None:
        """Return the hook time that waking a model is expected to take; None while unknown."""
        ...

    def scene(self, now: float) -> Scene | SharedScene:
        """Return a copy of it as it is now, for forecasts."""
        ...


def host_of(setup: HostSetup, rng: random.Random) -> FleetHost:
    """Create a host on which nothing is awake."""
    return AloneHost(setup, rng) if isinstance(setup, Setup) else SharedHost(setup, rng)


class AloneHost(Simulation):
    """A host with one model awake at a time."""

    def __init__(self, setup: Setup, rng: random.Random) -> None:
        super().__init__(setup, iter(()), None, rng, lambda _count: None)
        self._began_at = 0.0  # the hooks of the last switch

    def offer(self, arrival: Arrival) -> None:
        self._schedule(arrival.at, FOLLOWED, arrival)

    def models(self) -> Sequence[ModelState]:
        return [*self._stations.values()]

    def measured(self) -> Measures:
        return self._measures

    def cost_s(self, model: str) -> float | None:
        awake = self._serving.name if self._serving else None
        return self._measures.cost_s(awake, model) or None

    def scene(self, now: float) -> Scene:
        target = self._target.name if self._target else None
        models = self._stations.values()
        scene = scene_of(models, self._policy, self._measures, now=now, target=target)
        if target is None or self._source is not None:
            return scene
        # Without a source, a simulated switch is a delay in which its target does not move yet.
        moved = (
            each._replace(phase=Phase.WAKING, entered_at=self._began_at)
            if each.name == target
            else each
            for each in scene.models
        )
        return replace(scene, models=tuple(moved))

    def _run_hooks(self, now: float) -> None:
        self._began_at = now
        super()._run_hooks(now)


class SharedHost(Coresident):
    """A host whose models share memory."""

    def __init__(self, setup: CoresidentSetup, rng: random.Random) -> None:
        measures = Measures()
        policy = LineFirst(Placing(setup.policy()), PolicyConfig(), measures)
        super().__init__(
            setup,
            iter(()),
            policy=policy,
            measures=measures,
            ledger=Ledger(setup.memory),
            rng=rng,
        )
        self._line_first = policy

    def offer(self, arrival: Arrival) -> None:
        self._schedule(arrival.at, FOLLOWED_THERE, arrival)

    def models(self) -> Sequence[ModelState]:
        return [*self._hosts.values()]

    def measured(self) -> Measures:
        return self._measures

    def cost_s(self, model: str) -> float | None:
        return self._measures.usual_wake_s(model) or None

    def scene(self, now: float) -> SharedScene:
        rules = Rules.of(self._setup)
        return shared_scene_of(
            self._hosts.values(),
            self._ledger,
            self._line_first,
            self._measures,
            now=now,
            rules=rules,
        )


class Look:
    """What a host would say of itself at one moment.

    Forecasts are made when asked for, each from a copy of that moment: a fleet asks for few of
    them.

    Args:
        host: The host.
        boot: Identifies the host's start.
        now: The time.

    Attributes:
        at: The time.
        phases: The phases of its models.
    """

    def __init__(self, host: FleetHost, boot: str, now: float) -> None:
        self.at = now
        self.phases = phases_of(host)
        self._boot = boot
        self._scene = host.scene(now)
        models = host.models()
        self._admits = {model.name for model in models if model.admits}
        self._known = {model.name: _known_of(host, model, now) for model in models}
        self._told: dict[str, Outlook] = {}

    def outlook(self, model: str) -> Outlook:
        """Return the host's outlook; of the waits, only this model's is in it."""
        found = self._told.get(model)
        if found is None:
            models = self._known
            if model in models and model not in self._admits:
                models = {**models, model: replace_in(models[model], wait_secs=self._wait_s(model))}
            found = Outlook(at=self.at, boot=self._boot, state="ready", models=models)
            self._told[model] = found
        return found

    def _wait_s(self, model: str) -> float | None:
        rollout = rollout_of(_copied(self._scene), model)
        for _ in rollout.slices():
            pass
        return rollout.wait_s


def _known_of(host: FleetHost, model: ModelState, now: float) -> ModelOutlook:
    """Return what is known without a forecast; as the server, in `llmux.api.outlook`."""
    measures, in_use = host.measured(), model.in_flight.in_use
    slots = model.max_in_flight
    return ModelOutlook(
        wait_secs=0.0 if model.admits else None,
        refused=None,
        awake=model.is_awake,
        running=in_use,
        waiting=model.waiters.count,
        max_in_flight=None if slots == math.inf else int(slots),
        arrivals_per_sec=measures.arrivals_per_s(model.name, now),
        latency_secs=measures.latency_s(model.name, max(1, in_use)),
        cost_secs=0.0 if model.is_awake else host.cost_s(model.name),
    )


def _copied(scene: Scene | SharedScene) -> Scene | SharedScene:
    """Return a copy of a scene that a rollout may change."""
    measures = scene.measures.copy()
    if isinstance(scene, Scene):
        alone = copy_of(scene.policy, scene.measures, measures)
        return replace(scene, policy=alone, measures=measures)
    policy = copy_of(scene.policy, scene.measures, measures)
    memory = scene.ledger.memory
    ledger = copy.deepcopy(scene.ledger, {id(memory): memory})
    return replace(scene, policy=policy, measures=measures, ledger=ledger)


def phases_of(host: FleetHost) -> tuple[Phase, ...]:
    """Return the phases of a host's models."""
    return tuple(model.phase for model in host.models())


def at_work(models: Iterable[ModelState]) -> int:
    """Return the number of requests in flight and in line."""
    return sum(model.in_flight.in_use + model.waiters.count for model in models)
