"""The interface between llmux and a policy: the view of a group, and the decisions.

Views are immutable: a policy cannot write to one, and one that it keeps does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import msgspec

from llmux.policy.ages import NO_AGES, Ages
from llmux.policy.estimates import Estimates, Measures
from llmux.policy.room import Amounts, Memory


class ModelView(msgspec.Struct, frozen=True):
    """One model at the moment of a decision.

    Attributes:
        name: Its name in the config.
        in_flight: Number of requests being served.
        queued: Number of requests waiting: in line, or frozen with their model.
        oldest_arrival: When the first of those arrived, in seconds of the view's clock.
        retry_at: Earliest time at which it may be chosen, after a failed wake.
        ages: Sums over the ages of the requests that wait.
        backend_queued: Number of requests waiting inside the backend; 0 if that is not monitored.
        has_slots: True if its number of requests in flight is limited (`max_in_flight`).
        freezes: True if sleep freezes its requests instead of draining (`preserves_in_flight`).
        awake_since: When it woke; None unless it is awake. Only in groups with `room`, as the rest.
        used_at: When it was woken, or when its last request ended.
        is_kept: True if it may not be evicted.
        is_moving: True if a running switch wakes it or evicts it.
        is_stopped: True if its stop hook has run since its sleep: its next wake takes longer.
    """

    name: str
    in_flight: int = 0
    queued: int = 0
    oldest_arrival: float | None = None
    retry_at: float = float("-inf")
    ages: Ages = NO_AGES
    backend_queued: int = 0
    has_slots: bool = False
    freezes: bool = False
    awake_since: float | None = None
    used_at: float = float("-inf")
    is_kept: bool = False
    is_moving: bool = False
    is_stopped: bool = False


class RunningSwitch(msgspec.Struct, frozen=True):
    """A switch whose target does not wake yet.

    Attributes:
        target: The model to wake.
        evict: The models that have to sleep first.
        draining: Those of them that still drain, and could stay.
        may_change: True if other models may be evicted instead of those that drain.
    """

    target: str
    evict: tuple[str, ...]
    draining: tuple[str, ...]
    may_change: bool = False


class RoomView(msgspec.Struct, frozen=True):
    """The memory that the models of a group share.

    Attributes:
        memory: Its amounts, and what each model needs.
        free: What will be free once all running switches have ended.
        switches: Those whose target does not wake yet, in order.
    """

    memory: Memory
    free: Amounts
    switches: tuple[RunningSwitch, ...] = ()


class GroupView(msgspec.Struct, frozen=True):
    """A group of models at the moment of a decision, while no switch is running.

    Attributes:
        now: The time, in seconds of a monotonic clock.
        active: The model that is awake; None after startup or a failed wake.
        active_since: When it woke.
        models: Every model of the group, by name.
        measures: Estimates of costs, drains, absences, rates and latencies, from measurements.
        room: The memory that the models share; None where one of them is awake at a time.
    """

    now: float
    active: str | None
    active_since: float | None
    models: Mapping[str, ModelView]
    measures: Estimates = msgspec.field(default_factory=lambda: Measures().estimates)
    room: RoomView | None = None


Snapshot = GroupView
"""Former name of `GroupView`, kept for existing policies."""


def by_name(views: Iterable[ModelView]) -> Mapping[str, ModelView]:
    """Return views as a read-only mapping, as in `GroupView.models`."""
    return MappingProxyType({view.name: view for view in views})


LEAST_STEP_S = 0.01
"""Shortest time until a policy that looks back is asked again: without it, it would keep a core
busy."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Do nothing until something changes.

    Attributes:
        why: Explanation for humans, in a few words; shown while requests wait for other models.
    """

    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Do nothing until something changes, or until time `at`.

    Attributes:
        at: In seconds of the view's clock, after its `now`.
        why: As for `Stay`.
    """

    at: float
    why: str = field(default="", compare=False)

    def is_ahead(self, now: float) -> bool:
        """Return whether `at` is a time after now, as it should be."""
        return isinstance(self.at, (int, float)) and self.at > now

    def next_at(self, now: float) -> float:
        """Return when to ask again: at `at`, or `LEAST_STEP_S` from now if that is no such time."""
        return max(self.at, now + LEAST_STEP_S) if self.is_ahead(now) else now + LEAST_STEP_S


@dataclass(frozen=True, slots=True)
class SwitchTo:
    """Switch to this model now.

    Attributes:
        model: The model to wake.
        reason: Explanation for humans.
        rule: Name of the rule that decided.
        evict: Models to put to sleep for it. Where one model is awake at a time, the placement
            chooses them.
    """

    model: str
    reason: str = ""
    rule: str = ""
    evict: tuple[str, ...] = ()


Decision = Stay | LookAgain | SwitchTo


class Policy(Protocol):
    """Decides when to switch, and to which model.

    `decide` is called after every change while no switch is running: a request joined or left a
    line or a model, a switch ended, or the time of the last `LookAgain` came. It must return
    quickly, and must not read a clock: all of its input is in the view.
    """

    def decide(self, view: GroupView, /) -> Decision:
        """Return what to do now."""
        ...
