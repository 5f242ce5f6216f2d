"""The requests in line for one model, and the settle barrier.

A request joins the line using `with waiters.join() as waiter`, awaits `waiter.wait_granted()`, and
enters `InFlight` *before* it leaves the `with`. Leaving settles the request in every case: granted,
refused, cancelled or timed out. `grant` returns only when all requests that it granted have
settled. Each of them is then in flight or gone, so a switch that starts now cannot take the model
away from a request that was just granted. `core.Line` keeps the order; this adds Trio's part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from llmux.errors import LlmuxError
from llmux.switching.lines import Line


class Waiter:
    """One request in line; granted or refused over a memory channel of its own, at most once."""

    __slots__ = ("_receive", "_send", "arrived_at", "never_switch", "request", "weight")

    def __init__(self, weight: float, never_switch: bool, request: str) -> None:
        self.arrived_at = trio.current_time()
        self.never_switch = never_switch
        self.request = request
        self.weight = weight
        # Size 1, so that sending never blocks, and an answer sent before the waiter looks is kept.
        self._send, self._receive = trio.open_memory_channel[LlmuxError | None](1)

    def tell_nowait(self, error: LlmuxError | None) -> None:
        """Grant (None) or refuse (the error to raise)."""
        self._send.send_nowait(error)

    async def wait_granted(self) -> None:
        """Wait for the grant.

        Raises:
            LlmuxError: The refusal.
        """
        error = await self._receive.receive()
        if error is not None:
            # The same error is raised in many waiters; each raise would lengthen its traceback.
            raise error.with_traceback(None)

    def close(self) -> None:
        self._send.close()
        self._receive.close()


class Waiters(Line[Waiter]):
    """The line of one model, with a channel to each waiter, and the settle barrier.

    Args:
        on_settle: Called after each request that has settled.
    """

    __slots__ = ("_on_settle", "_settled")

    def __init__(self, on_settle: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._on_settle = on_settle
        # self._settled.is_set() == (not self.settling)
        self._settled = trio.Event()
        self._settled.set()

    def __repr__(self) -> str:
        return f"<Waiters {self.count} waiting, {self.settling} settling>"

    @property
    def first(self) -> str | None:
        """The name of the first request in line, or None."""
        return next((waiter.request for waiter in self), None)

    @contextmanager
    def join(
        self, weight: float = 1.0, *, never_switch: bool = False, request: str = ""
    ) -> Iterator[Waiter]:
        """Stay in line as long as the context lasts; leaving it settles the request.

        Args:
            weight: The factor by which its age counts.
            never_switch: True if it may wait for a slot, but not for a switch.
            request: Its name.
        """
        waiter = Waiter(weight, never_switch, request)
        self.add(waiter)
        try:
            yield waiter
        finally:
            self._settle(waiter)
            waiter.close()

    def _settle(self, waiter: Waiter) -> None:
        self.settle(waiter)
        if not self.settling:
            self._settled.set()
        self._on_settle()

    def let_in(self, room: float = math.inf) -> None:
        """Grant the first `room` requests in line, without waiting until they settle."""
        was_settled = not self.settling
        granted = self.take_first(room)
        if granted and was_settled:
            # Events cannot un-happen: each round of grants gets a new one.
            self._settled = trio.Event()
        for waiter in granted:
            waiter.tell_nowait(None)

    async def grant(self, room: float = math.inf) -> None:
        """Grant the first `room` requests in line; returns once each of them has settled."""
        self.let_in(room)
        await self._settled.wait()

    async def wait_settled(self) -> None:
        """Wait until each granted request is in flight or gone."""
        await self._settled.wait()

    def refuse(
        self, error: LlmuxError, only: Callable[[Waiter], bool] = lambda _waiter: True
    ) -> None:
        """Raise `error` in each request in line that `only` selects."""
        for waiter in list(filter(only, self)):
            self.remove(waiter)
            waiter.tell_nowait(error)
