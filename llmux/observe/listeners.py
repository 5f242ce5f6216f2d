"""The default listeners to events: the log, metrics, the feed and the journal."""

from __future__ import annotations

from collections.abc import Callable

from llmux.errors import ModelAsleep
from llmux.observe.clock import WallClock
from llmux.observe.events import Drained, Events, HookEnded, PhaseChanged, SwitchEnded
from llmux.observe.feed import Feed
from llmux.observe.journal import Journal, Phase, Request, Switch
from llmux.observe.logs import get_logger
from llmux.observe.metrics import IDLE, TOKEN_KINDS, Metrics
from llmux.observe.schemas import FailingChange, HookRun, PhaseChange, SwitchRecord
from llmux.observe.summary import RequestSummary

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
        measure_requests(events, metrics)
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
        log.info("switch_started", **_models_of(record), reason=record.reason)

    def switch_ended(event: SwitchEnded) -> None:
        record, about = event.record, {"from": event.record.source}
        if event.result == "failure":
            log.error("switch_failed", model=record.target, **about, error=record.error)
        elif event.result == "success":
            took_s = round(event.ended_at - event.started_at, 3)
            log.info("model_activated", model=record.target, **about, duration_secs=took_s)

    def failing_changed(change: FailingChange) -> None:
        if change.failing:
            about = {"failed_wakes": change.failed_wakes, "error": change.error}
            log.error("model_failing", model=change.model, **about)
        else:
            log.info("model_recovered", model=change.model)

    def hook_ended(event: HookEnded) -> None:
        run, error = event.run, event.error
        about = {"model": run.model, "hook": run.hook, "duration_secs": run.duration_secs}
        if error is None:
            if is_routine(run):
                log.debug("hook_completed", **about)
            else:
                log.info("hook_completed", **about)
            return
        why = {"reason": error.reason, "exit_code": error.exit_code}
        if event.expects_failure:
            log.debug("hook_failed", **about, **why)
        else:
            log.warning("hook_failed", **about, **why, stderr=error.output)

    events.cordon_changed.listen(lambda change: log.info("cordon", cordoned=change.cordoned))
    events.phase_changed.listen(phase_changed)
    events.switch_started.listen(switch_started)
    events.switch_ended.listen(switch_ended)
    events.failing_changed.listen(failing_changed)
    events.hook_ended.listen(hook_ended)


def _models_of(record: SwitchRecord) -> dict[str, object]:
    about: dict[str, object] = {"from": record.source, "to": record.target}
    if len(record.evicts) > 1:
        about["evicts"] = list(record.evicts)
    return about


def is_routine(run: HookRun) -> bool:
    """Return whether the run only looks, again and again while its model is awake."""
    return run.hook in ("alive", "memory")


def measure_requests(events: Events, metrics: Metrics) -> None:
    def request_ended(summary: RequestSummary) -> None:
        # A request that only looked whether its model is awake is no failure, and no alert's
        # business.
        if summary.outcome == ModelAsleep.code:
            return
        model, first_byte_s = summary.model, summary.first_byte_s
        metrics.requests.count(
            model, summary.status, waited=summary.has_queued, first_byte_s=first_byte_s
        )
        tokens = summary.tokens_in, summary.tokens_out, summary.tokens_cached
        if tokens != (None, None, None):
            for kind, count in zip(TOKEN_KINDS, tokens, strict=True):
                if count:
                    metrics.tokens.labels(model, kind).value += count
        if first_byte_s is not None and summary.is_token_stream:
            metrics.first_token.labels(model).observe(first_byte_s)
        if summary.has_queued:
            metrics.queue_wait.labels(model).observe(summary.wait_s)

    events.request_ended.listen(request_ended)


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

    def hook_ended(event: HookEnded) -> None:
        labels = event.run.model, event.run.hook
        metrics.hook_duration.labels(*labels).observe(event.took_s)
        if event.has_failed:
            metrics.hook_failures.labels(*labels).inc()

    events.phase_changed.listen(phase_changed)
    events.drained.listen(drained)
    events.switch_ended.listen(switch_ended)
    events.hook_ended.listen(hook_ended)


def feed_events(events: Events, feed: Feed) -> None:
    def phase_changed(event: PhaseChanged) -> None:
        at = feed.clock.unix(event.at)
        change = PhaseChange(at=at, model=event.model, state=event.state, left=event.left)
        feed.tell("phase", change)

    def hook_started(run: HookRun) -> None:
        if not is_routine(run):
            feed.tell("hook", run)

    def hook_ended(event: HookEnded) -> None:
        if event.has_failed or not is_routine(event.run):
            feed.tell("hook", event.run)

    events.phase_changed.listen(phase_changed)
    events.hook_started.listen(hook_started)
    events.hook_ended.listen(hook_ended)
    events.switch_started.listen(lambda record: feed.tell("switch", record))
    events.switch_ended.listen(lambda event: feed.tell("switch", event.record))
    events.alive_changed.listen(lambda change: feed.tell("alive", change))
    events.failing_changed.listen(lambda change: feed.tell("failing", change))
    events.pin_changed.listen(lambda change: feed.tell("pin", change))
    events.mode_changed.listen(lambda change: feed.tell("mode", change))
    events.cordon_changed.listen(lambda change: feed.tell("cordon", change))
    events.reloaded.listen(lambda reloaded: feed.tell("reload", reloaded))


def keep_events(events: Events, journal: Journal) -> None:
    def request_ended(summary: RequestSummary) -> None:
        if summary.uses_model:
            journal.add(request_entry(summary))

    def phase_changed(event: PhaseChanged) -> None:
        at, model, state, left = event.at, event.model, event.state, event.left
        journal.add(lambda offset_s: Phase(at + offset_s, model, state, left))

    if journal.is_kept:
        events.phase_changed.listen(phase_changed)
        events.request_ended.listen(request_ended)
        events.switch_ended.listen(lambda event: journal.add(switch_entry(event)))


def request_entry(summary: RequestSummary) -> Callable[[float], Request]:
    """Make the journal's entry, as `switch_entry` does."""
    ended_at, admitted_at = summary.ended_at, summary.admitted_at
    # At the model's door: the summary's own arrival is earlier by the reading of the body.
    arrived_at = (ended_at if admitted_at is None else admitted_at) - summary.wait_s
    return lambda offset_s: Request(
        summary.model,
        arrived_at + offset_s,
        ended_at + offset_s,
        summary.status,
        None if admitted_at is None else admitted_at + offset_s,
        summary.company,
    )


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
        event.record.evicts,
    )
