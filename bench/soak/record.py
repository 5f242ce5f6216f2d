"""Counts how requests end, and judges each end."""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.soak.ask import Ask, Seen, describe
from bench.soak.process import Llmux
from bench.soak.settings import (
    CANCEL_S,
    CAUSE_AFTER_S,
    CAUSE_BEFORE_S,
    CUT_S,
    MAY_FOLLOW,
    NEEDS_CAUSE,
    STOPPED_BODY_S,
    WAIT_S,
)
from bench.soak.stage import Fault

EXPLAINED = {
    "manual_mode": "manual",
    "pinned": "pin",
    "model_not_found": "absent",
    "too_many_connections": "flood",
    "queue_full": "",
}
"""Errors by the window in which they are right; empty for at any time."""

MAY_PRECEDE = frozenset({"left", "unserved", "queue_full", "too_many_connections", "cancelled"})
"""Outcomes that can precede llmux's detection of a bad request."""


@dataclass
class Sample:
    """Measurements of llmux at one moment."""

    at_s: float
    life: int
    rss_bytes: int
    descriptors: int
    to_backends: int
    requests: int


@dataclass
class Record:
    """All observations of a run.

    Attributes:
        llmux: The process that is watched.
        outcomes: Counts by label, for the table.
        counted: Requests that llmux must have counted since its last start, by model and status.
        unknown: Requests since then that llmux may have counted or not: their clients left or are
            hostile, or they came while llmux started.
        doubtful: Ends that need a cause.
        lost: Requests without a response, each with the time its connection was opened.
        violations: Broken promises.
        windows: Intervals of conditions that explain errors (wall clock), by condition.
        cancelled: Time of cancellation, by request id.
        hostile: Acts of hostile clients, by name.
        latencies_s: Latencies of cheap requests, by kind.
        longest: The request that took longest.
        lag_s: Longest delay of the soak's own timers.
        peak_bytes: Peak memory of llmux over all its lives.
        bound_bytes: Bound on memory that the config implies.
    """

    llmux: Llmux
    outcomes: Counter[str] = field(default_factory=Counter)
    counted: Counter[tuple[str, int]] = field(default_factory=Counter)
    unknown: int = 0
    done: int = 0
    doubtful: list[Seen] = field(default_factory=list)
    lost: list[tuple[Seen, float]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    windows: defaultdict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    cancelled: dict[str, float] = field(default_factory=dict)
    hostile: Counter[str] = field(default_factory=Counter)
    latencies_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lag_s: float = 0.0
    longest: Seen | None = None
    peak_bytes: int = 0
    bound_bytes: int = 0

    @contextmanager
    def window(self, what: str, after_s: float = 1.0) -> Iterator[None]:
        """Keep a window open within the context, and a little longer for late effects."""
        index = len(self.windows[what])
        since = time.time()
        self.windows[what].append((since, math.inf))
        try:
            yield
        finally:
            self.windows[what][index] = (since, time.time() + after_s)

    def was(self, what: str, begun_at: float, ended_at: float) -> bool:
        """Return whether it overlaps this interval."""
        return any(since <= ended_at and begun_at <= until for since, until in self.windows[what])

    def new_life(self) -> None:
        """Reset the counts: llmux was killed, and starts its own at 0."""
        self.counted.clear()
        self.unknown = 0

    def note(self, seen: Seen, since: float) -> None:
        """Count a request's outcome, and report what is wrong with it.

        Args:
            seen: How it ended.
            since: When its connection was opened.
        """
        ask = seen.ask
        assert ask is not None
        self.done += 1
        longest = self.longest
        if longest is None or took_s(seen) > took_s(longest):
            self.longest = seen
        was_away = self.llmux.was_away(seen.begun_at, seen.ended_at)
        if (was_away and seen.outcome in {"lost", "cut", "unserved"}) or (
            seen.outcome == "lost" and self.llmux.was_away(min(since, seen.begun_at), seen.ended_at)
        ):
            self.outcomes["llmux killed"] += 1
            return
        self._count(seen, ask, was_away)
        self.outcomes[label(seen, ask)] += 1
        if seen.outcome == "lost" and not ask.half_closes:
            self.lost.append((seen, min(since, seen.begun_at)))
        elif why := self._mistake(seen, ask):
            self.violate(seen, why)
        elif not ask.half_closes and seen.outcome in NEEDS_CAUSE - MAY_FOLLOW.get(ask.lie, set()):
            self.doubtful.append(seen)

    def _count(self, seen: Seen, ask: Ask, was_away: bool) -> None:
        if ask.own_path or seen.outcome == "too_many_connections":
            return  # llmux counts requests for models only
        if was_away or not seen.status or seen.kind == "WebSocket" or ask.half_closes:
            self.unknown += 1
        elif seen.begun_at > self.llmux.since and seen.request_id:
            self.counted[seen.model, seen.status] += 1

    def _mistake(self, seen: Seen, ask: Ask) -> str:
        """Name a mistake in how a request ended; empty if there is none for certain."""
        if ask.half_closes and seen.outcome in {"lost", "cut"}:
            return ""  # its client has left
        if seen.outcome in {"hang", "wrong"}:
            return "must not be"
        if ask.wants:
            allowed = {ask.wants, *MAY_PRECEDE}
            if seen.outcome not in allowed:
                return "must not be"
        if (window := EXPLAINED.get(seen.outcome)) and seen.outcome != ask.wants:
            what = f"{window} {ask.called}" if window == "absent" else window
            if not self.was(what, seen.begun_at, seen.ended_at):
                return f"without {window}"
        if seen.outcome == "switch_timeout" and took_s(seen) < WAIT_S - 0.1:
            return "too early"
        if seen.outcome == "ok" and "ok" not in MAY_FOLLOW.get(ask.lie, {"ok"}):
            return "a fault that shows as success"
        is_late = any(self.was(what, seen.begun_at, seen.ended_at) for what in ("lag", "flood"))
        if ask.stops_after >= 0 and took_s(seen) > STOPPED_BODY_S and not is_late:
            return "a body that stops was waited for past the stall limit"
        if seen.outcome == "cut" and not ask.pace and took_s(seen) > CUT_S:
            return "heard too late that it was cut"
        cancelled_at = self.cancelled.get(seen.request_id, math.inf)
        if not ask.pace and seen.outcome != "left" and seen.ended_at > cancelled_at + CANCEL_S:
            return f"held for {seen.ended_at - cancelled_at:.1f} s after it was cancelled"
        return ""

    def judge_lost(self) -> int:
        """Only a llmux that was killed or has ended loses requests; returns how many were lost."""
        lost = [seen for seen, since in self.lost if not self.llmux.was_away(since, seen.ended_at)]
        for seen in lost:
            self.violate(seen, "lost")
        return len(lost)

    def violate(self, seen: Seen, why: str) -> None:
        self.violations.append(f"{why}: {describe(seen)}")


def took_s(seen: Seen) -> float:
    """Return the duration of a request, in seconds."""
    return seen.ended_at - seen.begun_at


def label(seen: Seen, ask: Ask) -> str:
    """Return the line of the table that a request counts in."""
    if ask.own_path:
        return f"own path: {seen.status} {seen.outcome}"
    if seen.outcome == "ok":
        kind = "stream" if ask.chunks else "plain"
        kind = kind if seen.kind == "HTTP/1.1" else seen.kind
        return f"{seen.status} {kind}, whole and right"
    if seen.outcome == "left":
        return "client left" if not ask.stalls else "client did not read, and left"
    if seen.outcome == "cut":
        return f"{seen.status} cut"
    return f"{seen.status} {seen.outcome}" if seen.status else seen.outcome


FATAL = re.compile(
    r"backend (killed|stopped|crashes|crashes half-way|hangs|refuses)|drain_cut|model_down"
)


def is_cause(cause: Fault, seen: Seen) -> bool:
    """Return whether a fault explains the outcome of another request."""
    assert seen.ask is not None
    if not seen.begun_at - CAUSE_BEFORE_S <= cause.at <= seen.ended_at + CAUSE_AFTER_S:
        return False
    if cause.kind == f"cancelled {seen.request_id}":
        return True
    if seen.outcome == "hook_failed":
        # The fault of its model's wake hook, or of the model that failed to sleep before it.
        found = re.match(r"Hook failed for (\S+): ", seen.detail)
        return found is not None and cause.model == found[1]
    return cause.model == seen.ask.model and FATAL.fullmatch(cause.kind) is not None
