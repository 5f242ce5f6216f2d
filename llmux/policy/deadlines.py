"""By when those who wait must be let in, so that nobody starves: invariant 7 of the contract."""

from __future__ import annotations

from llmux.policy.base import ModelView, Snapshot
from llmux.policy.choices import arrival_of

UNSEEN = 0.0, 1
"""Of a line without a first."""


class Deadlines:
    """How many turns each line's first request may have to wait for, and so until when.

    A request may wait for `max_wait_secs`; and, for its own model and each for which an older
    request waited when it came, for twice the switch and one drain. How long drains take is only
    known afterwards: the longest of the last few stands for each.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._turns: dict[str, tuple[float, int]] = {}  # arrival of the first in line; turns

    def note(self, snapshot: Snapshot) -> None:
        """Look at the lines.

        A request is seen as the first of its line when it comes, or once the switch is over in
        which it came: older ones may be gone by then, and it gets less time than it could have.
        """
        for name, view in snapshot.models.items():
            arrival = view.oldest_arrival
            if arrival is None:
                continue
            known = self._turns.get(name)
            if known is None or known[0] != arrival:
                older = [v for v in snapshot.models.values() if arrival_of(v) < arrival]
                self._turns[name] = arrival, 1 + len(older)

    def due_at(self, view: ModelView) -> float:
        """When the first in this line will have waited for `max_wait_secs`."""
        return arrival_of(view) + self._max_wait_s

    def slack_s(self, snapshot: Snapshot, active: ModelView, view: ModelView) -> float:
        """How much later than now the active model may be left for the first in this line.

        Below zero: it will not be let in in time. The model is one of the snapshot last noted.
        """
        measures = snapshot.measures
        switch_s, drain_s = measures.cost_s(active.name, view.name), measures.longest_drain_s()
        _, turns = self._turns.get(view.name, UNSEEN)
        deadline = self.due_at(view) + turns * (2 * switch_s + drain_s)
        drains_s = drain_s if active.in_flight else 0.0
        return deadline - snapshot.now - drains_s - switch_s
