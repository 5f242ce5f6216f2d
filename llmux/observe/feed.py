"""The event feed: an hour of memory, and batches for event streams.

Emitting an event never waits: it only appends an object here. One task seals pending events into a
batch, encoded once for all readers. Each reader goes through the batches at its own speed, and is
dropped if it falls behind the oldest batch. State that changes with every request is not emitted
but polled once per batch (`look_up`), and only while there are readers, so it costs the data path
nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import msgspec
import trio
from trio_util import RepeatedEvent

from llmux.observe.clock import WallClock
from llmux.observe.memory import MOST_REMEMBERED, REMEMBERED_S, Memory, Recalled, changes
from llmux.observe.schemas import Counts, History, Shape

TICK_S = 0.25
"""Interval between batches while there are readers."""

IDLE_TICK_S = 1.0
"""Interval between remembered counts, and of the loop while there are no readers."""

GRACE_S = 30.0
"""Time for which batches are kept after the last reader has left, in case it reconnects."""

RING_BYTES = 4 << 20
"""Total size of the kept batches; beyond it the oldest are dropped, with the readers at them."""

PIECE_BYTES = 256 << 10
"""Approximate size of one piece for a reader."""

KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b":\n\n"
"""A comment sent after this much silence, since proxies close silent streams."""

__all__ = ["MOST_REMEMBERED", "REMEMBERED_S"]

Look = Callable[[], tuple[str, Shape] | None]
"""Returns the changes since its last call, as kind and object, or None."""


class Lagged(Exception):
    """Raised when a reader has fallen behind and has missed batches."""


class Reader:
    """An async iterator over the pieces of one event stream; it must be closed.

    It ends when the feed ends, or after an event `lagged` when it has fallen behind.
    """

    def __init__(self, feed: Feed, after: int, first: bytes = b"") -> None:
        self._feed = feed
        self._after = after
        self._first = first
        self._is_over = False

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        self._feed.add(self)
        if self._first:
            piece, self._first = self._first, b""
            return piece
        piece = KEEP_ALIVE
        try:
            with trio.move_on_after(KEEP_ALIVE_S):
                self._after, piece = await self._feed.next_after(self._after)
        except Lagged:
            self._is_over = True
            return encode_event("lagged", b"{}")
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._feed.remove(self)


class Feed:
    """Collects events, and gives them to readers in batches.

    Attributes:
        boot: Identifies this start of llmux.
        started_at: Unix time of the start, in seconds.
        clock: Turns Trio times into Unix times.
        memory: The events of the last hour.
    """

    def __init__(self, clock: WallClock | None = None) -> None:
        self.boot = os.urandom(3).hex()
        self.started_at = time.time()
        self.clock = clock or WallClock()
        self.memory = Memory(self.started_at)
        self._recalled: trio.Event | None = None  # while the memory of earlier runs is read
        self._pending: list[bytes] = []
        self._ring: deque[tuple[int, bytes]] = deque()
        self._ring_bytes = 0
        self._last = 0  # number of the last batch
        self._readers: set[Reader] = set()
        self._heard_until = -math.inf
        self._sealed = RepeatedEvent()
        self._came = RepeatedEvent()  # set when a reader arrives
        self._has_ended = False
        self._looks: list[Look] = []
        self._count: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self._told: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Feed {len(self._readers)} readers, batch {self._last}>"

    # ---- Emitting ----

    def tell(self, kind: str, shape: Shape) -> None:
        """Remember an event, and queue it for readers if there are any."""
        self.memory.keep(shape)
        if self.is_heard:
            self._pending.append(encode_event(kind, msgspec.json.encode(shape)))

    def tell_now(self, kind: str, shape: Shape) -> None:
        """Like `tell`, in a batch of its own, which readers get at once."""
        self.tell(kind, shape)
        self._seal()

    def look_up(self, look: Look) -> None:
        """Register a function to call before each batch, and before the feed ends."""
        self._looks.append(look)

    def watch_counts(self, count: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Set the function that returns the requests in flight and waiting, by model."""
        self._count = count

    # ---- Reading ----

    @property
    def is_heard(self) -> bool:
        """True if there are readers, or one may reconnect."""
        return bool(self._readers) or trio.current_time() < self._heard_until

    async def wait_heard(self) -> None:
        """Wait until there is a reader."""
        while not self.is_heard:
            await self._came.wait()

    @property
    def has_ended(self) -> bool:
        """True if event streams are to end."""
        return self._has_ended

    @property
    def last_event_id(self) -> str:
        """The id of the last batch; seals pending events first."""
        self._seal()
        return f"{self.boot}-{self._last}"

    def reading(self, first: Callable[[], Shape], last_event_id: str = "") -> Reader:
        """Return a reader; until it first reads, events are kept for `GRACE_S` only.

        Args:
            first: Makes the first event, `status`, unless the reader resumes after
                `last_event_id`.
            last_event_id: The id of the last event that the client received; empty: none.
        """
        self._keep_on()
        boot, _, number = last_event_id.rpartition("-")
        # Python refuses to convert a string of thousands of digits to an int.
        knows = boot == self.boot and number.isdecimal() and len(number) < 20
        if knows and self._oldest - 1 <= int(number) <= self._last:
            return Reader(self, int(number))
        status = b"id: %b\n" % self.last_event_id.encode()
        status += encode_event("status", msgspec.json.encode(first()))
        return Reader(self, self._last, status)

    def history(self, secs: float) -> History:
        """Return the events of the last `secs` seconds.

        A reader that starts at its `last_event_id` within `GRACE_S` misses nothing.
        """
        self._keep_on()
        return self.memory.history(self.clock.now(), secs, self.last_event_id)

    def _keep_on(self) -> None:
        """Keep the events from now on for `GRACE_S`, for a reader that is about to start."""
        if not self.is_heard:
            # Earlier changes are in the status or history that the client gets first. Skip a
            # number, so that no reader can resume across events that were not kept.
            self._forget_all()
            self._last += 1
            self._told = dict(self._count())
            for look in self._looks:
                look()
        self._heard_until = trio.current_time() + GRACE_S
        self._came.set()
        self._seal()

    @property
    def _oldest(self) -> int:
        return self._ring[0][0] if self._ring else self._last + 1

    def add(self, reader: Reader) -> None:
        self._readers.add(reader)

    def remove(self, reader: Reader) -> None:
        """Remove a reader; batches are kept for `GRACE_S`, in case it reconnects."""
        self._readers.discard(reader)
        self._heard_until = trio.current_time() + GRACE_S

    async def next_after(self, after: int) -> tuple[int, bytes]:
        """Wait for batches after number `after`; return the last one's number, and their bytes.

        The bytes are empty once the feed has ended.

        Raises:
            Lagged: Some of these batches have been dropped.
        """
        while after >= self._last:
            if self._has_ended:
                return after, b""
            await self._sealed.wait()
        if after < self._oldest - 1:
            raise Lagged
        pieces, size = [], 0
        for number, data in self._batches_after(after):
            pieces.append(data)
            after, size = number, size + len(data)
            if size >= PIECE_BYTES:
                break
        return after, b"".join(pieces)

    def _batches_after(self, after: int) -> Iterator[tuple[int, bytes]]:
        skipped = after - self._oldest + 1
        for index in range(skipped, len(self._ring)):
            yield self._ring[index]

    async def recall(self, read: Callable[[], Recalled]) -> None:
        """Add what `read` returns of earlier runs to the memory; it is called in a thread."""
        self._recalled = trio.Event()
        try:
            self.memory.recall(await trio.to_thread.run_sync(read, abandon_on_cancel=True))
        finally:
            self._recalled.set()

    async def wait_recalled(self) -> None:
        """Wait until the memory has what is known of earlier runs, if that is being read."""
        if self._recalled is not None:
            await self._recalled.wait()

    # ---- Sealing ----

    async def run(self) -> None:
        """Seal batches until cancelled."""
        counted_at = -math.inf
        try:
            while True:
                is_heard, now = self.is_heard, trio.current_time()
                if now - counted_at >= IDLE_TICK_S:
                    counted_at = now
                    self.memory.count(self.clock.now(), self._count())
                if is_heard:
                    self._look()
                elif self._ring:
                    self._forget_all()
                if is_heard:
                    await trio.sleep(TICK_S)
                else:
                    with trio.move_on_after(IDLE_TICK_S):
                        await self._came.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """End all event streams, once they have sent all pending events."""
        if self.is_heard and not self._has_ended:
            self._look()
        self._seal()
        self._has_ended = True
        self._sealed.set()

    def _look(self) -> None:
        """Poll for changes, and seal the batch."""
        counted = self._count()
        if changed := changes(self._told, counted):
            self._told = dict(counted)
            self.tell("counts", Counts(at=self.clock.now(), models=changed))
        for look in self._looks:
            if (found := look()) is not None:
                self.tell(*found)
        self._seal()

    def _seal(self) -> None:
        if not self._pending:
            return
        self._last += 1
        # One id for the whole batch: a reader that was cut off within it gets all of it again.
        data = b"".join([*self._pending[:-1], b"id: %s-%d\n" % (self.boot.encode(), self._last)])
        data += self._pending[-1]
        self._pending.clear()
        self._ring.append((self._last, data))
        self._ring_bytes += len(data)
        while self._ring_bytes > RING_BYTES and len(self._ring) > 1:
            self._ring_bytes -= len(self._ring.popleft()[1])
        self._sealed.set()

    def _forget_all(self) -> None:
        self._ring.clear()
        self._ring_bytes = 0


def encode_event(kind: str, data: bytes) -> bytes:
    """Return one server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
