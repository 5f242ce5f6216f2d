"""Emits the events of one group: phases, pins and switches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import msgspec
import trio

from llmux.errors import HookError
from llmux.observe.events import Events, PhaseChanged, SwitchEnded
from llmux.observe.schemas import Pin, PinChange, SwitchRecord, SwitchResult
from llmux.policy.estimates import Measures
from llmux.switching.commands import Wake
from llmux.switching.model import Model, Phase

NUMBERS = count(1)
"""Numbers of switches, across all groups."""


class Tally:
    """The time that a switch has spent so far, in seconds.

    Attributes:
        drain_s: On drains.
        sleeps_s: On sleep hooks, by model.
        prefetch_s: On waiting for the prefetch hook after the last sleep.
        wake_s: On the wake hook, until the model was alive.
        was_stopped: True if the target had been stopped since its sleep.
    """

    __slots__ = ("drain_s", "prefetch_s", "sleeps_s", "wake_s", "was_stopped")

    def __init__(self) -> None:
        self.drain_s = self.prefetch_s = self.wake_s = 0.0
        self.sleeps_s: dict[str, float] = {}
        self.was_stopped = False

    @property
    def hooks_s(self) -> float:
        """Total hook time, which is the cost of the switch."""
        return sum(self.sleeps_s.values()) + self.prefetch_s + self.wake_s


class Chronicle:
    """Emits events for one group's phases, pins and switches; see `llmux.observe.events`.

    Attributes:
        switches: The switches that are running, in the order in which they began.
    """

    def __init__(self, group: str, measures: Measures, events: Events) -> None:
        self.switches: list[SwitchRecord] = []
        self._group = group
        self._measures = measures
        self._events = events

    def phase(self, model: Model, left: Phase, stayed_s: float) -> None:
        """Emit that a model has entered another phase."""
        now = trio.current_time()
        self._events.phase_changed.tell(
            PhaseChanged(now, model.name, model.phase.value, left.value, stayed_s)
        )

    def pin(self, pinned: Pin | None, in_force: list[Pin]) -> None:
        """Emit the group's last pin, or None if it has none any more, and all in force."""
        now = self._events.clock.now()
        self._events.pin_changed.tell(
            PinChange(at=now, group=self._group, pinned=pinned, pins=in_force)
        )

    @contextmanager
    def switch(self, wake: Wake, evict: Sequence[Model]) -> Iterator[Tally]:
        """Emit a switch that lasts as long as the context; its result is how the context ends.

        Args:
            wake: The command.
            evict: The models that it puts to sleep first.
        """
        started_at = trio.current_time()
        record = self._begun(wake, evict)
        tally = Tally()
        result: SwitchResult = "abandoned"
        error: HookError | None = None
        try:
            yield tally
            result = "success"
        except HookError as caught:
            result, error = "failure", caught
            raise
        finally:
            ended_at = trio.current_time()
            self.switches = [each for each in self.switches if each is not record]
            ended = msgspec.structs.replace(
                _as_it_went(record, tally) if result == "success" else record,
                ended=self._events.clock.unix(ended_at),
                result=result,
                drain_secs=round(tally.drain_s, 3),
                hook_secs=round(tally.hooks_s, 3),
                error=None if error is None else error.details,
            )
            cost_s = None
            if result == "success":
                cost_s = self._measures.note_switched(
                    ended.source,
                    record.target,
                    tally.hooks_s,
                    sleeps_s=tally.sleeps_s,
                    wake_s=tally.wake_s,
                    was_stopped=tally.was_stopped,
                )
            self._events.switch_ended.tell(
                SwitchEnded(
                    ended, result, started_at, ended_at, tally.drain_s, tally.hooks_s, cost_s
                )
            )

    def _begun(self, wake: Wake, evict: Sequence[Model]) -> SwitchRecord:
        source = next(iter(evict), None)
        target, name = wake.target, source.name if source else None
        expected_s = self._measures.costs.estimate(name, target.name)
        if expected_s is not None and source is not None and source.in_flight.count:
            expected_s += self._measures.drain_s(source.name)
        record = SwitchRecord(
            id=next(NUMBERS),
            group=self._group,
            source=name,
            target=target.name,
            started=self._events.clock.now(),
            reason=wake.reason,
            rule=wake.rule,
            request=target.waiters.first,
            waiting=target.wanted_by,
            expected_secs=None if expected_s is None else round(expected_s, 3),
            evicts=tuple(model.name for model in evict),
        )
        self.switches = [*self.switches, record]
        self._events.switch_started.tell(record)
        return record


def _as_it_went(record: SwitchRecord, tally: Tally) -> SwitchRecord:
    """Return the record with the models that slept, if others than planned: see `Ledger.replan`."""
    slept = tuple(tally.sleeps_s)
    if not (record.evicts and slept) or set(slept) == set(record.evicts):
        return record
    source = record.source if record.source in slept else slept[0]
    others = (name for name in slept if name != source)
    return msgspec.structs.replace(record, source=source, evicts=(source, *others))
