"""The requests in line for one model, and the settle barrier.

A request joins the line with `with waiters.join() as waiter`, awaits `waiter.wait_granted()`, and
takes its in-flight guard *before* it leaves the `with`. Leaving settles it, however it leaves:
granted, refused, cancelled or too late. `grant` returns only when all whom it granted have settled;
so when it returns, each of them is in flight or gone, and a switch that starts then cannot pull the
model away from a request that it woke.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import trio

from llmux.errors import LlmuxError
from llmux.policy.ages import Ages


class Waiter:
    """One request in line; told its fate over a memory channel of its own, at most once."""

    __slots__ = ("_receive", "_send", "arrived_at", "never_switch", "request", "weight")

    def __init__(self, weight: float, never_switch: bool, request: str) -> None:
        self.arrived_at = trio.current_time()
        self.never_switch = never_switch
        self.request = request
        self.weight = weight
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
    """The line of one model, oldest first.

    Attributes:
        ages: How long those in line have waited, all together.

    `on_settle()` is called after each that has settled.
    """

    def __init__(self, on_settle: Callable[[], None] = lambda: None) -> None:
        self.ages = Ages()
        self._on_settle = on_settle
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
    def settling(self) -> int:
        """How many have a grant and are neither in flight nor gone yet."""
        return len(self._settling)

    @property
    def oldest(self) -> float | None:
        """When the first in line arrived (Trio's clock, seconds); None if nobody waits."""
        return next((waiter.arrived_at for waiter in self._line), None)

    @property
    def first(self) -> str | None:
        """The name of the first in line; None if nobody waits."""
        return next((waiter.request for waiter in self._line), None)

    @contextmanager
    def join(
        self, weight: float = 1.0, *, never_switch: bool = False, request: str = ""
    ) -> Iterator[Waiter]:
        """Stand in line for as long as the context lasts; leaving it settles.

        Args:
            weight: What this one's age counts for.
            never_switch: It waits for a slot only, not for a switch.
            request: Its name.
        """
        waiter = Waiter(weight, never_switch, request)
        self._line[waiter] = None
        self.ages.add(waiter.arrived_at, weight)
        try:
            yield waiter
        finally:
            self._settle(waiter)
            waiter.close()

    def _settle(self, waiter: Waiter) -> None:
        self._take_out(waiter)
        self._settling.discard(waiter)
        if not self._settling:
            self._settled.set()
        self._on_settle()

    def _take_out(self, waiter: Waiter) -> None:
        if waiter in self._line:
            del self._line[waiter]
            self.ages.remove(waiter.arrived_at, waiter.weight)

    def let_in(self, room: float = math.inf) -> None:
        """Grant the first `room` in line, and do not wait for them; `wait_settled` does."""
        granted = list(self._line if room == math.inf else islice(self._line, max(0, int(room))))
        if granted and not self._settling:
            self._settled = trio.Event()
        for waiter in granted:
            self._take_out(waiter)
            self._settling.add(waiter)
            waiter.tell_nowait(None)

    async def grant(self, room: float = math.inf) -> None:
        """Let in the first `room` in line; returns once each of them has settled."""
        self.let_in(room)
        await self._settled.wait()

    async def wait_settled(self) -> None:
        """Wait until each that was granted is in flight or gone."""
        await self._settled.wait()

    def refuse(
        self, error: LlmuxError, only: Callable[[Waiter], bool] = lambda _waiter: True
    ) -> None:
        """Send everyone who waits now away with `error`, or some of them."""
        for waiter in list(filter(only, self._line)):
            self._take_out(waiter)
            waiter.tell_nowait(error)
