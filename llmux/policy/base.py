"""What a policy sees and what it can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llmux.policy.ages import Ages
from llmux.policy.estimates import Measures


@dataclass(slots=True)
class ModelView:
    """One model at the moment of a decision.

    Attributes:
        name: Its name in the config.
        in_flight: Requests being served.
        queued: Requests waiting: in line, or frozen with their model.
        oldest_arrival: When the first of those arrived, in seconds of the snapshot's clock.
        retry_at: Not to be chosen before this time: its last wake failed.
        ages: How long those who wait have waited, all together.
        backend_queued: Requests that wait inside of the backend; 0 where that is not watched.
        has_slots: Whether it takes only so many requests at a time (`max_in_flight`).
        freezes: Whether it sleeps with its requests, to go on with them (`preserves_in_flight`).
    """

    name: str
    in_flight: int = 0
    queued: int = 0
    oldest_arrival: float | None = None
    retry_at: float = float("-inf")
    ages: Ages = field(default_factory=Ages)
    backend_queued: int = 0
    has_slots: bool = False
    freezes: bool = False


@dataclass(slots=True)
class Snapshot:
    """A group of models at the moment of a decision; no switch is running. To be read only.

    Attributes:
        now: The time, in seconds of a monotonic clock.
        active: The model that is awake; None after a start or a failed wake.
        active_since: When it woke.
        models: Every model of the group, by name.
        measures: What was measured so far: costs, drains, absences, rates, latencies.
    """

    now: float
    active: str | None
    active_since: float | None
    models: Mapping[str, ModelView]
    measures: Measures = field(default_factory=Measures)


@dataclass(frozen=True, slots=True)
class Stay:
    """Do nothing until something changes."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Do nothing until something changes, or until this time at the latest."""

    at: float


@dataclass(frozen=True, slots=True)
class SwitchTo:
    """Switch to this model now; `reason` is for people, `rule` the name of what has decided."""

    model: str
    reason: str = ""
    rule: str = ""


Decision = Stay | LookAgain | SwitchTo


class Policy(Protocol):
    """Decides when to switch, and to what.

    `decide` is called whenever something changed while no switch runs: a request joined or left
    the line or a model, a switch ended, or the time of the last `LookAgain` came. It must be
    quick, and must not keep time itself: everything it may know is in the snapshot.
    """

    def decide(self, snapshot: Snapshot) -> Decision:
        """Say what to do now."""
        ...
