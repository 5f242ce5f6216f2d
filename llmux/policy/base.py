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


class GroupView(msgspec.Struct, frozen=True):
    """A group of models at the moment of a decision, while no switch is running.

    Attributes:
        now: The time, in seconds of a monotonic clock.
        active: The model that is awake; None after startup or a failed wake.
        active_since: When it woke.
        models: Every model of the group, by name.
        measures: Estimates of costs, drains, absences, rates and latencies, from measurements.
    """

    now: float
    active: str | None
    active_since: float | None
    models: Mapping[str, ModelView]
    measures: Estimates = msgspec.field(default_factory=lambda: Measures().estimates)


Snapshot = GroupView
"""Former name of `GroupView`, kept for existing policies."""


def by_name(views: Iterable[ModelView]) -> Mapping[str, ModelView]:
    """Return views as a read-only mapping, as in `GroupView.models`."""
    return MappingProxyType({view.name: view for view in views})


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


@dataclass(frozen=True, slots=True)
class SwitchTo:
    """Switch to this model now.

    Attributes:
        model: The model to wake.
        reason: Explanation for humans.
        rule: Name of the rule that decided.
        evict: Models to put to sleep for it. Empty, as in every built-in policy: the placement
            chooses. Not used yet, since a group holds one model and all others must sleep.
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
