"""Budgets against floods of HTTP/2 frames and WebSocket messages; no I/O."""

from __future__ import annotations

from collections.abc import Iterator

PREFACE_BYTES = 24
"""RFC 9113, section 3.4."""

HEAD_BYTES = 9
"""RFC 9113, section 4.1."""

DATA, HEADERS, RST_STREAM = 0, 1, 3

SMALL_BYTES = 1024
"""A DATA frame of at least this size is ordinary traffic, and free."""

STREAM_COST = 5
"""Cost of HEADERS and RST_STREAM, since each starts or ends tasks; other frames cost 1."""

BURST = 1000
"""Frames that a client may send at once."""

REFILL_PER_S = 200.0
"""Frames that a client may send per second in the long run. For comparison: Envoy stops at 10,000
queued control frames, nginx when other frames exceed 8 times those of requests and responses."""

SOCKET_BURST = 10_000
"""Small WebSocket messages that a client may send at once (in a burst of 100,000, 160 us each)."""

SOCKET_REFILL_PER_S = 200.0
"""Small WebSocket messages per second in the long run: speech is sent in 50 pieces per second, the
tokens of a fast model in 200."""

SENT_EARNS = 4
"""Credit for each DATA frame sent: clients answer one with up to two WINDOW_UPDATE frames."""

ANSWER_EARNS = 2 * STREAM_COST
"""Credit for a complete response, so that a client that waits for responses never runs out."""


class FrameCutter:
    """Cuts received bytes into pieces of a few frames each, and prices each piece.

    Args:
        most_frames: Frames per piece, at most.
    """

    def __init__(self, most_frames: int) -> None:
        self._most = most_frames
        self._left = PREFACE_BYTES  # until the next frame begins
        self._rest = b""  # an incomplete frame head

    def cut(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the received bytes in pieces, each with the cost of the frames that begin in it."""
        data = self._rest + data
        start, at = 0, self._left
        frames = cost = 0
        while at + HEAD_BYTES <= len(data):
            length, kind = int.from_bytes(data[at : at + 3], "big"), data[at + 3]
            cost += _cost(kind, length)
            at += HEAD_BYTES + length
            frames += 1
            if frames == self._most:
                stop = min(at, len(data))
                yield data[start:stop], cost
                start, frames, cost = stop, 0, 0
        self._left = max(0, at - len(data))
        self._rest = data[at:]
        stop = min(at, len(data))
        if start < stop:
            yield data[start:stop], cost


def _cost(kind: int, length: int) -> int:
    if kind in (HEADERS, RST_STREAM):
        return STREAM_COST
    return 0 if kind == DATA and length >= SMALL_BYTES else 1


class Budget:
    """A token bucket, full at first: the frames that a client may still send.

    Args:
        now: The time, in seconds.
        most: Capacity.
        refill_per_s: Tokens gained per second.
    """

    def __init__(self, now: float, most: float = BURST, refill_per_s: float = REFILL_PER_S) -> None:
        self._most = self._left = float(most)
        self._refill_per_s = refill_per_s
        self._at = now

    def spend(self, cost: int, now: float) -> bool:
        """Take `cost` tokens at time `now`, in seconds; returns False if there were too few."""
        self.earn((now - self._at) * self._refill_per_s)
        self._at = now
        self._left -= cost
        return self._left >= 0

    def earn(self, amount: float) -> None:
        self._left = min(self._most, self._left + amount)
