"""Memory held for clients, counted against `limits.queued_bytes`.

A request's head counts once it is parsed, and its body from the first byte, until the backend
begins to answer: until then the request may have to be sent again. An answer of llmux's own counts
until the client has received it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmux.config import Limits
from llmux.errors import BodyTooLarge, QueueFull

RETRY_AFTER_S = 5.0
"""Fixed delay for `Retry-After`: the request's model, and so its likely wait, is not known yet."""

FIELD_BYTES = 176
"""Memory overhead of a parsed header field: two bytes objects, rounded up, in a tuple in a list
(CPython 3.11 on 64 bits: 33 + 33 + 56 + 8, and up to 46 of rounding)."""

SMALL_OWN_BYTES = 65536
"""Requests for llmux's own paths, and their answers, are never refused up to this size. Health
checks, errors and operators' orders must get through when memory is full, and the number of
connections bounds what they take."""


class Bodies:
    """The total of all bodies, messages and answers in memory, and its limits.

    Attributes:
        held_bytes: The total.
        most_bytes: Limit for one body.
        longest_s: Seconds that one body may take to arrive.
        limit_bytes: Limit for the total.
    """

    def __init__(self, limits: Limits) -> None:
        self.held_bytes = 0
        self.apply(limits)

    def apply(self, limits: Limits) -> None:
        self.most_bytes = limits.body_bytes
        self.longest_s = limits.body_secs
        self.limit_bytes = limits.queued_bytes

    @contextmanager
    def answering(self, length_bytes: int) -> Iterator[None]:
        """Count an answer of llmux's own while it is sent.

        Raises:
            QueueFull: No room for a large answer.
        """
        if length_bytes > SMALL_OWN_BYTES:
            self.check_room(length_bytes)
        with self.streaming(length_bytes):
            yield

    @contextmanager
    def streaming(self, length_bytes: int) -> Iterator[None]:
        """Count part of an answer that has begun; it is too late to refuse it."""
        self.held_bytes += length_bytes
        try:
            yield
        finally:
            self.held_bytes -= length_bytes

    def check_room(self, for_bytes: int) -> None:
        """Raise QueueFull unless there is room for so many more bytes."""
        if self.held_bytes + for_bytes > self.limit_bytes:
            message = f"Waiting requests and answers fill {self.limit_bytes} bytes"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)


class Message:
    """The memory of one WebSocket message that is arriving, or waits to be consumed.

    It is never refused up to `SMALL_OWN_BYTES`: WebSockets in use must go on when memory is full.

    Args:
        bodies: The total to count it in; None to count nothing.
    """

    def __init__(self, bodies: Bodies | None) -> None:
        self._bodies = bodies
        self._held = 0

    def grow(self, by: int) -> None:
        """Count more bytes; raises QueueFull."""
        if self._bodies is not None:
            if self._held + by > SMALL_OWN_BYTES:
                self._bodies.check_room(by)
            self._bodies.held_bytes += by
            self._held += by

    def release(self) -> None:
        """Stop counting the message; idempotent."""
        if self._bodies is not None:
            self._bodies.held_bytes -= self._held
            self._held = 0


class Body:
    """One request's body, and the memory of its head and body.

    Args:
        bodies: The total to count them in.
        text_bytes: Length of the head.
        fields: Number of header fields.
        free_bytes: Size up to which the request is never refused for lack of room.

    Attributes:
        data: The body as far as it was read; empty once released.
        received_bytes: Bytes of the body received in all.
    """

    __slots__ = ("_bodies", "_free_bytes", "_head_bytes", "_held", "data", "received_bytes")

    def __init__(
        self, bodies: Bodies, *, text_bytes: int = 0, fields: int = 0, free_bytes: int = 0
    ) -> None:
        self._bodies = bodies
        self._free_bytes = free_bytes
        self._head_bytes = text_bytes + FIELD_BYTES * fields
        self._held = 0
        self.received_bytes = 0
        self.data = b""

    @property
    def most_bytes(self) -> int:
        return self._bodies.most_bytes

    @property
    def longest_s(self) -> float:
        return self._bodies.longest_s

    def announce(self, length: int) -> None:
        """Check a length that the client announces; raises BodyTooLarge."""
        if length > self._bodies.most_bytes:
            raise BodyTooLarge(self._bodies.most_bytes)

    def count_head(self) -> None:
        """Count the head from now on; idempotent. Raises QueueFull."""
        self._hold(self._head_bytes)
        self._head_bytes = 0

    def grow(self, by: int) -> None:
        """Count bytes that were received.

        Raises:
            BodyTooLarge, QueueFull: The body is refused, and released already: sending the error
                may take a while, and other requests could use the room.
        """
        self.received_bytes += by
        if self.received_bytes > self._bodies.most_bytes:
            self.release()
            raise BodyTooLarge(self._bodies.most_bytes)
        self._hold(by)

    @contextmanager
    def copying(self) -> Iterator[Callable[[int], None]]:
        """Count a decompressed copy of the body while it is searched.

        Yields:
            A function to call with the number of bytes by which the copy grew; raises QueueFull.
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
        """Replace the body by its decompressed text; raises QueueFull."""
        self._hold(len(data) - len(self.data))
        self.data = data

    def release(self) -> None:
        """Drop the body and stop counting the request; idempotent."""
        self._bodies.held_bytes -= self._held
        self._held = 0
        self.data = b""

    def _hold(self, by: int) -> None:
        # Released before the error is sent: see `grow`.
        if self._held + by > self._free_bytes:
            try:
                self._bodies.check_room(by)
            except QueueFull:
                self.release()
                raise
        self._bodies.held_bytes += by
        self._held += by
