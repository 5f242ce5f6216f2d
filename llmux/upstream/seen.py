"""The first and the last bytes of an answer's body, kept until it has ended.

Nothing is looked at while they are relayed: for each piece that is received, one reference is kept,
and another one is dropped.
"""

from __future__ import annotations

from collections import deque

import trio

OPENING_BYTES = 2048
"""How much of the beginning is kept: Anthropic's first event has 300 to 600 bytes."""

MOST_PIECES = 8
"""How many pieces of the end are kept: the usage, what follows it, and the end of the framing come
in one piece each where a server sends them one by one."""

PIECE_BYTES = 8192
"""How much of each, so that an answer keeps 64 KiB at most: as much as one receive buffer."""


class Seen:
    """What is kept of one answer's body, framing included.

    Attributes:
        first_at: When its first byte came (Trio's clock); None: none has.
        is_opening: Whether the beginning is still to be kept.
        opening: The beginning.
        last: The last pieces.
    """

    __slots__ = ("first_at", "is_opening", "last", "opening")

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.is_opening = False
        self.opening = b""
        self.last: deque[bytes] = deque(maxlen=MOST_PIECES)

    def begin(self, data: bytes) -> None:
        """The head has ended; this came with it, and the body comes from now on."""
        self.is_opening = True
        self.last.clear()
        if data:
            self.open(data)
            self.last.append(data[-PIECE_BYTES:])

    def open(self, data: bytes) -> None:
        """This is some of the beginning; nothing at the end of the stream."""
        if data and self.first_at is None:
            self.first_at = trio.current_time()
        self.opening += data[: OPENING_BYTES - len(self.opening)]
        self.is_opening = len(self.opening) < OPENING_BYTES

    def ending(self) -> bytes:
        """What was received last, without a gap."""
        last = self.last
        if len(last) == 1:
            return last[0]
        pieces: list[bytes] = []
        for piece in reversed(last):
            pieces.append(piece)
            if len(piece) >= PIECE_BYTES:  # something may have been cut off in front of it
                break
        return b"".join(reversed(pieces))


UNSEEN = Seen()
"""Of a connection that carries no answer; nothing is received there."""
