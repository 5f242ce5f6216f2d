"""The event feed: an hour of memory, and batches for event streams.

Telling never waits: it leaves an object here. One task seals what has come into a batch, encoded
once; each reader goes through the batches at its own speed, and one that falls behind the oldest is
dropped. What changes with every request is not told but looked up once a batch (`look_up`), and
only while somebody reads: so watching costs the data path nothing.
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
from llmux.observe.schemas import Counts, History, HookRun, PhaseChange, Shape, SwitchRecord

TICK_S = 0.25
"""Interval between batches while somebody reads."""

IDLE_TICK_S = 1.0
"""Interval between remembered counts, and between looks while nobody reads."""

GRACE_S = 30.0
"""Time for which batches are kept after the last reader has left, in case it comes back."""

RING_BYTES = 4 << 20
"""Size of the kept batches: beyond it the oldest go, and readers that are so far behind."""

PIECE_BYTES = 256 << 10
"""Approximate size of one piece for a reader."""

KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b":\n\n"
"""A comment sent after such a silence: proxies on the way close silent streams."""

REMEMBERED_S = 3600.0
"""How far back the memory goes."""

MOST_REMEMBERED = 20_000
"""Remembered events of each kind; an hour has far fewer switches."""

Look = Callable[[], tuple[str, Shape] | None]
"""Returns what has changed since its last call, as kind and object; None: nothing."""


class Lagged(Exception):
    """The reader has fallen behind: batches that it has not seen are gone."""


class Memory:
    """The events of the last hour."""

    def __init__(self) -> None:
        self.phases: deque[PhaseChange] = deque(maxlen=MOST_REMEMBERED)
        self.hooks: deque[HookRun] = deque(maxlen=MOST_REMEMBERED)
        self.counts: deque[Counts] = deque(maxlen=MOST_REMEMBERED)
        self._switches: dict[int, SwitchRecord] = {}  # by number, that is, oldest first
        self._counted: dict[str, tuple[int, int]] = {}

    def keep(self, shape: Shape) -> None:
        """Remember a shape, if it is of a kind that is remembered."""
        if isinstance(shape, PhaseChange):
            self.phases.append(shape)
        elif isinstance(shape, SwitchRecord):
            self._switches[shape.id] = shape
            if len(self._switches) > MOST_REMEMBERED:
                del self._switches[next(iter(self._switches))]
        elif isinstance(shape, HookRun) and shape.duration_secs is not None:
            self.hooks.append(shape)

    def count(self, at: float, counted: Mapping[str, tuple[int, int]]) -> None:
        """Remember how many requests there are, where that has changed."""
        if changed := changes(self._counted, counted):
            self._counted = dict(counted)
            self.counts.append(Counts(at=at, models=changed))

    def history(self, now: float, secs: float, last_event_id: str) -> History:
        """What happened in the last so many seconds."""
        since = now - min(secs, REMEMBERED_S)
        return History(
            at=now,
            last_event_id=last_event_id,
            phases=[each for each in self.phases if each.at >= since],
            switches=[s for s in self._switches.values() if (s.ended or now) >= since],
            hooks=[each for each in self.hooks if each.started >= since],
            counts=[each for each in self.counts if each.at >= since],
        )


def changes(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """The counts that differ; models that are gone have none."""
    gone = {name: (0, 0) for name in before if name not in now and before[name] != (0, 0)}
    return gone | {name: pair for name, pair in now.items() if before.get(name) != pair}


class Reader:
    """An async iterator over the pieces of one event stream; it must be closed.

    It ends when the feed does, and when it has fallen behind; its last event is `lagged` then.
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
    """Collects events, and hands them to readers in batches.

    Attributes:
        boot: Identifies this start of llmux.
        started_at: Unix time of it, in seconds.
        clock: Turns Trio times into Unix times.
        memory: The events of the last hour.
    """

    def __init__(self, clock: WallClock | None = None) -> None:
        self.boot = os.urandom(3).hex()
        self.started_at = time.time()
        self.clock = clock or WallClock()
        self.memory = Memory()
        self._pending: list[bytes] = []
        self._ring: deque[tuple[int, bytes]] = deque()
        self._ring_bytes = 0
        self._last = 0  # number of the last batch
        self._readers: set[Reader] = set()
        self._heard_until = -math.inf
        self._sealed = RepeatedEvent()
        self._came = RepeatedEvent()  # somebody who reads
        self._has_ended = False
        self._looks: list[Look] = []
        self._count: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self._told: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Feed {len(self._readers)} readers, batch {self._last}>"

    # ---- Telling ----

    def tell(self, kind: str, shape: Shape) -> None:
        """Remember an event, and queue it for readers if there are any."""
        self.memory.keep(shape)
        if self.is_heard:
            self._pending.append(encode_event(kind, msgspec.json.encode(shape)))

    def look_up(self, look: Look) -> None:
        """Call this before each batch."""
        self._looks.append(look)

    def watch_counts(self, count: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Call this for the requests in flight and waiting, by model."""
        self._count = count

    # ---- Reading ----

    @property
    def is_heard(self) -> bool:
        """True if somebody reads, or may come back."""
        return bool(self._readers) or trio.current_time() < self._heard_until

    @property
    def has_ended(self) -> bool:
        """True if event streams are to end."""
        return self._has_ended

    @property
    def last_event_id(self) -> str:
        """The id of the last batch, sealed now."""
        self._seal()
        return f"{self.boot}-{self._last}"

    def reading(self, first: Callable[[], Shape], last_event_id: str = "") -> Reader:
        """A reader; as long as nothing is read, what happens is kept for a while only.

        Args:
            first: Makes what it is told first, as `status`, unless it can go on where it was.
            last_event_id: The last event that was seen; empty: none.
        """
        self._keep_on()
        boot, _, number = last_event_id.rpartition("-")
        # An int of thousands of digits would be an error.
        knows = boot == self.boot and number.isdecimal() and len(number) < 20
        if knows and self._oldest - 1 <= int(number) <= self._last:
            return Reader(self, int(number))
        status = b"id: %b\n" % self.last_event_id.encode()
        status += encode_event("status", msgspec.json.encode(first()))
        return Reader(self, self._last, status)

    def history(self, secs: float) -> History:
        """What happened in the last so many seconds; who reads on within a while misses nothing."""
        self._keep_on()
        return self.memory.history(self.clock.now(), secs, self.last_event_id)

    def _keep_on(self) -> None:
        """Keep what happens from here on for a while, for somebody who will read it."""
        if not self.is_heard:  # what changed before is known from the status, or the history
            self._forget_all()
            self._last += 1  # nobody may go on across what was not kept
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
        """Forget a reader; batches are kept for a while, in case it comes back."""
        self._readers.discard(reader)
        self._heard_until = trio.current_time() + GRACE_S

    async def next_after(self, after: int) -> tuple[int, bytes]:
        """The number of the last batch given, and batches; nothing once the feed has ended.

        Raises:
            Lagged: Some of them are gone.
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
        """End all event streams, once they have sent what there is."""
        self._seal()
        self._has_ended = True
        self._sealed.set()

    def _look(self) -> None:
        """Look up changes, and seal the batch."""
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
        # One id for all: a reader that was cut off in the middle gets them all again.
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
    """One event of a stream of events."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
