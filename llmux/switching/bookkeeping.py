"""Bookkeeping: reacts to each change of a model's phase, line or requests in flight.

Models report changes here synchronously. Each is passed on to the measures, the awake record and
the chronicle, and wakes the switching task if a decision may depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from llmux.switching.awake import AwakeRecord
from llmux.switching.group import Group
from llmux.switching.inflight import Flight
from llmux.switching.model import Model, Phase, Traits
from llmux.switching.observer import Chronicle


class Bookkeeper:
    """Records the changes of one group's models.

    Args:
        group: The group.
        record: The models that may be awake, on disk.
        chronicle: Gets changes of phase.
        on_departure: Called with a model when a request has left it or its line, while models
            are being removed.
    """

    def __init__(
        self,
        group: Group,
        record: AwakeRecord,
        chronicle: Chronicle,
        on_departure: Callable[[Model], None],
    ) -> None:
        self._group = group
        self._record = record
        self._chronicle = chronicle
        self._on_departure = on_departure

    def open(self, name: str, traits: Traits) -> Model:
        """Return a new sleeping model that reports here."""
        return Model(
            name,
            on_enter=self._on_enter,
            on_line=self._on_line,
            on_leave=self._on_leave,
            on_beside=self._group.changed.set,
            traits=traits,
        )

    def _on_line(self, model: Model) -> None:
        # Also when a request has left the line: a switch may no longer be wanted then.
        if self._group.leaving:
            self._on_departure(model)
        if model.may_work is not None:
            self._group.places.look()
        self._group.changed.set()

    def _on_leave(self, model: Model, flight: Flight) -> None:
        group = self._group
        if flight.is_whole and flight.socket is None and not flight.is_passive:
            group.measures.note_served(model.name, flight.company, flight.served_s)
        if group.leaving:
            self._on_departure(model)
        if model.may_work is not None and not model.in_flight.in_use:
            group.places.look()
        # Do not wake the switching task for each request of a busy model. A decision can depend on
        # one only if others wait, if it was frozen with its model, or if it was the last and idle
        # rules apply.
        if (
            group.is_anyone_waiting
            or not model.is_awake
            or (not model.in_flight.in_use and group.has_idle_rules)
        ):
            group.changed.set()

    def _on_enter(self, model: Model, left: Phase, stayed_s: float) -> None:
        measures = self._group.measures
        self._chronicle.phase(model, left, stayed_s)
        self._record.note(model.name, model.standing)
        if model.may_work is not None and left is Phase.AWAKE:
            self._group.places.look()
        if model.is_awake and left is Phase.DRAINING:
            measures.note_reopened(model.name)
        elif model.is_awake:
            measures.note_open(model.name, trio.current_time(), model.oldest)
        if left is Phase.AWAKE:
            measures.note_closed(model.name, trio.current_time())
