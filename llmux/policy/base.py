"""The interface between llmux and a policy: the view of a group, and the decisions.

A view is a value. Policies cannot write to it, and one that a policy keeps does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
        retry_at: It must not be chosen before this time: its last wake failed.
        ages: Sums over the ages of the requests that wait.
        backend_queued: Requests that wait inside of the backend; 0 where that is not watched.
        has_slots: True if it takes only so many requests at a time (`max_in_flight`).
        freezes: True if it sleeps with its requests, to go on with them (`preserves_in_flight`).
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
    """A group of models at the moment of a decision; no switch is running.

    Attributes:
        now: The time, in seconds of a monotonic clock.
        active: The model that is awake; None after a start or a failed wake.
        active_since: When it woke.
        models: Every model of the group, by name.
        measures: Estimates from what was measured: costs, drains, absences, rates, latencies.
    """

    now: float
    active: str | None
    active_since: float | None
    models: Mapping[str, ModelView]
    measures: Estimates = msgspec.field(default_factory=lambda: Measures().estimates)


Snapshot = GroupView
"""The name that `GroupView` had before; policies written for it go on working."""


def by_name(views: Iterable[ModelView]) -> Mapping[str, ModelView]:
    """Views as the read-only mapping that a `GroupView` has."""
    return MappingProxyType({view.name: view for view in views})


@dataclass(frozen=True, slots=True)
class Stay:
    """Do nothing until something changes."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Do nothing until something changes, or until this time at the latest."""

    at: float


@dataclass(frozen=True, slots=True)
class SwitchTo:
    """Switch to this model now.

    Attributes:
        model: The model to wake.
        reason: Why, for people.
        rule: Name of the rule that has decided.
        evict: Models to put to sleep for it. Empty, as with every policy of llmux: those that the
            placement says. Not used yet: a group holds one model, so that all others must sleep.
    """

    model: str
    reason: str = ""
    rule: str = ""
    evict: tuple[str, ...] = ()


Decision = Stay | LookAgain | SwitchTo


class Policy(Protocol):
    """Decides when to switch, and to what.

    `decide` is called whenever something changed while no switch runs: a request joined or left
    the line or a model, a switch ended, or the time of the last `LookAgain` came. It must be
    quick, and must not keep time itself: all that it may know is in the view.
    """

    def decide(self, view: GroupView, /) -> Decision:
        """Say what to do now."""
        ...
