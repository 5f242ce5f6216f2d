"""Frames of a WebSocket that a server sends (RFC 6455, section 5.2): where another one may follow.

The fast lane carries WebSockets as bytes. Only to say why one ends, it must know whether a frame is
under way.
"""

from __future__ import annotations

CONTINUATION, TEXT, CLOSE = 0x0, 0x1, 0x8

_FIN, _CONTROL, _UNKNOWN, _MASKED = 0x80, 0x08, 0x30, 0x80


class FrameEnds:
    """Follows the frames that a server sends.

    Attributes:
        has_closed: Whether one was a Close frame, which is the last.
    """

    __slots__ = ("_head", "_is_lost", "_is_split", "_missing", "has_closed")

    def __init__(self) -> None:
        self.has_closed = False
        self._head = b""  # of a frame whose length is not there yet
        self._missing = 0  # of the frame that is under way
        self._is_split = False
        self._is_lost = False

    @property
    def may_follow(self) -> bool:
        """Whether a frame of llmux's own may follow here."""
        return not (self._head or self._missing or self._is_lost or self.has_closed)

    @property
    def may_say(self) -> bool:
        """Whether it may be a message: no message is between two of its frames."""
        return self.may_follow and not self._is_split

    def feed(self, data: bytes) -> None:
        """This was sent."""
        if self._is_lost:
            return
        if self._head:
            data, self._head = self._head + data, b""
        at = self._missing
        while at < len(data):
            length = _length(data, at)
            if length is None:
                self._head, at = data[at:], len(data)
                break
            if data[at] & _UNKNOWN or data[at + 1] & _MASKED:
                self._is_lost = True
                return
            self._note(data[at])
            at += length
        self._missing = at - len(data)

    def _note(self, first: int) -> None:
        if not first & _CONTROL:
            self._is_split = not first & _FIN
        elif first & 0x0F == CLOSE:
            self.has_closed = True


def _length(data: bytes, at: int) -> int | None:
    """How long the frame is that begins there, its head included; None if that is not known yet."""
    if len(data) < at + 2:
        return None
    short = data[at + 1] & 0x7F
    size = {126: 2, 127: 8}.get(short, 0)
    if len(data) < at + 2 + size:
        return None
    payload = int.from_bytes(data[at + 2 : at + 2 + size], "big") if size else short
    return 2 + size + payload


def frame(kind: int, payload: bytes) -> bytes:
    """A whole frame of a server, which masks none.

    Args:
        kind: Its opcode.
        payload: At most 65535 bytes.
    """
    size = len(payload)
    head = (
        bytes((_FIN | kind, size)) if size < 126 else bytes((_FIN | kind, 126, *divmod(size, 256)))
    )
    return head + payload
