"""One model of the server: the state from `llmux.switching.core` with Trio's clock and events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import trio

from llmux.errors import HookError, LlmuxError
from llmux.policy import ModelView
from llmux.switching.core import (
    AT_REST,
    NO_TRAITS,
    SERVES,
    TRANSITIONS,
    ModelState,
    Phase,
    Traits,
    retry_delay_s,
)
from llmux.switching.inflight import Flight, InFlight
from llmux.switching.waiters import Waiters

__all__ = ["AT_REST", "NO_TRAITS", "SERVES", "TRANSITIONS", "Model", "Phase", "Traits"]


class Model(ModelState):
    """A model of the config, as the switcher sees it; times are Trio's, in seconds.

    Attributes:
        stay: Number of times it has been woken.
        holds_gpu: True from the start of its wake hook until a sleep is confirmed (by
            `verify_asleep`). The placement evicts such models before it lets another one wake.
        beside_line: Number of requests that its backend refused and that wait for a retry.
        is_warm: True once its backend has answered since the wake, other than with a 503.
        warm_by: Until when it may take to become warm, counted from the wake: the wake hook's
            time-out.
        loads_since: When its backend was first found loading after a wake, or None.
        last_error: Why the last wake or sleep failed; None after a successful wake.
        socket_idle_s: Seconds without a message after which a WebSocket is quiet.

    Callbacks: `on_enter(model, phase left, seconds spent in it)` after every change of phase;
    `on_line(model)` when a request joins or leaves the line; `on_leave(model, flight)` when one
    leaves the model; `on_beside()` when one is about to retry, or a model has recovered from falls.
    """

    waiters: Waiters
    in_flight: InFlight

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
        super().__init__(
            name,
            Waiters(on_settle=self._settled),
            InFlight(on_leave=self._left),
            traits,
            drains=drains,
        )
        self.socket_idle_s = socket_idle_s
        self.stay = 0
        self.holds_gpu = False
        self.beside_line = 0
        self.is_warm = False
        self.warm_by = -math.inf
        self.loads_since: float | None = None
        self.last_error: LlmuxError | None = None
        self._on_enter = on_enter
        self._on_line = on_line
        self._on_leave = on_leave
        self._on_beside = on_beside

    def look(self, scope: trio.CancelScope | None = None) -> Flight:
        """Admit a passive request: it takes no slot, and does not count as use of the model.

        It counts as in flight, so that a sleep waits for it. As with `admits`, there must be no
        checkpoint between the check of `is_awake` and this call.
        """
        return self.in_flight.enter(scope, is_passive=True)

    def __repr__(self) -> str:
        return (
            f"<Model {self.name!r} {self.phase.name}, "
            f"{self.in_flight.count} in flight, {self.waiters.count} waiting>"
        )

    def apply(self, traits: Traits) -> None:
        self._take_traits(traits)
        self.admit_more()

    @property
    def standing(self) -> Literal["awake", "unsure"] | None:
        """The state to record for the next llmux in case this one is killed; None: asleep."""
        if not self.holds_gpu:
            return None
        return "awake" if self.phase in SERVES else "unsure"

    @property
    def is_stranded(self) -> bool:
        """True if it may hold memory although it is not awake: its sleep could not be verified."""
        return self.holds_gpu and self.phase in AT_REST

    @property
    def quiet(self) -> list[Flight]:
        """The WebSockets in flight that have carried no message for `socket_idle_s`."""
        return self.in_flight.quiet(self.socket_idle_s)

    @property
    def yielding(self) -> list[Flight]:
        """The WebSockets in flight that no switch waits for, the quiet ones included."""
        return self.in_flight.yielding(self.socket_idle_s)

    @property
    def idle_since(self) -> float:
        """When it was last used, including by WebSockets that are quiet now."""
        return max(self.used_at, self.in_flight.message_at)

    @property
    def quiet_since(self) -> float:
        is_used = self.in_flight.in_use > len(self.quiet) or self.wanted_by or self.beside_line
        return math.inf if is_used else self.idle_since

    def enter(self, phase: Phase) -> None:
        self.move_to(phase, trio.current_time())

    def _moved(self, left: Phase, stayed_s: float) -> None:
        if self.is_awake:
            if left is not Phase.DRAINING:
                self.stay += 1
                self.is_warm = False
                self.loads_since = None
            self.used_at = self.entered_at
        self._on_enter(self, left, stayed_s)

    async def wait_admitted(
        self,
        scope: trio.CancelScope | None = None,
        weight: float = 1.0,
        *,
        never_switch: bool = False,
        request: str = "",
    ) -> Flight:
        """Wait in line until admitted; returns with the request counted as in flight.

        Args:
            scope: As for `InFlight.enter`.
            weight: The factor by which its age counts.
            never_switch: True if it may wait for a slot, but not for a switch.
            request: Its name.

        Raises:
            LlmuxError: The request was refused while it waited.
        """
        with self.waiters.join(weight, never_switch=never_switch, request=request) as waiter:
            self._on_line(self)
            await waiter.wait_granted()
            # No checkpoint since the grant, and the line is not left yet: settled means counted.
            return self.in_flight.enter(scope)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Keep the model for a request that will retry, but is neither in line nor in flight."""
        self.beside_line += 1
        try:
            yield
        finally:
            self.beside_line -= 1
            self._on_beside()

    @property
    def is_unused(self) -> bool:
        """True if no request is in flight, in line, or about to retry."""
        return not (self.wanted_by or self.in_flight.count or self.beside_line)

    async def let_in(self) -> None:
        """Admit as many waiting requests as there is room for; returns once each has settled."""
        await self.waiters.grant(self.room)

    def admit_more(self) -> None:
        """Admit as many waiting requests as there is room for, if it is awake."""
        if self.waiters.count and self.is_awake:
            self.waiters.let_in(self.room)

    @property
    def queued(self) -> int:
        """Number of requests that wait, in line or for a retry."""
        return self.waiters.count + self.beside_line

    def _left(self, flight: Flight) -> None:
        if flight.is_passive:
            self._on_leave(self, flight)
            return
        self._frozen_left()
        self.used_at = trio.current_time()
        self.admit_more()
        self._on_leave(self, flight)

    def _settled(self) -> None:
        self.admit_more()
        self._on_line(self)

    def wake_succeeded(self) -> None:
        self.note_woken()
        self.last_error = None

    def wake_failed(self, error: HookError) -> None:
        # That no process can be started says nothing of the model: hooks work again soon after.
        self.note_wake_failed(trio.current_time(), is_excused=not error.was_started)
        self.last_error = error

    @property
    def is_warming(self) -> bool:
        """True while its server may still be loading: not warm, and `warm_by` is not over."""
        return not self.is_warm and trio.current_time() < self.warm_by

    def note_warm(self) -> None:
        """Note that its backend has answered."""
        self.is_warm = True
        if self.falls:
            self.falls = 0
            self._on_beside()  # it may be failing no longer, which the next decision tells

    def fell(self) -> None:
        """Note that it was found down while its server may still have been loading.

        The first time it may be woken again at once, then after 2 s, doubling up to 60 s.
        """
        if self.falls:
            self.retry_at = trio.current_time() + retry_delay_s(self.falls - 1)
        self.falls += 1

    def view(self) -> ModelView:
        """Return the facts for policies, which do not count WebSockets that yield as in flight."""
        return self._view(self.in_flight.in_use - len(self.yielding))
