"""By when waiting requests must be let in: invariant 7 of docs/guarantees.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmux.policy.base import GroupView, ModelView
from llmux.policy.choices import arrival_of, drain_ahead_s, least_stay_s


class Place(NamedTuple):
    """Somebody in a line: when it came, and for how many turns it may have to wait."""

    came_at: float
    turns: int


@dataclass(slots=True)
class Line:
    """Those who wait for one model, as far as their deadlines differ.

    Attributes:
        queued: How many they were when last looked at.
        places: The first in line, and each behind it who has fewer turns than all before.
    """

    queued: int
    places: list[Place]

    def add(self, place: Place) -> None:
        """One more has come; it matters if it has fewer turns, and so perhaps less time."""
        if place.turns < self.places[-1].turns:
            self.places.append(place)


class Deadlines:
    """For how many turns those in each line may have to wait, and so until when.

    A request may wait for `max_wait_secs`; and, for its own model and each for which an older
    request waited when it came, for twice the switch and one drain; or, where models go on with
    frozen requests, for the time that they stay for those. How long drains take is only known
    afterwards: the longest of the last few stands for each.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._lines: dict[str, Line] = {}

    def note(self, group: GroupView) -> None:
        """Look at the lines.

        A request is seen when it comes, or once the switch is over in which it came: older ones
        may be gone by then, and it gets less time than it could have.
        """
        models = group.models.values()
        for view in models:
            arrival = view.oldest_arrival
            if arrival is None:
                self._lines.pop(view.name, None)
                continue
            line = self._lines.get(view.name)
            if line is None or line.places[0].came_at != arrival:
                behind = line.places[1:] if line else ()
                older = sum(arrival_of(other) < arrival for other in models)
                line = self._lines[view.name] = Line(view.queued, [Place(arrival, 1 + older)])
                for place in behind:
                    if place.came_at > arrival:
                        line.add(place)
            elif view.queued > line.queued:
                line.add(Place(group.now, sum(other.queued > 0 for other in models)))
            line.queued = view.queued

    def due_at(self, view: ModelView) -> float:
        """When the first in this line will have waited for `max_wait_secs`."""
        return arrival_of(view) + self._max_wait_s

    def tightest(
        self, group: GroupView, active: ModelView, others: Sequence[ModelView]
    ) -> tuple[ModelView, float]:
        """The line with the least time left, and how much later than now it may be left for.

        Below zero: somebody in it will not be let in in time. The group is the one last noted.
        """
        measures = group.measures
        drain_s = measures.longest_drain_s()
        drained_at = group.now + drain_ahead_s(measures, active, active.in_flight + active.queued)
        stay_s = max(least_stay_s(measures, view, 0.0, self._max_wait_s) for view in others)

        def slack_s(view: ModelView) -> float:
            switch_s = measures.cost_s(active.name, view.name)
            turn_s = 2 * switch_s + drain_s + stay_s
            line = self._lines.get(view.name)
            if line is None:
                return math.inf
            late_at = self._max_wait_s + min(at + turns * turn_s for at, turns in line.places)
            return late_at - switch_s - drained_at

        slacks_s = {view.name: slack_s(view) for view in others}
        tightest = min(others, key=lambda view: (slacks_s[view.name], arrival_of(view)))
        return tightest, slacks_s[tightest.name]
