"""Deadlines for admitting waiting requests, from invariant 7 of docs/guarantees.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from llmux.policy.base import GroupView, ModelView
from llmux.policy.choices import arrival_of, least_stay_s, may_be_chosen
from llmux.policy.scene import Scene


class Place(NamedTuple):
    """A request in a line: when it arrived, and for how many turns it may have to wait."""

    arrived_at: float
    turns: int


@dataclass(slots=True)
class Line:
    """The requests waiting for one model whose deadlines may be the earliest.

    Attributes:
        queued: Number of waiting requests at the last decision.
        places: The first in line, and each one behind it with fewer turns than all before it.
    """

    queued: int
    places: list[Place]

    def add(self, place: Place) -> None:
        """Add a new arrival if it has fewer turns, and so possibly an earlier deadline."""
        if place.turns < self.places[-1].turns:
            self.places.append(place)


class Deadlines:
    """Tracks how many turns the requests in each line may have to wait, and so their deadlines.

    A request may wait for `max_wait_secs`, plus one turn for its own model and one for each model
    that an older request waited for when it arrived. A turn is two switches plus a drain (or, where
    models resume frozen requests, their shortest stay). Drain times are known only afterwards: the
    longest of the last few stands for each.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._lines: dict[str, Line] = {}

    def note(self, group: GroupView) -> None:
        """Update the lines from a view.

        A request that arrives during a switch is noticed once that is over. Older ones may be gone
        by then, in which case it gets an earlier deadline than it could have.
        """
        models = group.models.values()
        for view in models:
            arrival = view.oldest_arrival
            if arrival is None:
                self._lines.pop(view.name, None)
                continue
            line = self._lines.get(view.name)
            if line is None or line.places[0].arrived_at != arrival:
                behind = line.places[1:] if line else ()
                older = sum(arrival_of(other) < arrival for other in models)
                line = self._lines[view.name] = Line(view.queued, [Place(arrival, 1 + older)])
                for place in behind:
                    if place.arrived_at > arrival:
                        line.add(place)
            elif view.queued > line.queued:
                line.add(Place(group.now, sum(other.queued > 0 for other in models)))
            line.queued = view.queued

    def due_at(self, view: ModelView) -> float:
        """Return when the oldest request will have waited for `max_wait_secs`."""
        return arrival_of(view) + self._max_wait_s

    def tightest(self, scene: Scene) -> tuple[ModelView, float]:
        """Return the model with the earliest deadline, and how long its switch can be put off.

        That slack is in seconds; if negative, a deadline will be missed. Models count also if no
        eviction makes room for them now, but not those that back off after a failed wake. The scene
        must be of the view that was last passed to `note`.
        """
        views = may_be_chosen(scene.unserved, scene.now)
        measures = scene.measures
        drain_s = measures.longest_drain_s()
        stay_s = max(least_stay_s(measures, view, 0.0, self._max_wait_s) for view in views)

        def slack_s(view: ModelView) -> float:
            line = self._lines.get(view.name)
            if line is None:
                return math.inf
            option = next(iter(scene.options(view)), None)
            switch_s = scene.cost_between_s(view, view) if option is None else option.cost_s
            turn_s = 2 * switch_s + drain_s + stay_s
            late_at = self._max_wait_s + min(at + turns * turn_s for at, turns in line.places)
            drained_at = scene.now + (drain_s if option is None else scene.drain_ahead_s(option))
            return late_at - switch_s - drained_at

        slacks_s = {view.name: slack_s(view) for view in views}
        tightest = min(views, key=lambda view: (slacks_s[view.name], arrival_of(view)))
        return tightest, slacks_s[tightest.name]
