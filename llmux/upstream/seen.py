"""The first and the last bytes of an answer's body, kept until it has ended.

Nothing is inspected while the body is relayed: each piece received costs one reference kept, and
one dropped.
"""

from __future__ import annotations

from collections import deque

import trio

OPENING_BYTES = 2048
"""Bytes kept of the beginning: Anthropic's first event has 300 to 600."""

MOST_PIECES = 8
"""Pieces kept of the end: a server may send the usage, the last event and the end of the framing in
one piece each."""

PIECE_BYTES = 8192
"""Bytes kept of each, so that an answer keeps 64 KiB at most: as much as one receive buffer."""


class Seen:
    """The kept bytes of one answer's body, framing included.

    Attributes:
        first_at: When its first byte arrived (Trio's clock); None: none has.
        is_opening: True while the beginning is still being kept.
        opening: The beginning.
        last: The last pieces.
    """

    __slots__ = ("first_at", "is_opening", "last", "opening")

    def __init__(self, most_pieces: int = MOST_PIECES) -> None:
        self.first_at: float | None = None
        self.is_opening = False
        self.opening = b""
        self.last: deque[bytes] = deque(maxlen=most_pieces)

    def begin(self, data: bytes) -> None:
        """Start keeping, at the end of the head; `data` came with it."""
        self.is_opening = True
        self.last.clear()
        if data:
            self.open(data)
            self.last.append(data[-PIECE_BYTES:])

    def open(self, data: bytes) -> None:
        """Keep some of the beginning; `data` is empty at the end of the stream."""
        if data and self.first_at is None:
            self.first_at = trio.current_time()
        self.opening += data[: OPENING_BYTES - len(self.opening)]
        self.is_opening = len(self.opening) < OPENING_BYTES

    def ending(self) -> bytes:
        """Return the last bytes received, without a gap."""
        last = self.last
        if len(last) == 1:
            return last[0]
        pieces: list[bytes] = []
        for piece in reversed(last):
            pieces.append(piece)
            if len(piece) >= PIECE_BYTES:  # something may have been cut off in front of it
                break
        return b"".join(reversed(pieces))


UNSEEN = Seen(most_pieces=0)
"""Keeps nothing: for connections that carry no answer, or another protocol."""
