"""The request bodies that are held in memory, counted against `limits.queued_bytes`.

A body counts from its first byte until its backend has begun to answer: until then the request may
have to be sent once more.
"""

from __future__ import annotations

from llmux.config import Limits
from llmux.errors import BodyTooLarge, QueueFull

RETRY_AFTER_S = 5.0
"""When a client that was sent away may try again: nobody knows yet what its request was for."""


class Bodies:
    """All of them together.

    Attributes:
        held_bytes: How many there are.
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


class Body:
    """One request's body.

    Attributes:
        data: What of it is there; empty once it was released.
        received_bytes: How much of it has come, in all.
    """

    __slots__ = ("_bodies", "_size", "data", "received_bytes")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0
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

    def grow(self, by: int) -> None:
        """So many bytes of it have been received.

        Raises:
            BodyTooLarge, QueueFull: It is not taken, and what there is of it counts no more: to
                tell the client may take a while, in which others could have the room.
        """
        bodies = self._bodies
        self.received_bytes += by
        size = self._size + by
        if size > bodies.most_bytes:
            self.release()
            raise BodyTooLarge(bodies.most_bytes)
        if bodies.held_bytes + by > bodies.limit_bytes:
            self.release()
            message = f"The bodies of waiting requests fill {bodies.limit_bytes} bytes"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)
        bodies.held_bytes += by
        self._size = self.received_bytes = size

    def release(self) -> None:
        """It is not needed any more; harmless when repeated."""
        if self._size:
            self._bodies.held_bytes -= self._size
            self._size = 0
            self.data = b""
