"""The requests inside one model: counted without a gap, waited for, and cut if need be."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import trio

from llmux.config import OnSwitch
from llmux.errors import BackendRefused, LlmuxError, StreamCut


class Carrier(Protocol):
    """What carries a WebSocket.

    Attributes:
        message_at: When it carried a message last, or was opened (Trio's clock, seconds).
    """

    message_at: float


class InFlight:
    """The requests in flight on one model.

    Entering and leaving are synchronous, so a count can neither be seen half-changed nor leak
    through a cancellation. `on_leave(flight)` is called after each request that leaves.

    Attributes:
        frozen_s: For how long those inside were frozen with their model, in all, in seconds.
        passive: How many of those inside are passive.
    """

    def __init__(self, on_leave: Callable[[Flight], None] = lambda _: None) -> None:
        self._on_leave = on_leave
        self.passive = 0
        self._flights: dict[Flight, None] = {}  # in order of entry
        self._sockets: dict[Flight, Carrier] = {}  # those of them that are WebSockets
        # self._empty.is_set() == (self.count == 0). Events cannot un-happen, so each busy period
        # gets a new one.
        self._empty = trio.Event()
        self._empty.set()
        self.frozen_s = 0.0

    def __repr__(self) -> str:
        return f"<InFlight {self.count}>"

    @property
    def count(self) -> int:
        """How many requests are in flight at this instant."""
        return len(self._flights)

    @property
    def in_use(self) -> int:
        """How many of them use the model: all but those that are passive."""
        return len(self._flights) - self.passive

    @property
    def oldest(self) -> float | None:
        """When the longest-running request entered (Trio's clock, seconds); None if none is in."""
        return next((flight.entered_at for flight in self._flights), None)

    def enter(self, scope: trio.CancelScope | None = None, *, is_passive: bool = False) -> Flight:
        """Count one more request, until the returned context is left.

        Args:
            scope: What to cancel to cut the request: a scope that is around it already. Without
                one, the context has its own.
            is_passive: Whether it only looks at the model, and is no use of it.
        """
        flight = Flight(self, scope, is_passive=is_passive)
        if not self._flights:
            self._empty = trio.Event()
        self._flights[flight] = None
        self.passive += is_passive
        flight.company = len(self._flights) - self.passive
        return flight

    def leave(self, flight: Flight) -> None:
        """Count one less; what `Flight` calls when it ends."""
        del self._flights[flight]
        if self._sockets:
            self._sockets.pop(flight, None)
        self.passive -= flight.is_passive
        if not self._flights:
            self._empty.set()
        self._on_leave(flight)

    def open_socket(self, flight: Flight, carrier: Carrier) -> None:
        """A request has become a WebSocket, which ends when its peers like."""
        carrier.message_at = trio.current_time()
        self._sockets[flight] = carrier

    @property
    def message_at(self) -> float:
        """When a WebSocket carried a message last (Trio's clock, seconds)."""
        return max((each.message_at for each in self._sockets.values()), default=-math.inf)

    def quiet(self, idle_s: float) -> list[Flight]:
        """The WebSockets that have carried no message for so many seconds."""
        if not self._sockets:
            return []
        since = trio.current_time() - idle_s
        return [each for each, carrier in self._sockets.items() if carrier.message_at <= since]

    def yielding(self, idle_s: float) -> list[Flight]:
        """The WebSockets that no switch waits for: those that give way, and the quiet ones."""
        if not self._sockets:
            return []
        since = trio.current_time() - idle_s
        return [
            each
            for each, carrier in self._sockets.items()
            if each.socket == "cut" or carrier.message_at <= since
        ]

    def cut(self) -> None:
        """End every request in flight; each raises `StreamCut` where it stands."""
        for flight in self._flights:
            flight.cut()

    async def wait_empty(self) -> None:
        """Wait until no request is in flight."""
        await self._empty.wait()


class Flight:
    """One request in flight: `with in_flight.enter(): ...` lasts until its last byte is sent.

    Attributes:
        entered_at: When it entered (Trio's clock, seconds).
        company: How many used the model then, itself included.
        is_passive: Whether it only looks at the model.
        is_whole: Whether it ended by itself: nothing was raised in it.
        is_in: Whether it has not ended yet.
        is_counted: Whether it counts as in flight until then.
        socket: What it is to a switch, if it is a WebSocket; None: it is none.
        on_cut: Called when it is cut, for what a cancelled scope does not end.
    """

    __slots__ = (
        "_frozen_before_s", "_in_flight", "_is_cut", "_own_scope", "_scope", "_why", "company",
        "entered_at", "is_counted", "is_in", "is_passive", "is_whole", "on_cut", "socket",
    )  # fmt: skip

    def __init__(
        self, in_flight: InFlight, scope: trio.CancelScope | None, *, is_passive: bool
    ) -> None:
        self._in_flight = in_flight
        self.is_passive = is_passive
        self._own_scope = trio.CancelScope() if scope is None else None
        self._scope = scope or self._own_scope
        self._is_cut = False
        self._why: LlmuxError | None = None
        self.entered_at = trio.current_time()
        self._frozen_before_s = in_flight.frozen_s
        self.company = 1
        self.is_whole = False
        self.is_in = self.is_counted = True
        self.socket: OnSwitch | None = None
        self.on_cut: Callable[[], None] | None = None

    @property
    def served_s(self) -> float:
        """For how long it has been in, in seconds, less those for which it was frozen."""
        frozen_s = self._in_flight.frozen_s - self._frozen_before_s
        return trio.current_time() - self.entered_at - frozen_s

    def open_socket(self, carrier: Carrier, how: OnSwitch) -> None:
        """It has become a WebSocket.

        Args:
            carrier: Knows when it is used.
            how: What it is to a switch that waits.
        """
        self.socket = how
        if how == "ignore":  # nothing waits for it from now on
            self.is_counted = False
            self._in_flight.leave(self)
        else:
            self._in_flight.open_socket(self, carrier)

    def cut(self, why: LlmuxError | None = None) -> None:
        """Cancel what runs inside; the context then raises `StreamCut`.

        Args:
            why: What to tell its client; None: that the model is put to sleep. The first counts.
        """
        if not self._is_cut:
            self._is_cut, self._why = True, why
        assert self._scope is not None
        self._scope.cancel()
        if self.on_cut is not None:
            self.on_cut()

    def __enter__(self) -> Flight:
        if self._own_scope is not None:
            self._own_scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self.is_whole = kind is None
        self.is_in = False
        try:
            handled = self._own_scope is not None and self._own_scope.__exit__(
                kind, error, traceback
            )
        finally:
            if self.is_counted:
                self._in_flight.leave(self)
        # Refused in the same instant, it would be tried again in a scope that is cancelled.
        is_ended = error is not None and is_cancellation(error)
        if self._is_cut and (is_ended or isinstance(error, BackendRefused)):
            raise StreamCut(self._why) from None
        return handled


def is_cancellation(error: BaseException) -> bool:
    """Whether an error is Trio's way to end what was cancelled, from one task or from several."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
