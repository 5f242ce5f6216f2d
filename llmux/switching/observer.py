"""What is told of a group's switches: to the log, metrics and journal, and to whoever watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import msgspec
import trio

from llmux.errors import HookError
from llmux.observe import journal
from llmux.observe.feed import Feed
from llmux.observe.journal import Journal
from llmux.observe.logs import get_logger
from llmux.observe.metrics import IDLE, Metrics
from llmux.observe.schemas import PhaseChange, Pin, PinChange, SwitchRecord, SwitchResult
from llmux.policy.estimates import Measures
from llmux.switching.commands import Wake
from llmux.switching.model import Model, Phase

NUMBERS = count(1)
"""Of switches, in all groups."""

log = get_logger(__name__)


class Tally:
    """What a switch has taken so far, in seconds."""

    __slots__ = ("drain_s", "hooks_s")

    def __init__(self) -> None:
        self.drain_s = self.hooks_s = 0.0


class Chronicle:
    """Tells of one group.

    Attributes:
        running: The switch that runs; None: none does.
    """

    def __init__(
        self, group: str, measures: Measures, metrics: Metrics, journal_to: Journal, feed: Feed
    ) -> None:
        self.running: SwitchRecord | None = None
        self._group = group
        self._measures = measures
        self._metrics = metrics
        self._journal = journal_to
        self._feed = feed

    def phase(self, model: Model, left: Phase, stayed_s: float) -> None:
        """A model has entered another phase."""
        log.debug("phase", model=model.name, phase=model.phase.value, left=left.value)
        now = self._feed.clock.now()
        change = PhaseChange(at=now, model=model.name, state=model.phase.value, left=left.value)
        self._feed.tell("phase", change)
        if left is Phase.AWAKE:
            self._metrics.active_duration.labels(model.name).observe(stayed_s)

    def pin(self, pinned: Pin | None) -> None:
        """The group is pinned to another model, or to none."""
        now = self._feed.clock.now()
        self._feed.tell("pin", PinChange(at=now, group=self._group, pinned=pinned))

    @contextmanager
    def switch(self, wake: Wake, source: Model | None) -> Iterator[Tally]:
        """A switch runs for as long as the context lasts; how that is left is how it ended."""
        started_at = trio.current_time()
        name = source.name if source else None
        record = self._begun(wake, source)
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
            self.running = None
            ended = msgspec.structs.replace(
                record,
                ended=self._feed.clock.unix(ended_at),
                result=result,
                drain_secs=round(tally.drain_s, 3),
                hook_secs=round(tally.hooks_s, 3),
                error=None if error is None else error.details,
            )
            self._feed.tell("switch", ended)
            self._journal.add(
                lambda offset_s: journal.Switch(
                    name,
                    wake.target.name,
                    started_at + offset_s,
                    ended_at + offset_s,
                    tally.drain_s,
                    tally.hooks_s,
                    result,
                    wake.reason,
                )
            )
            self._account(ended, tally, ended_at - started_at)

    def _begun(self, wake: Wake, source: Model | None) -> SwitchRecord:
        target, name = wake.target, source.name if source else None
        expected_s = self._measures.costs.estimate(name, target.name)
        if expected_s is not None and source is not None and source.in_flight.count:
            expected_s += self._measures.drain_s(source.name)
        about = {"from": name, "to": target.name, "reason": wake.reason}
        log.info("switch_started", **about)
        self.running = SwitchRecord(
            id=next(NUMBERS),
            group=self._group,
            source=name,
            target=target.name,
            started=self._feed.clock.now(),
            reason=wake.reason,
            rule=wake.rule,
            request=target.waiters.first,
            waiting=target.wanted_by,
            expected_secs=None if expected_s is None else round(expected_s, 3),
        )
        self._feed.tell("switch", self.running)
        return self.running

    def _account(self, record: SwitchRecord, tally: Tally, took_s: float) -> None:
        source, target = record.source, record.target
        pair = (source or IDLE, target)
        if record.result == "failure":
            log.error("switch_failed", model=target, **{"from": source}, error=record.error)
            self._metrics.switches.labels(*pair, "failure").inc()
        if record.result != "success":
            return
        cost_s = self._measures.costs.record(source, target, tally.hooks_s)
        self._metrics.switch_cost.labels(*pair).set(cost_s)
        self._metrics.switches.labels(*pair, "success").inc()
        self._metrics.switch_duration.labels(*pair).observe(took_s)
        took = round(took_s, 3)
        log.info("model_activated", model=target, **{"from": source}, duration_secs=took)
