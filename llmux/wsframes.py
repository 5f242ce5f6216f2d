"""The frames of a WebSocket as they pass: where they end, and which are messages (RFC 6455)."""

from __future__ import annotations

MOST_FRAMES = 4096
"""In one piece that is received, 64 KiB: they take 2 ms. Of a peer that sends more, frames are
followed no more, and all it sends counts as messages."""

TRY_AGAIN_LATER = 1013
"""IANA's registry of close codes."""

CLOSE = 8
"""The first opcode of a control frame is this; all others are for messages (section 5.2)."""


class FrameReader:
    """Follows the frames of one direction."""

    __slots__ = ("_head", "_is_control", "_is_lost", "_left")

    def __init__(self) -> None:
        self._head = b""  # of a frame, as long as it is not whole
        self._left = 0  # of the frame's payload
        self._is_control = False
        self._is_lost = False

    @property
    def is_between(self) -> bool:
        """Whether the last frame is whole, so that another one may follow."""
        return not (self._left or self._head or self._is_lost)

    def feed(self, data: bytes) -> bool:
        """Follow what comes next; returns whether some of it belongs to a message."""
        if self._is_lost:
            return True
        data, self._head = self._head + data, b""
        at = min(self._left, len(data))
        self._left -= at
        is_message = at > 0 and not self._is_control
        for _ in range(MOST_FRAMES):
            if len(data) - at < 2:
                break
            length = data[at + 1] & 0x7F
            payload = at + 2 + (4 if data[at + 1] & 0x80 else 0)
            if length > 125:
                size = 2 if length == 126 else 8
                payload += size
                length = int.from_bytes(data[at + 2 : at + 2 + size], "big")
            if payload > len(data):
                break
            self._is_control = data[at] & 0x0F >= CLOSE
            is_message |= not self._is_control
            at = min(payload + length, len(data))
            self._left = payload + length - at
        else:
            self._is_lost = True
            return True
        self._head = data[at:]
        return is_message


def close_frame(code: int) -> bytes:
    """A server's frame that closes (section 5.5.1)."""
    return bytes((0x80 | CLOSE, 2)) + code.to_bytes(2, "big")
