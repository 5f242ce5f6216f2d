"""What is held in memory for clients, counted against `limits.queued_bytes`.

A request counts with its head from when that was parsed, and with its body from the first byte,
until its backend has begun to answer: until then it may have to be sent once more. An answer of
llmux's own counts until the client has taken it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmux.config import Limits
from llmux.errors import BodyTooLarge, QueueFull

RETRY_AFTER_S = 5.0
"""When a client that was sent away may try again: nobody knows yet what its request was for."""

FIELD_BYTES = 176
"""What a parsed header field takes beside its text: two objects of bytes, rounded up, in a tuple in
a list (CPython 3.11 on 64 bits: 33 + 33 + 56 + 8, and up to 46 of rounding)."""

SMALL_OWN_BYTES = 65536
"""Up to here a request for llmux's own paths, and its answer, is never refused: the memory is
bounded by the number of connections, and health, errors and an operator's orders must get through
when everything is full."""


class Bodies:
    """All of it together.

    Attributes:
        held_bytes: How much there is.
        most_bytes: The largest body that is taken.
        longest_s: How long one may take to arrive, in seconds.
        limit_bytes: How many there may be.
    """

    def __init__(self, limits: Limits) -> None:
        self.held_bytes = 0
        self.apply(limits)

    def apply(self, limits: Limits) -> None:
        """Use other limits from now on."""
        self.most_bytes = limits.body_bytes
        self.longest_s = limits.body_secs
        self.limit_bytes = limits.queued_bytes

    @contextmanager
    def answering(self, length_bytes: int) -> Iterator[None]:
        """Count an answer of llmux's own for as long as its client takes.

        Raises:
            QueueFull: It is large, and there is no room.
        """
        if length_bytes > SMALL_OWN_BYTES:
            self.check_room(length_bytes)
        with self.streaming(length_bytes):
            yield

    @contextmanager
    def streaming(self, length_bytes: int) -> Iterator[None]:
        """Count a piece of an answer that has begun: it is too late to refuse it."""
        self.held_bytes += length_bytes
        try:
            yield
        finally:
            self.held_bytes -= length_bytes

    def check_room(self, for_bytes: int) -> None:
        """Raise QueueFull if there is none."""
        if self.held_bytes + for_bytes > self.limit_bytes:
            message = f"Waiting requests and answers fill {self.limit_bytes} bytes"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)


class Message:
    """A message of a WebSocket that is coming, or that waits to be taken.

    One of up to `SMALL_OWN_BYTES` is never refused: WebSockets that are in use must go on when
    everything is full.
    """

    def __init__(self, bodies: Bodies | None) -> None:
        """Count nothing yet.

        Args:
            bodies: What it belongs to; None: it is not counted.
        """
        self._bodies = bodies
        self._held = 0

    def grow(self, by: int) -> None:
        """Count more bytes of it; raises QueueFull."""
        if self._bodies is not None:
            if self._held + by > SMALL_OWN_BYTES:
                self._bodies.check_room(by)
            self._bodies.held_bytes += by
            self._held += by

    def release(self) -> None:
        """Stop counting it. May be called again."""
        if self._bodies is not None:
            self._bodies.held_bytes -= self._held
            self._held = 0


class Body:
    """One request's body, and what its head takes.

    Attributes:
        data: What of it is there; empty once it was released.
        received_bytes: How much of it has come, in all.
    """

    __slots__ = ("_bodies", "_free_bytes", "_head_bytes", "_held", "data", "received_bytes")

    def __init__(
        self, bodies: Bodies, *, text_bytes: int = 0, fields: int = 0, free_bytes: int = 0
    ) -> None:
        """Count nothing yet.

        Args:
            bodies: What it belongs to.
            text_bytes: How long the head is.
            fields: How many header fields it has.
            free_bytes: Up to where it is never refused for want of room.
        """
        self._bodies = bodies
        self._free_bytes = free_bytes
        self._head_bytes = text_bytes + FIELD_BYTES * fields
        self._held = 0
        self.received_bytes = 0
        self.data = b""

    @property
    def most_bytes(self) -> int:
        """How long it may be."""
        return self._bodies.most_bytes

    @property
    def longest_s(self) -> float:
        """How long it may take to arrive, in seconds."""
        return self._bodies.longest_s

    def announce(self, length: int) -> None:
        """The client says how long it will be; raises BodyTooLarge."""
        if length > self._bodies.most_bytes:
            raise BodyTooLarge(self._bodies.most_bytes)

    def count_head(self) -> None:
        """The request is taken: its head counts from now on, however often this is called.

        Raises:
            QueueFull: There is no room for it.
        """
        self._hold(self._head_bytes)
        self._head_bytes = 0

    def grow(self, by: int) -> None:
        """So many bytes of it have been received.

        Raises:
            BodyTooLarge, QueueFull: It is not taken, and what there is of it counts no more: to
                tell the client may take a while, in which others could have the room.
        """
        self.received_bytes += by
        if self.received_bytes > self._bodies.most_bytes:
            self.release()
            raise BodyTooLarge(self._bodies.most_bytes)
        self._hold(by)

    @contextmanager
    def copying(self) -> Iterator[Callable[[int], None]]:
        """Count a copy of it, decompressed, for as long as that is looked at.

        Yields:
            Called with the number of bytes by which it has grown; raises QueueFull.
        """
        held = 0

        def grow(by: int) -> None:
            nonlocal held
            self._bodies.check_room(by)
            self._bodies.held_bytes += by
            held += by

        try:
            yield grow
        finally:
            self._bodies.held_bytes -= held

    def swap(self, data: bytes) -> None:
        """Hold this in its place, decompressed; raises QueueFull."""
        self._hold(len(data) - len(self.data))
        self.data = data

    def release(self) -> None:
        """It is not needed any more; harmless when repeated."""
        self._bodies.held_bytes -= self._held
        self._held = 0
        self.data = b""

    def _hold(self, by: int) -> None:
        if self._held + by > self._free_bytes:
            try:
                self._bodies.check_room(by)
            except QueueFull:
                self.release()
                raise
        self._bodies.held_bytes += by
        self._held += by
