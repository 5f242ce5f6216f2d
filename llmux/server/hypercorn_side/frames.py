"""Budgets for a client's frames, of HTTP/2 and of WebSockets; pure functions."""

from __future__ import annotations

from collections.abc import Iterator

PREFACE_BYTES = 24
"""RFC 9113, section 3.4."""

HEAD_BYTES = 9
"""RFC 9113, section 4.1."""

DATA, HEADERS, RST_STREAM = 0, 1, 3

SMALL_BYTES = 1024
"""DATA that carries so much is what HTTP/2 is for, and costs nothing."""

STREAM_COST = 5
"""Of a request, and of taking it back: each makes or ends tasks."""

BURST = 1000
"""Budget for a burst."""

REFILL_PER_S = 200.0
"""What comes back by itself. (Envoy stops at 10,000 control frames that wait to be sent; nginx
when other frames make up more than 8 times what requests and answers do.)"""

SOCKET_BURST = 10_000
"""Small messages that a WebSocket may bring at once: of 100,000 each cost 160 us."""

SOCKET_REFILL_PER_S = 200.0
"""And later on: speech comes in 50 pieces a second, tokens of a fast model in 200."""

SENT_EARNS = 4
"""What a piece of an answer earns: clients answer one with up to two WINDOW_UPDATE."""

ANSWER_EARNS = 2 * STREAM_COST
"""Frames that an answer earns, so that a client that waits for answers never runs out."""


class FrameCutter:
    """Cuts received bytes behind every few frames, and prices them."""

    def __init__(self, most_frames: int) -> None:
        """Begin before the preface.

        Args:
            most_frames: In one cut.
        """
        self._most = most_frames
        self._left = PREFACE_BYTES
        self._rest = b""

    def cut(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield pieces of the bytes, each with the cost of the frames that begin in it."""
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
    """A token bucket: the frames that a client may still send."""

    def __init__(self, now: float, most: float = BURST, refill_per_s: float = REFILL_PER_S) -> None:
        """Have all of it.

        Args:
            now: The time, in seconds.
            most: What may be spent at once.
            refill_per_s: What comes back in a second.
        """
        self._most = self._left = float(most)
        self._refill_per_s = refill_per_s
        self._at = now

    def spend(self, cost: int, now: float) -> bool:
        """Spend so much at this time (seconds); returns whether there was enough."""
        self.earn((now - self._at) * self._refill_per_s)
        self._at = now
        self._left -= cost
        return self._left >= 0

    def earn(self, amount: float) -> None:
        self._left = min(self._most, self._left + amount)
