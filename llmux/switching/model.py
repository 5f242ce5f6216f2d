"""One model of the server: its state in `llmux.switching.core`, with Trio's clock and events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import trio

from llmux.errors import LlmuxError
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
        holds_gpu: Its wake hook was started, and no sleep has been confirmed since, which
            `verify_asleep` decides. A group puts all such models to sleep before it wakes another.
        beside_line: Requests that its backend has refused, and that wait for another try.
        is_warm: True once its backend has answered since it was woken, other than with a 503.
        warm_by: Until when it may take to be (its wake hook's time).
        loads_since: When its backend was first found loading after a wake; or None.
        falls: Number of times in a row that it was found down before it was warm.
        last_error: Why the last try failed; None after a success.
        used_at: When it was woken, or the last request that was not passive has left.
        socket_idle_s: Seconds without a message after which a WebSocket is quiet.

    `on_enter(model, phase left, seconds spent in it)` is called after every change of phase,
    `on_line(model)` when a request joins the line or leaves it, `on_leave(model, flight)` when one
    leaves the model, `on_beside()` when one that was beside the line is about to come back.
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
        self.used_at = -math.inf
        self.holds_gpu = False
        self.beside_line = 0
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
        """Let in a passive request: it takes no slot, and is no use of the model.

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
        self._take_traits(traits)
        self._admit_more()

    @property
    def standing(self) -> Literal["awake", "unsure"] | None:
        """The state to hand to the next llmux, should this one be killed now; None: asleep."""
        if not self.holds_gpu:
            return None
        return "awake" if self.phase in SERVES else "unsure"

    @property
    def quiet(self) -> list[Flight]:
        """The WebSockets in flight that have carried no message for a while."""
        return self.in_flight.quiet(self.socket_idle_s)

    @property
    def yielding(self) -> list[Flight]:
        """The WebSockets in flight that no switch waits for, the quiet ones included."""
        return self.in_flight.yielding(self.socket_idle_s)

    @property
    def idle_since(self) -> float:
        """When it was used last, WebSockets that are quiet by now included."""
        return max(self.used_at, self.in_flight.message_at)

    def enter(self, phase: Phase) -> None:
        """Change phase now."""
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
        """Stand in line until let in; returns with the request counted as in flight.

        Args:
            weight: The factor by which its age counts.
            never_switch: It waits for a slot only, not for a switch.
            request: Its name.
            scope: As for `InFlight.enter`.

        Raises:
            LlmuxError: Those in line were refused.
        """
        with self.waiters.join(weight, never_switch=never_switch, request=request) as waiter:
            self._on_line(self)
            await waiter.wait_granted()
            # No checkpoint since the grant, and the line is not left yet: settled means counted.
            return self.in_flight.enter(scope)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Keep the model for a request that is neither in line nor in flight, but comes back."""
        self.beside_line += 1
        try:
            yield
        finally:
            self.beside_line -= 1
            self._on_beside()

    @property
    def is_unused(self) -> bool:
        """True if no request is in it, waits for it, or will."""
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
        """Number of requests that wait: those in line, and those beside it."""
        return self.waiters.count + self.beside_line

    def _left(self, flight: Flight) -> None:
        if flight.is_passive:
            self._on_leave(self, flight)
            return
        self._frozen_left()
        self.used_at = trio.current_time()
        self._admit_more()
        self._on_leave(self, flight)

    def _settled(self) -> None:
        self._admit_more()
        self._on_line(self)

    def wake_succeeded(self) -> None:
        """Forget earlier failures."""
        self.note_woken()
        self.last_error = None

    def wake_failed(self, error: LlmuxError) -> None:
        """Put off the next try."""
        self.note_wake_failed(trio.current_time())
        self.last_error = error

    @property
    def is_warming(self) -> bool:
        """True while its server may still load: it was just woken, and has not answered yet."""
        return not self.is_warm and trio.current_time() < self.warm_by

    def note_warm(self) -> None:
        """Its backend has answered."""
        self.is_warm = True
        self.falls = 0

    def fell(self) -> None:
        """Note that it was found down while it may still have been loading.

        The first time it may be woken again at once, then after 2 s, doubling to 60 s.
        """
        if self.falls:
            self.retry_at = trio.current_time() + retry_delay_s(self.falls - 1)
        self.falls += 1

    def view(self) -> ModelView:
        """Return the facts about it that a policy may use: WebSockets that yield are no use."""
        return self._view(self.in_flight.in_use - len(self.yielding))
