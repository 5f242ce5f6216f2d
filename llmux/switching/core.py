"""The state of one model: phase, line, requests in flight, frozen requests and retries.

The server and the simulator run these same classes: the server around Trio's events
(`llmux.switching.model`), the simulator on a clock of its own (`llmux.simulate.engine`). Nothing
here waits, reads a clock or emits events; calls that need the time take it as an argument.

1. Only `ModelState.move_to` changes a phase, along `TRANSITIONS`.
2. Only AWAKE admits, as many as there is `room` for; the rest wait in line, in order of arrival.
3. A request is in line, settling (granted, but neither in flight nor gone), in flight, or gone.
   A settling request takes up room already.
4. Requests that are in flight when a model with `preserves_in_flight` begins to sleep are frozen:
   until the model is awake again they wait, and their ages count like those in line.
5. Each failed wake in a row doubles the time until a policy may choose the model again. After
   `failing_after` of them the model is failing (`llmux.switching.failing`).

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llmux.policy import ModelView
from llmux.switching.lines import Line, Occupancy

FIRST_RETRY_S = 2.0
"""Delay before the first retry of a failed wake; it doubles with each failure in a row."""

LONGEST_RETRY_S = 60.0
"""Upper bound of that delay."""


class Phase(Enum):
    """A model's phase. Only AWAKE admits requests."""

    ASLEEP = "asleep"
    WAKING = "waking"
    AWAKE = "awake"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # AWAKE: adopted at the start. FAILED: it may be awake (llmux.switching.awake).
    Phase.ASLEEP: frozenset({Phase.WAKING, Phase.AWAKE, Phase.FAILED}),
    Phase.WAKING: frozenset({Phase.AWAKE, Phase.SLEEPING}),  # SLEEPING: cleaning up a failed wake
    Phase.AWAKE: frozenset({Phase.DRAINING, Phase.SLEEPING}),  # SLEEPING: draining is off
    Phase.DRAINING: frozenset({Phase.SLEEPING, Phase.AWAKE}),  # AWAKE: the switch was abandoned
    Phase.SLEEPING: frozenset({Phase.ASLEEP, Phase.FAILED}),
    # SLEEPING: it still holds GPU memory, so it is put to sleep again before another model wakes.
    Phase.FAILED: frozenset({Phase.WAKING, Phase.SLEEPING}),
}
"""All permitted transitions."""

AT_REST = frozenset({Phase.ASLEEP, Phase.FAILED})

SERVES = frozenset({Phase.AWAKE, Phase.DRAINING})
"""The phases in which requests may be in flight. (With `preserves_in_flight`, or with draining
off, a model keeps its requests in the other phases, too.)"""


@dataclass(frozen=True, slots=True)
class Traits:
    """The part of a model's config that matters to its switcher.

    Attributes:
        max_in_flight: Limit of the requests in flight; the rest wait in order. Infinity: no limit.
        preserves_in_flight: True if its hooks freeze it with its requests, so it is not drained.
        idle_sleep_s: Seconds without use after which it is put to sleep.
        abandons_wakes: True if its wake hook is ended once no request waits for it; None: as
            `policy.abandon_wakes` says.
        is_kept: True if only operators may evict it.
        stops: True if it has a `stop` hook.
    """

    max_in_flight: float = math.inf
    preserves_in_flight: bool = False
    idle_sleep_s: float = math.inf
    abandons_wakes: bool | None = None
    is_kept: bool = False
    stops: bool = False


NO_TRAITS = Traits()


def retry_delay_s(failures: int) -> float:
    """Return the seconds to wait after a failure, given the number of failures right before it."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures, 30))


class ModelState:
    """One model as a switch and a policy see it.

    Attributes:
        name: Its name in the config.
        phase: Changed by `move_to` alone.
        entered_at: When it entered that phase.
        awake_since: When it was last woken; unchanged when a drain is abandoned.
        waiters: The requests in line.
        in_flight: The requests in flight.
        backend_queued: Requests queued inside the backend, if that is watched (`policy.gate`).
        failures: Failed wakes in a row.
        falls: Number of times in a row that it was found down before it was warm.
        excused: Number of the failed wakes that say nothing of the model: no hook could be started.
        failing_after: Number of `failed_wakes` from which on it is failing; infinity for never.
        retry_at: No policy may choose it before this time.
        used_at: When it was woken, or when the last non-passive request left.
        max_in_flight, preserves_in_flight, idle_sleep_s, abandons_wakes, is_kept, stops: See
            `Traits`.
        drains: True if a switch waits for requests in flight (`policy.drain_before_switch`).
        may_work: Returns whether its next request may be let in beside other models that are at
            work; None if that does not matter.
    """

    waiters: Line[Any]
    in_flight: Occupancy

    def __init__(
        self,
        name: str,
        waiters: Line[Any],
        in_flight: Occupancy,
        traits: Traits = NO_TRAITS,
        *,
        drains: bool = True,
    ) -> None:
        self.name = name
        self.phase = Phase.ASLEEP
        self.entered_at = -math.inf  # always has been
        self.awake_since = -math.inf
        self.waiters = waiters
        self.in_flight = in_flight
        self.backend_queued = 0
        self.failures = self.falls = self.excused = 0
        self.failing_after = math.inf
        self.retry_at = self.used_at = -math.inf
        self.drains = drains
        self.may_work: Callable[[Any], bool] | None = None
        self._frozen_at: float | None = None
        self._shown = ModelView(name)
        self._take_traits(traits)

    def _take_traits(self, traits: Traits) -> None:
        self.max_in_flight = traits.max_in_flight
        self.preserves_in_flight = traits.preserves_in_flight
        self.idle_sleep_s = traits.idle_sleep_s
        self.abandons_wakes = traits.abandons_wakes
        self.is_kept = traits.is_kept
        self.stops = traits.stops

    @property
    def may_stop(self) -> bool:
        """True if its stop hook may run, which would lose requests that are frozen with it."""
        return self.stops and not self.preserves_in_flight

    # ---- Phases ----

    @property
    def is_awake(self) -> bool:
        return self.phase is Phase.AWAKE

    @property
    def is_drained(self) -> bool:
        """True if its requests have to end before it is put to sleep."""
        return self.drains and not self.preserves_in_flight

    def move_to(self, phase: Phase, now: float) -> None:
        """Change phase; the only method that does."""
        assert phase in TRANSITIONS[self.phase], f"{self!r} cannot enter {phase.name}"
        left, self.phase = self.phase, phase
        stayed_s = now - self.entered_at
        self.entered_at = now
        if phase is Phase.AWAKE:
            if left is not Phase.DRAINING:
                self.awake_since = now
        elif phase is Phase.SLEEPING and left in SERVES and self.preserves_in_flight:
            self._freeze(now)
        # Before the thaw, so that subclasses still see the ages of frozen requests: an absence of
        # the model ends for these, too.
        self._moved(left, stayed_s)
        if phase is Phase.AWAKE:
            self._thaw(now)

    def _moved(self, left: Phase, stayed_s: float) -> None:
        """Called after each change of phase, with the phase left and the seconds spent in it."""

    # ---- Admission ----

    @property
    def admits(self) -> bool:
        """True if a request that arrives now is admitted at once."""
        if self.phase is not Phase.AWAKE:
            return False
        if self.max_in_flight == math.inf and self.may_work is None:
            return True
        return not self.waiters.count and self.room > 0

    @property
    def room(self) -> float:
        """Number of requests that may still be admitted."""
        if self.may_work is not None and not self.may_work(self):
            return 0
        return self.max_in_flight - self.in_flight.in_use - self.waiters.settling

    # ---- Frozen requests ----

    @property
    def _frozen(self) -> int:
        return 0 if self._frozen_at is None else self.in_flight.in_use

    def _freeze(self, now: float) -> None:
        self._frozen_at = now
        ages = self.waiters.ages
        for _ in range(self.in_flight.in_use):
            ages = ages.plus(now)
        self.waiters.ages = ages

    def _thaw(self, now: float) -> None:
        if self._frozen_at is None:
            return
        ages = self.waiters.ages
        for _ in range(self.in_flight.in_use):
            ages = ages.minus(self._frozen_at)
        self.waiters.ages = ages
        if self.in_flight.in_use:
            self.in_flight.frozen_s += now - self._frozen_at
        self._frozen_at = None

    def _frozen_left(self) -> None:
        """Stop counting the age of a request that has just left while frozen."""
        if self._frozen_at is not None:
            self.waiters.ages = self.waiters.ages.minus(self._frozen_at)

    # ---- Wakes ----

    @property
    def failed_wakes(self) -> int:
        """Number of wakes in a row that failed, or whose server stopped before it was warm."""
        return self.failures - self.excused + self.falls

    @property
    def is_failing(self) -> bool:
        """True once too many wakes in a row were of no use."""
        return self.failed_wakes >= self.failing_after

    @property
    def quiet_since(self) -> float:
        """When it was last used; infinity while a request is in flight or waits for it."""
        return math.inf if self.in_flight.in_use or self.wanted_by else self.used_at

    def forgive(self) -> None:
        """Forget that its wakes have failed, since its config has changed."""
        self.falls = 0
        self.note_woken()

    def note_woken(self) -> None:
        self.failures = self.excused = 0
        self.retry_at = -math.inf

    def note_wake_failed(self, now: float, *, is_excused: bool = False) -> None:
        """Delay the next attempt: 2 s, doubled with each failure in a row, at most 60 s."""
        self.retry_at = now + retry_delay_s(self.failures)
        self.failures += 1
        self.excused += is_excused

    # ---- Policies ----

    @property
    def wanted_by(self) -> int:
        """Number of requests that need it awake, in line or frozen with it."""
        return self.waiters.count + self._frozen

    @property
    def oldest(self) -> float | None:
        """Arrival time of the oldest request that needs this model, or None.

        A frozen request counts as having arrived when it was frozen.
        """
        in_line = self.waiters.oldest
        if self._frozen_at is None or not self._frozen:
            return in_line
        return self._frozen_at if in_line is None else min(in_line, self._frozen_at)

    def view(self) -> ModelView:
        """Return the facts about the model that a policy may use."""
        return self._view(self.in_flight.in_use)

    def _view(self, in_flight: int) -> ModelView:
        # Called for each model at each decision. Few models change in between, so reuse the last
        # view if it still holds. Each change of the line replaces `ages`, so identity suffices.
        shown, ages, retry_at = self._shown, self.waiters.ages, self.retry_at
        has_slots = self.max_in_flight != math.inf
        freezes = self.preserves_in_flight or (has_slots and not self.drains)
        if (
            shown.ages is ages
            and shown.in_flight == in_flight
            and shown.retry_at == retry_at
            and shown.backend_queued == self.backend_queued
            and shown.has_slots is has_slots
            and shown.freezes is freezes
        ):
            return shown
        queued = self.wanted_by
        view = self._shown = ModelView(
            self.name,
            in_flight,
            queued,
            self.oldest if queued else None,
            retry_at,
            ages,
            self.backend_queued,
            has_slots,
            freezes,
        )
        return view
