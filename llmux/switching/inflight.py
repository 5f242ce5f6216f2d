"""The requests in flight on one model: count them, wait for them, cut them."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import trio

from llmux.config import OnSwitch
from llmux.errors import BackendRefused, LlmuxError, StreamCut
from llmux.switching.lines import Occupancy


class Carrier(Protocol):
    """The connection of a WebSocket.

    Attributes:
        message_at: When it last carried a message, or was opened (Trio's clock, seconds).
    """

    message_at: float


class InFlight(Occupancy):
    """The requests in flight on one model: those counted in `in_use`, and passive ones.

    Entering and leaving are synchronous, so a count can neither be seen half-changed nor leak
    through a cancellation. `on_leave(flight)` is called after each request that leaves.

    Attributes:
        passive: Number of passive requests, which only inspect the model.
    """

    def __init__(self, on_leave: Callable[[Flight], None] = lambda _: None) -> None:
        super().__init__()
        self._on_leave = on_leave
        self.passive = 0
        self._flights: dict[Flight, None] = {}  # in order of entry
        self._sockets: dict[Flight, Carrier] = {}  # the WebSockets among them
        # self._empty.is_set() == (self.count == 0). Events cannot un-happen, so each busy period
        # gets a new one.
        self._empty = trio.Event()
        self._empty.set()

    def __repr__(self) -> str:
        return f"<InFlight {self.count}>"

    @property
    def count(self) -> int:
        """Number of requests in flight, passive ones included."""
        return len(self._flights)

    @property
    def oldest(self) -> float | None:
        """When the longest-running request entered (Trio's clock, seconds), or None."""
        return next((flight.entered_at for flight in self._flights), None)

    def enter(self, scope: trio.CancelScope | None = None, *, is_passive: bool = False) -> Flight:
        """Count one more request, until the returned context is left.

        Args:
            scope: A scope around the request, cancelled to cut it. None: the context has its own.
            is_passive: True if it only inspects the model, and does not count as use of it.
        """
        flight = Flight(self, scope, is_passive=is_passive)
        if not self._flights:
            self._empty = trio.Event()
        self._flights[flight] = None
        if is_passive:
            self.passive += 1
        else:
            self.in_use += 1
        flight.company = self.in_use
        return flight

    def leave(self, flight: Flight) -> None:
        """Count one request less; called by `Flight` when it ends."""
        del self._flights[flight]
        if self._sockets:
            self._sockets.pop(flight, None)
        if flight.is_passive:
            self.passive -= 1
        else:
            self.in_use -= 1
        if not self._flights:
            self._empty.set()
        self._on_leave(flight)

    def open_socket(self, flight: Flight, carrier: Carrier) -> None:
        """Note that a request is now a WebSocket, which may stay open indefinitely."""
        carrier.message_at = trio.current_time()
        self._sockets[flight] = carrier

    @property
    def message_at(self) -> float:
        """When any WebSocket last carried a message (Trio's clock, seconds)."""
        return max((each.message_at for each in self._sockets.values()), default=-math.inf)

    def quiet(self, idle_s: float) -> list[Flight]:
        """Return the WebSockets that have carried no message for `idle_s` seconds."""
        if not self._sockets:
            return []
        since = trio.current_time() - idle_s
        return [each for each, carrier in self._sockets.items() if carrier.message_at <= since]

    def yielding(self, idle_s: float) -> list[Flight]:
        """Return the WebSockets that no switch waits for: `on_switch: cut`, and quiet ones."""
        if not self._sockets:
            return []
        since = trio.current_time() - idle_s
        return [
            each
            for each, carrier in self._sockets.items()
            if each.socket == "cut" or carrier.message_at <= since
        ]

    def cut(self, why: LlmuxError | None = None) -> None:
        """Cut every request in flight; see `Flight.cut`."""
        for flight in list(self._flights):
            flight.cut(why)

    async def wait_empty(self) -> None:
        await self._empty.wait()


class Flight:
    """One request in flight: `with in_flight.enter(): ...` lasts until its last byte is sent.

    Attributes:
        entered_at: When it entered (Trio's clock, seconds).
        company: Number of requests that used the model when it entered, itself included.
        is_passive: True if it only inspects the model.
        is_whole: True once it has ended normally, without an exception.
        is_in: True until it has ended.
        is_counted: True if it counts as in flight until it has ended.
        socket: How a switch treats it if it is a WebSocket; None if it is not one.
        on_cut: Called when it is cut, to end work that cancelling the scope does not end.
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
        """Seconds since it entered, without those for which it was frozen."""
        frozen_s = self._in_flight.frozen_s - self._frozen_before_s
        return trio.current_time() - self.entered_at - frozen_s

    def open_socket(self, carrier: Carrier, how: OnSwitch) -> None:
        """Note that the request is now a WebSocket.

        Args:
            carrier: Its connection.
            how: How a switch treats it.
        """
        self.socket = how
        if how == "ignore":  # nothing waits for it from now on
            self.is_counted = False
            self._in_flight.leave(self)
        else:
            self._in_flight.open_socket(self, carrier)

    def cut(self, why: LlmuxError | None = None) -> None:
        """Cancel the request; the context then raises `StreamCut`.

        Args:
            why: The error for its client; None: the model is put to sleep. Only the first cut
                counts.
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
        # BackendRefused at the same instant counts as the cut, too: otherwise the request would be
        # retried in a cancelled scope.
        is_ended = error is not None and is_cancellation(error)
        if self._is_cut and (is_ended or isinstance(error, BackendRefused)):
            raise StreamCut(self._why) from None
        return handled


def is_cancellation(error: BaseException) -> bool:
    """Return whether an error is Trio's cancellation, of one task or of several."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
