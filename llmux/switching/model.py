"""One model's life: its phase, who is inside, who waits, and when it may be tried again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import trio

from llmux.errors import LlmuxError
from llmux.policy import ModelView
from llmux.switching.inflight import Flight, InFlight
from llmux.switching.waiters import Waiters

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
    # AWAKE: it was found so at the start; FAILED: it may be so (llmux.switching.awake).
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
    """What the config says of a model that its switcher must know.

    Attributes:
        max_in_flight: Most requests in flight; the rest wait in order. Infinity: no limit.
        preserves_in_flight: Its hooks freeze it with its requests, so that none is waited for.
        idle_sleep_s: For so long unused, it is put to sleep.
        abandons_wakes: Its wake hook is ended once nobody waits for it; None: as for all.
    """

    max_in_flight: float = math.inf
    preserves_in_flight: bool = False
    idle_sleep_s: float = math.inf
    abandons_wakes: bool | None = None


NO_TRAITS = Traits()


class Model:
    """A model of the config, as the switcher sees it.

    Attributes:
        phase: Where it is in its life; changed by `enter` alone.
        entered_at: When it entered that phase (Trio's clock, seconds).
        stay: How many times it has been woken.
        awake_since: When it was, the last time: an abandoned switch ends no stay.
        holds_gpu: Its wake hook was started, and no sleep has been confirmed since. What
            `verify_asleep` decides; a group puts all such models to sleep before it wakes another.
        backend_queued: Requests that wait inside of the backend, where that is watched.
        beside_line: Requests that its backend has refused, and that wait for a look at it.
        failures: Failed tries to wake it since the last success.
        retry_at: No policy may choose it before this time (Trio's clock, seconds).
        is_warm: Whether its backend has answered since it was woken, other than with a 503.
        warm_by: Until when it may not be (Trio's clock, seconds): its wake hook's time.
        loads_since: Since when it is known that its backend loads (Trio's clock, seconds); or None.
        falls: How many times in a row it was found down before it was warm.
        last_error: Why the last try failed; None after a success.
        used_at: When it was woken, or a request left last that was no passive one.
        max_in_flight, preserves_in_flight, idle_sleep_s, abandons_wakes: See `Traits`.
        drains: Whether requests in flight are waited for, as the config says.
        socket_idle_s: A WebSocket without a message for so long is quiet; as the config says.

    `on_enter(model, phase left, seconds spent in it)` is called after every change of phase,
    `on_line(model)` when a request joins the line or leaves it, `on_leave(model, flight)` when one
    leaves the model, `on_beside()` when one that was beside the line is about to come back.
    """

    def __init__(
        self,
        name: str,
        *,
        on_enter: Callable[[Model, Phase, float], None] = lambda *_: None,
        on_line: Callable[[Model], None] = lambda _: None,
        on_leave: Callable[[Model, Flight], None] = lambda *_: None,
        on_beside: Callable[[], None] = lambda: None,
        traits: Traits = NO_TRAITS,
        drains: bool = True,
        socket_idle_s: float = math.inf,
    ) -> None:
        self.name = name
        self.phase = Phase.ASLEEP
        self.entered_at = -math.inf  # always has been
        self.in_flight = InFlight(on_leave=self._left)
        self.waiters = Waiters(on_settle=self._settled)
        self.apply(traits)
        self.drains = drains
        self.socket_idle_s = socket_idle_s
        self.stay = 0
        self.awake_since = -math.inf
        self.used_at = -math.inf
        self.holds_gpu = False
        self.backend_queued = 0
        self.beside_line = 0
        self._frozen_at: float | None = None
        self.failures = 0
        self.retry_at = -math.inf
        self.is_warm = False
        self.warm_by = -math.inf
        self.loads_since: float | None = None
        self.falls = 0
        self.last_error: LlmuxError | None = None
        self._on_enter = on_enter
        self._on_line = on_line
        self._on_leave = on_leave
        self._on_beside = on_beside

    def look(self, scope: trio.CancelScope | None = None) -> Flight:
        """Let in a request that only looks: it takes no slot, and is no use of the model.

        It counts as in flight, so that a sleep waits for it. As for `admits`, there must be no
        checkpoint between a look at `is_awake` and this.
        """
        return self.in_flight.enter(scope, is_passive=True)

    def __repr__(self) -> str:
        return (
            f"<Model {self.name!r} {self.phase.name}, "
            f"{self.in_flight.count} in flight, {self.waiters.count} waiting>"
        )

    def apply(self, traits: Traits) -> None:
        """Use other traits from now on."""
        self.max_in_flight = traits.max_in_flight
        self.preserves_in_flight = traits.preserves_in_flight
        self.idle_sleep_s = traits.idle_sleep_s
        self.abandons_wakes = traits.abandons_wakes
        self._admit_more()

    @property
    def is_awake(self) -> bool:
        """Whether it serves requests, and admits as many as it has room for."""
        return self.phase is Phase.AWAKE

    @property
    def standing(self) -> Literal["awake", "unsure"] | None:
        """What the next llmux must know of it, should this one be killed now; None: asleep."""
        if not self.holds_gpu:
            return None
        return "awake" if self.phase in SERVES else "unsure"

    @property
    def is_drained(self) -> bool:
        """Whether its requests have to leave before it sleeps."""
        return self.drains and not self.preserves_in_flight

    @property
    def quiet(self) -> list[Flight]:
        """The WebSockets in flight that nobody uses."""
        return self.in_flight.quiet(self.socket_idle_s)

    @property
    def yielding(self) -> list[Flight]:
        """The WebSockets in flight that no switch waits for, the quiet ones included."""
        return self.in_flight.yielding(self.socket_idle_s)

    @property
    def idle_since(self) -> float:
        """When it was used last, WebSockets that are quiet by now included."""
        return max(self.used_at, self.in_flight.message_at)

    @property
    def admits(self) -> bool:
        """Whether a request that comes at this instant goes in at once."""
        if self.phase is not Phase.AWAKE:
            return False
        return self.max_in_flight == math.inf or (not self.waiters.count and self.room > 0)

    @property
    def room(self) -> float:
        """How many more it may have in flight."""
        return self.max_in_flight - self.in_flight.in_use - self.waiters.settling

    def enter(self, phase: Phase) -> None:
        """Change phase; the only place that does."""
        assert phase in TRANSITIONS[self.phase], f"{self!r} cannot enter {phase.name}"
        left, self.phase = self.phase, phase
        stayed_s = trio.current_time() - self.entered_at
        self.entered_at = trio.current_time()
        if phase is Phase.AWAKE:
            if left is not Phase.DRAINING:
                self.stay += 1
                self.is_warm = False
                self.loads_since = None
                self.awake_since = self.entered_at
            self.used_at = self.entered_at
        elif phase is Phase.SLEEPING and left in SERVES and self.preserves_in_flight:
            self._freeze()
        self._on_enter(self, left, stayed_s)
        if phase is Phase.AWAKE:
            self._thaw()

    async def wait_admitted(
        self,
        scope: trio.CancelScope | None = None,
        weight: float = 1.0,
        *,
        never_switch: bool = False,
        request: str = "",
    ) -> Flight:
        """Stand in line until let in; returns with the request counted as in flight.

        Args:
            weight: What its age counts for.
            never_switch: It waits for a slot only, not for a switch.
            request: Its name.
            scope: As for `InFlight.enter`.

        Raises:
            LlmuxError: What those in line were refused with.
        """
        with self.waiters.join(weight, never_switch=never_switch, request=request) as waiter:
            self._on_line(self)
            await waiter.wait_granted()
            # No checkpoint since the grant, and the line is not left yet: settled means counted.
            return self.in_flight.enter(scope)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A request is not in line and not in flight, but comes back: the model is kept for it."""
        self.beside_line += 1
        try:
            yield
        finally:
            self.beside_line -= 1
            self._on_beside()

    @property
    def is_unused(self) -> bool:
        """Whether no request is in it, waits for it, or will."""
        return not (self.wanted_by or self.in_flight.count or self.beside_line)

    async def let_in(self) -> None:
        """Let in all who wait and have room; returns once each of them has settled."""
        await self.waiters.grant(self.room)

    def _admit_more(self) -> None:
        """A place may have become free."""
        if self.waiters.count and self.is_awake:
            self.waiters.let_in(self.room)

    @property
    def queued(self) -> int:
        """How many requests wait: those in line, and those beside it."""
        return self.waiters.count + self.beside_line

    @property
    def wanted_by(self) -> int:
        """How many requests would have it awake: those in line, and those frozen with it."""
        return self.waiters.count + self._frozen

    @property
    def _frozen(self) -> int:
        return 0 if self._frozen_at is None else self.in_flight.in_use

    def _freeze(self) -> None:
        """Those in flight wait from now on, as those in line do."""
        self._frozen_at = self.entered_at
        for _ in range(self.in_flight.in_use):
            self.waiters.ages.add(self._frozen_at)

    def _thaw(self) -> None:
        if self._frozen_at is not None:
            for _ in range(self.in_flight.in_use):
                self.waiters.ages.remove(self._frozen_at)
            self.in_flight.frozen_s += trio.current_time() - self._frozen_at
        self._frozen_at = None

    def _left(self, flight: Flight) -> None:
        if flight.is_passive:
            self._on_leave(self, flight)
            return
        if self._frozen_at is not None:
            self.waiters.ages.remove(self._frozen_at)
        self.used_at = trio.current_time()
        self._admit_more()
        self._on_leave(self, flight)

    def _settled(self) -> None:
        self._admit_more()
        self._on_line(self)

    def wake_succeeded(self) -> None:
        """Forget earlier failures."""
        self.failures = 0
        self.retry_at = -math.inf
        self.last_error = None

    def wake_failed(self, error: LlmuxError) -> None:
        """Put off the next try: 2 s, doubling with each failure in a row, at most 60 s."""
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0**self.failures)
        self.failures += 1
        self.retry_at = trio.current_time() + delay_s
        self.last_error = error

    @property
    def is_warming(self) -> bool:
        """Whether its server may still load: it was just woken, and has answered nothing yet."""
        return not self.is_warm and trio.current_time() < self.warm_by

    def note_warm(self) -> None:
        """Its backend has answered."""
        self.is_warm = True
        self.falls = 0

    def fell(self) -> None:
        """It was found down while it may still have been loading.

        The first time it may be woken again at once, then after 2 s, doubling to 60 s.
        """
        if self.falls:
            delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** (self.falls - 1))
            self.retry_at = trio.current_time() + delay_s
        self.falls += 1

    @property
    def oldest(self) -> float | None:
        """Since when the first of those waits that would have it awake; None if there is none."""
        if not self._frozen or self._frozen_at is None:
            return self.waiters.oldest
        in_line = self.waiters.oldest
        return self._frozen_at if in_line is None else min(in_line, self._frozen_at)

    def view(self) -> ModelView:
        """What a policy may know of it."""
        has_slots = self.max_in_flight != math.inf
        return ModelView(
            name=self.name,
            in_flight=self.in_flight.in_use - len(self.yielding),
            queued=self.wanted_by,
            oldest_arrival=self.oldest,
            retry_at=self.retry_at,
            ages=self.waiters.ages,
            backend_queued=self.backend_queued,
            has_slots=has_slots,
            freezes=not self.is_drained and (self.preserves_in_flight or has_slots),
        )
