"""The state of one model: phase, line, places in flight, frozen requests and retries.

The server and the simulator run these same classes: the server around Trio's events
(`llmux.switching.model`), the simulator on a clock of its own (`llmux.simulate.engine`). Nothing
here waits, reads a clock or tells anybody; each call takes the time if it needs it.

1. A phase changes in `ModelState.move_to` alone, along `TRANSITIONS`.
2. Only AWAKE admits, as many as there is `room` for; the rest stand in line, in order of arrival.
3. A request is in line, settling (granted, but neither in flight nor gone), in flight, or gone.
   One that settles takes a place already.
4. Requests that are in flight when a model with `preserves_in_flight` begins to sleep are frozen:
   from then until it is awake again they wait, and their ages count like those of a line.
5. Each failed wake in a row doubles the time until a policy may choose the model again.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from llmux.policy import ModelView
from llmux.policy.ages import NO_AGES

FIRST_RETRY_S = 2.0
"""Delay before a model whose wake failed is tried again; doubles with each failure in a row."""

LONGEST_RETRY_S = 60.0
"""Upper bound of that delay."""


class Phase(Enum):
    """Where a model is in its life. Only AWAKE admits requests."""

    ASLEEP = "asleep"
    WAKING = "waking"
    AWAKE = "awake"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # AWAKE: found so at the start; FAILED: it may be awake (llmux.switching.awake).
    Phase.ASLEEP: frozenset({Phase.WAKING, Phase.AWAKE, Phase.FAILED}),
    Phase.WAKING: frozenset({Phase.AWAKE, Phase.SLEEPING}),  # SLEEPING: cleaning up a failed wake
    Phase.AWAKE: frozenset({Phase.DRAINING, Phase.SLEEPING}),  # SLEEPING: draining is off
    Phase.DRAINING: frozenset({Phase.SLEEPING, Phase.AWAKE}),  # AWAKE: the switch was abandoned
    Phase.SLEEPING: frozenset({Phase.ASLEEP, Phase.FAILED}),
    # SLEEPING: its GPU memory was not given back; it is put to sleep again before another wakes.
    Phase.FAILED: frozenset({Phase.WAKING, Phase.SLEEPING}),
}
"""Every way from one phase to the next; there is no other."""

AT_REST = frozenset({Phase.ASLEEP, Phase.FAILED})

SERVES = frozenset({Phase.AWAKE, Phase.DRAINING})
"""The phases with requests in flight, unless the hooks preserve them or draining is off."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The part of a model's config that its switcher must know.

    Attributes:
        max_in_flight: Most requests in flight; the rest wait in order. Infinity: no limit.
        preserves_in_flight: Its hooks freeze it with its requests, so that none is waited for.
        idle_sleep_s: Seconds without use after which it is put to sleep.
        abandons_wakes: Its wake hook is ended once nobody waits for it; None: as for all.
    """

    max_in_flight: float = math.inf
    preserves_in_flight: bool = False
    idle_sleep_s: float = math.inf
    abandons_wakes: bool | None = None


NO_TRAITS = Traits()


def retry_delay_s(failures: int) -> float:
    """Seconds to wait after a failure, by the number of failures in a row before it."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0**failures)


class Waiting(Protocol):
    """A request that can stand in line.

    Attributes:
        arrived_at: When it joined.
        weight: The factor by which its age counts.
    """

    @property
    def arrived_at(self) -> float: ...
    @property
    def weight(self) -> float: ...


RequestT = TypeVar("RequestT", bound=Waiting)


class Line(Generic[RequestT]):
    """The requests that wait for one model, oldest first, and those granted but not settled yet.

    Attributes:
        ages: The sums over the ages of those in line, and of those frozen with the model.
    """

    __slots__ = ("_line", "_settling", "ages")

    def __init__(self) -> None:
        self.ages = NO_AGES
        # Neither granted nor refused yet, in order of arrival. Not a plain dict: with those gone
        # that were first, finding the next first one in it takes as long as the line was.
        self._line: OrderedDict[RequestT, None] = OrderedDict()
        self._settling: set[RequestT] = set()

    @property
    def count(self) -> int:
        """Number of requests in line, granted ones not included."""
        return len(self._line)

    @property
    def settling(self) -> int:
        """Number of granted requests that are neither in flight nor gone yet."""
        return len(self._settling)

    @property
    def oldest(self) -> float | None:
        """Arrival time of the first in line; None if nobody waits."""
        for request in self._line:
            return request.arrived_at
        return None

    def __iter__(self) -> Iterator[RequestT]:
        return iter(self._line)

    def add(self, request: RequestT) -> None:
        """Put a request at the end of the line."""
        self._line[request] = None
        self.ages = self.ages.plus(request.arrived_at, request.weight)

    def remove(self, request: RequestT) -> None:
        """Take a request out of the line, if it still stands there."""
        if request in self._line:
            del self._line[request]
            self.ages = self.ages.minus(request.arrived_at, request.weight)

    def take_first(self, room: float = math.inf) -> list[RequestT]:
        """Take out the first `room` requests in line; they settle from now on."""
        line, ages = self._line, self.ages
        granted = list(line if room >= len(line) else islice(line, max(0, int(room))))
        if len(granted) == ages.count:  # all of them, and none is frozen
            line.clear()
            self.ages = NO_AGES
        else:
            for request in granted:
                del line[request]
                ages = ages.minus(request.arrived_at, request.weight)
            self.ages = ages
        self._settling.update(granted)
        return granted

    def settle(self, request: RequestT) -> None:
        """A request is in flight or gone, granted or not."""
        if request in self._settling:
            self._settling.remove(request)
        else:
            self.remove(request)


class Occupancy:
    """The places that requests take in one model.

    Attributes:
        in_use: Number of requests in flight.
        frozen_s: Seconds for which those in flight were frozen so far, in all stays together.
    """

    __slots__ = ("frozen_s", "in_use")

    def __init__(self) -> None:
        self.in_use = 0
        self.frozen_s = 0.0


class ModelState:
    """One model as a switch and a policy see it.

    Attributes:
        name: Its name in the config.
        phase: Where it is in its life; changed by `move_to` alone.
        entered_at: When it entered that phase.
        awake_since: When it was woken the last time; an abandoned switch does not end a stay.
        waiters: Its line.
        in_flight: The requests inside.
        backend_queued: Requests that wait inside of the backend, where that is watched.
        failures: Failed wakes in a row.
        retry_at: No policy may choose it before this time.
        max_in_flight, preserves_in_flight, idle_sleep_s, abandons_wakes: See `Traits`.
        drains: Whether requests in flight are waited for, as the config says.
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
        self.failures = 0
        self.retry_at = -math.inf
        self.drains = drains
        self._frozen_at: float | None = None
        self._shown = ModelView(name)
        self._take_traits(traits)

    def _take_traits(self, traits: Traits) -> None:
        self.max_in_flight = traits.max_in_flight
        self.preserves_in_flight = traits.preserves_in_flight
        self.idle_sleep_s = traits.idle_sleep_s
        self.abandons_wakes = traits.abandons_wakes

    # ---- Phases ----

    @property
    def is_awake(self) -> bool:
        """True if it serves requests, and admits as many as it has room for."""
        return self.phase is Phase.AWAKE

    @property
    def is_drained(self) -> bool:
        """True if its requests have to leave before it sleeps."""
        return self.drains and not self.preserves_in_flight

    def move_to(self, phase: Phase, now: float) -> None:
        """Change phase; the only place that does."""
        assert phase in TRANSITIONS[self.phase], f"{self!r} cannot enter {phase.name}"
        left, self.phase = self.phase, phase
        stayed_s = now - self.entered_at
        self.entered_at = now
        if phase is Phase.AWAKE:
            if left is not Phase.DRAINING:
                self.awake_since = now
        elif phase is Phase.SLEEPING and left in SERVES and self.preserves_in_flight:
            self._freeze(now)
        # Told before the thaw: an absence ends for those who were frozen, too.
        self._moved(left, stayed_s)
        if phase is Phase.AWAKE:
            self._thaw(now)

    def _moved(self, left: Phase, stayed_s: float) -> None:
        """Called with each phase left and the seconds spent in it; for subclasses."""

    # ---- Admission ----

    @property
    def admits(self) -> bool:
        """True if a request that comes at this instant goes in at once."""
        if self.phase is not Phase.AWAKE:
            return False
        return self.max_in_flight == math.inf or (not self.waiters.count and self.room > 0)

    @property
    def room(self) -> float:
        """Number of requests that may still be let in."""
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
        """Stop counting the age of a request that has just left, if it was frozen."""
        if self._frozen_at is not None:
            self.waiters.ages = self.waiters.ages.minus(self._frozen_at)

    # ---- Wakes ----

    def note_woken(self) -> None:
        """Forget earlier failures."""
        self.failures = 0
        self.retry_at = -math.inf

    def note_wake_failed(self, now: float) -> None:
        """Put off the next try: 2 s, doubling with each failure in a row, at most 60 s."""
        self.retry_at = now + retry_delay_s(self.failures)
        self.failures += 1

    # ---- Policies ----

    @property
    def wanted_by(self) -> int:
        """Number of requests that need it awake: those in line, and those frozen with it."""
        return self.waiters.count + self._frozen

    @property
    def oldest(self) -> float | None:
        """Arrival time of the oldest request that needs this model, or None.

        A frozen one has waited since it was frozen.
        """
        in_line = self.waiters.oldest
        if self._frozen_at is None or not self._frozen:
            return in_line
        return self._frozen_at if in_line is None else min(in_line, self._frozen_at)

    def view(self) -> ModelView:
        """Return the facts about it that a policy may use."""
        return self._view(self.in_flight.in_use)

    def _view(self, in_flight: int) -> ModelView:
        # Called for each model at each decision, and between two of them few models change: then
        # the last view still holds. Each change of the line makes other sums of ages.
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
