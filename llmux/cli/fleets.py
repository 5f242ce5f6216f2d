"""The models that `llmux simulate` simulates, and how many of them may be awake."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmux.config import Config
from llmux.observe.journal import SharedMemory
from llmux.policy import Policy
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Crowd, Job, Server, Sharing, Slots
from llmux.simulate.coresident import Follow
from llmux.simulate.engine import Cost, Setup
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.recorded import memory_of_record, record_of, touches_of_record
from llmux.switching.core import NO_TRAITS, Traits
from llmux.switching.memory import memory_of

MEMORY = "memory"
"""The one resource of `--needs`."""


@dataclass(frozen=True)
class Fleet:
    """The models of one group.

    Attributes:
        models: Their names.
        traits: Their limits, by name.
        shared: The memory that they share; None: one is awake at a time.
    """

    models: Sequence[str]
    traits: Mapping[str, Traits] = field(default_factory=dict)
    shared: SharedMemory | None = None

    def traits_of(self, model: str) -> Traits:
        """Return the limits of a model."""
        return self.traits.get(model, NO_TRAITS)


def fleet_with_needs(
    models: Sequence[str], needs: Sequence[int], amount: int, traits: Traits
) -> Fleet:
    """Return models that share one memory.

    Args:
        models: Their names.
        needs: What each of them needs.
        amount: How much there is.
        traits: Those of all models.

    Raises:
        ValueError: There are not as many needs as models, or a model needs more than there is.
    """
    if len(needs) != len(models):
        raise ValueError(f"{len(needs)} needs for {len(models)} models")
    awake = {model: {MEMORY: need} for model, need in zip(models, needs, strict=True)}
    for number, need in enumerate(needs, 1):
        if need > amount:
            raise ValueError(f"number {number} needs more than there is")
    shared = SharedMemory({MEMORY: amount}, awake, touches={m: [MEMORY] for m in models})
    return Fleet(models, dict.fromkeys(models, traits), shared)


def fleet_of(config: Config, group: str | None) -> Fleet:
    """Return the models of a group of a config; the first group, unless one is named.

    Raises:
        ValueError: There is no such group.
    """
    groups = list(dict.fromkeys(model.group for model in config.models.values()))
    name = groups[0] if group is None else group
    if name not in groups:
        raise ValueError(f"{config.path} has no group {name!r} (of: {', '.join(groups)})")
    models = [model for model in config.models.values() if model.group == name]
    memory = memory_of(config, name)
    shared = None
    if memory is not None:
        shared = record_of(
            memory.memory,
            memory.touches,
            overlapping_hooks=memory.overlapping_hooks,
            keep=[model.name for model in models if model.keep],
            busy=math.inf if config.busy is None else config.busy,
        )
    traits = {
        model.name: Traits(model.max_in_flight or math.inf, model.preserves_in_flight)
        for model in models
    }
    return Fleet([model.name for model in models], traits, shared)


@dataclass(frozen=True, kw_only=True)
class Times:
    """What takes how long.

    Attributes:
        cost: Hook time of a switch, for one model awake at a time.
        wake_s, sleep_s: Its parts for the wake and the sleep of a model.
        slots: Requests that a backend serves at once.
        is_sharing: True if it serves all at once, more slowly the more there are.
        is_contended: True if all models of a resource share the slots.
        failing_wakes: Share of wakes that fail.
    """

    cost: Cost
    wake_s: float
    sleep_s: float
    slots: int
    is_sharing: bool = False
    is_contended: bool = False
    failing_wakes: float = 0.0

    def server(self, _model: str) -> Server:
        """Create a model's server."""
        slots = self.slots
        return Sharing(lambda busy: min(1.0, slots / busy)) if self.is_sharing else Slots(slots)


def setup_of(fleet: Fleet, times: Times, policy: Callable[[], Policy]) -> Setup:
    """Return the setup for one model awake at a time."""
    return Setup(
        models=fleet.models,
        cost=times.cost,
        server=times.server,
        policy=policy,
        max_in_flight={
            model: int(fleet.traits_of(model).max_in_flight)
            for model in fleet.models
            if fleet.traits_of(model).max_in_flight < math.inf
        },
        preserves_in_flight=[m for m in fleet.models if fleet.traits_of(m).preserves_in_flight],
        failing_wakes=times.failing_wakes,
    )


def shared_setup_of(
    fleet: Fleet, shared: SharedMemory, times: Times, policy: Callable[[], Policy]
) -> CoresidentSetup:
    """Return the setup for models that share memory."""
    touches = touches_of_record(shared, fleet.models)
    slots = times.slots
    crowd = Crowd(lambda own, others: min(1.0, slots / (own + others)))
    return CoresidentSetup(
        memory=memory_of_record(shared, fleet.models),
        wake_s=lambda _model: times.wake_s,
        sleep_s=lambda _model: times.sleep_s,
        server=(lambda model: crowd.server(touches[model])) if times.is_contended else times.server,
        policy=policy,
        hooks_at_once=math.inf,
        touches=touches,
        overlapping_hooks=shared.overlapping_hooks,
        traits=fleet.traits,
        keep=shared.keep,
        busy=math.inf if shared.busy is None else shared.busy,
        failing_wakes=times.failing_wakes,
    )


def named_after(
    models: Sequence[str], arrivals: Iterable[Arrival], follow: Follow | None
) -> tuple[Iterator[Arrival], Follow | None]:
    """Return synthetic traffic, whose models are numbers, as one for these models."""

    def named(arrival: Arrival) -> Arrival:
        return arrival._replace(model=models[int(arrival.model)])

    def followed(job: Job, now: float) -> Arrival | None:
        assert follow is not None
        arrival = follow(job, now)
        return None if arrival is None else named(arrival)

    return map(named, arrivals), follow and followed
