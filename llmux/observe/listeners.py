"""The default listeners to events: the log, metrics, the feed and the journal."""

from __future__ import annotations

from collections.abc import Callable

from llmux.observe.clock import WallClock
from llmux.observe.events import Drained, Events, PhaseChanged, SwitchEnded
from llmux.observe.feed import Feed
from llmux.observe.journal import Journal, Switch
from llmux.observe.logs import get_logger
from llmux.observe.metrics import IDLE, Metrics
from llmux.observe.schemas import PhaseChange, SwitchRecord

log = get_logger(__name__)


def observed(
    metrics: Metrics | None = None, journal: Journal | None = None, feed: Feed | None = None
) -> Events:
    """Events that are logged, and told to those of these that there are.

    Their clock is the feed's, so that all of them give the same times.
    """
    events = Events(WallClock() if feed is None else feed.clock)
    log_events(events)
    if metrics is not None:
        measure_events(events, metrics)
    if feed is not None:
        feed_events(events, feed)
    if journal is not None:
        keep_events(events, journal)
    return events


def log_events(events: Events) -> None:
    def phase_changed(event: PhaseChanged) -> None:
        log.debug("phase", model=event.model, phase=event.state, left=event.left)

    def switch_started(record: SwitchRecord) -> None:
        about = {"from": record.source, "to": record.target, "reason": record.reason}
        log.info("switch_started", **about)

    def switch_ended(event: SwitchEnded) -> None:
        record, about = event.record, {"from": event.record.source}
        if event.result == "failure":
            log.error("switch_failed", model=record.target, **about, error=record.error)
        elif event.result == "success":
            took_s = round(event.ended_at - event.started_at, 3)
            log.info("model_activated", model=record.target, **about, duration_secs=took_s)

    events.phase_changed.listen(phase_changed)
    events.switch_started.listen(switch_started)
    events.switch_ended.listen(switch_ended)


def measure_events(events: Events, metrics: Metrics) -> None:
    def phase_changed(event: PhaseChanged) -> None:
        if event.left == "awake":
            metrics.active_duration.labels(event.model).observe(event.stayed_s)

    def drained(event: Drained) -> None:
        metrics.drain_duration.labels(event.source, event.target).observe(event.took_s)

    def switch_ended(event: SwitchEnded) -> None:
        if event.result == "abandoned":  # nothing was woken, and its hook times are no cost
            return
        pair = (event.record.source or IDLE, event.record.target)
        metrics.switches.labels(*pair, event.result).inc()
        if event.cost_s is not None:
            metrics.switch_cost.labels(*pair).set(event.cost_s)
            took_s = event.ended_at - event.started_at
            metrics.switch_duration.labels(*pair).observe(took_s)

    events.phase_changed.listen(phase_changed)
    events.drained.listen(drained)
    events.switch_ended.listen(switch_ended)


def feed_events(events: Events, feed: Feed) -> None:
    def phase_changed(event: PhaseChanged) -> None:
        at = feed.clock.unix(event.at)
        change = PhaseChange(at=at, model=event.model, state=event.state, left=event.left)
        feed.tell("phase", change)

    events.phase_changed.listen(phase_changed)
    events.switch_started.listen(lambda record: feed.tell("switch", record))
    events.switch_ended.listen(lambda event: feed.tell("switch", event.record))
    events.pin_changed.listen(lambda change: feed.tell("pin", change))
    events.mode_changed.listen(lambda change: feed.tell("mode", change))
    events.reloaded.listen(lambda reloaded: feed.tell("reload", reloaded))


def keep_events(events: Events, journal: Journal) -> None:
    if journal.is_kept:
        events.switch_ended.listen(lambda event: journal.add(switch_entry(event)))


def switch_entry(event: SwitchEnded) -> Callable[[float], Switch]:
    """Make the journal's entry: called with Unix minus Trio time, or 0 for Trio's time."""
    return lambda offset_s: Switch(
        event.record.source,
        event.record.target,
        event.started_at + offset_s,
        event.ended_at + offset_s,
        event.drain_s,
        event.hooks_s,
        event.result,
        event.record.reason,
    )
