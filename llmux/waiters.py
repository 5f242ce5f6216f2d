"""The requests in line for one model, and the settle barrier.

A request joins the line with `with waiters.join() as waiter`, awaits `waiter.wait_granted()`, and
takes its in-flight guard *before* it leaves the `with`. Leaving settles it, however it leaves:
granted, refused, cancelled or too late. `grant` returns only when all whom it granted have settled;
so when it returns, each of them is in flight or gone, and a switch that starts then cannot pull
the model away from a request that it woke.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from llmux.errors import LlmuxError


class Waiter:
    """One request in line; told its fate over a memory channel of its own, at most once."""

    __slots__ = ("_receive", "_send", "arrived_at")

    def __init__(self) -> None:
        self.arrived_at = trio.current_time()
        # Size 1: telling never blocks, and a fate that is told before the waiter looks is kept.
        self._send, self._receive = trio.open_memory_channel[LlmuxError | None](1)

    def tell_nowait(self, error: LlmuxError | None) -> None:
        """Grant (None) or refuse (an error to raise)."""
        self._send.send_nowait(error)

    async def wait_granted(self) -> None:
        """Wait for the grant.

        Raises:
            LlmuxError: The refusal.
        """
        error = await self._receive.receive()
        if error is not None:
            # One error goes to many waiters; without this each raise would lengthen its traceback.
            raise error.with_traceback(None)

    def close(self) -> None:
        """Close the channel; nobody will tell or ask any more."""
        self._send.close()
        self._receive.close()


class Waiters:
    """The line of one model, oldest first."""

    def __init__(self) -> None:
        self._line: dict[Waiter, None] = {}  # neither granted nor refused yet; in arrival order
        self._settling: set[Waiter] = set()  # granted, not yet settled
        # self._settled.is_set() == (not self._settling)
        self._settled = trio.Event()
        self._settled.set()

    def __repr__(self) -> str:
        return f"<Waiters {self.count} waiting, {len(self._settling)} settling>"

    @property
    def count(self) -> int:
        """How many requests wait at this instant, those with a grant not among them."""
        return len(self._line)

    @property
    def oldest(self) -> float | None:
        """When the first in line arrived (Trio's clock, seconds); None if nobody waits."""
        return next((waiter.arrived_at for waiter in self._line), None)

    @contextmanager
    def join(self) -> Iterator[Waiter]:
        """Stand in line for as long as the context lasts; leaving it settles."""
        waiter = Waiter()
        self._line[waiter] = None
        try:
            yield waiter
        finally:
            self._settle(waiter)
            waiter.close()

    def _settle(self, waiter: Waiter) -> None:
        self._line.pop(waiter, None)
        self._settling.discard(waiter)
        if not self._settling:
            self._settled.set()

    async def grant(self) -> None:
        """Let in everyone who waits now; returns once each of them has settled."""
        granted, self._line = list(self._line), {}
        if granted:
            self._settling.update(granted)
            self._settled = trio.Event()
        for waiter in granted:
            waiter.tell_nowait(None)
        await self._settled.wait()

    def refuse(self, error: LlmuxError) -> None:
        """Send everyone who waits now away with `error`."""
        refused, self._line = list(self._line), {}
        for waiter in refused:
            waiter.tell_nowait(error)
