"""What a policy sees and what it can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model at the moment of a decision.

    Attributes:
        name: Its name in the config.
        in_flight: Requests being served.
        queued: Requests waiting.
        oldest_arrival: When the first of those arrived, in seconds of the snapshot's clock.
        retry_at: Not to be chosen before this time: its last wake failed.
    """

    name: str
    in_flight: int = 0
    queued: int = 0
    oldest_arrival: float | None = None
    retry_at: float = float("-inf")


def _unknown_cost(_source: str | None, _target: str) -> float | None:
    return None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A group of models at the moment of a decision; no switch is running.

    Attributes:
        now: The time, in seconds of a monotonic clock.
        active: The model that is awake; None after a start or a failed wake.
        active_since: When it woke.
        models: Every model of the group, by name.
        estimated_cost: Seconds of hook time of a switch from (None: nothing awake) to; None if
            it was never seen.
    """

    now: float
    active: str | None
    active_since: float | None
    models: Mapping[str, ModelView]
    estimated_cost: Callable[[str | None, str], float | None] = field(default=_unknown_cost)


@dataclass(frozen=True, slots=True)
class Stay:
    """Do nothing until something changes."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Do nothing until something changes, or until this time at the latest."""

    at: float


@dataclass(frozen=True, slots=True)
class SwitchTo:
    """Switch to this model now; `reason` is for people."""

    model: str
    reason: str = ""


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
