"""WebSocket frames as bytes (RFC 6455): where they end, and which belong to messages; pure.

The fast lane carries WebSockets as bytes. It reads no more of them than it takes to know when the
last message passed, and where a frame of llmux's own may follow.
"""

from __future__ import annotations

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
"""Opcodes (section 5.2); those from `CLOSE` on are control frames."""

MOST_CONTROL_BYTES = 125
"""Limit for the payload of a control frame (section 5.5)."""

MOST_FRAMES = 4096
"""Limit for the frames of one receive buffer of 64 KiB: reading them takes 2 ms. The frames of a
peer that sends more are followed no further, and all its data counts as messages."""

_FIN, _OPCODE, _MASKED, _SHORT = 0x80, 0x0F, 0x80, 0x7F
_UNKNOWN = 0x30
"""Reserved bits that no extension in use sets (RSV2, RSV3); compression sets RSV1 (RFC 7692)."""


class FrameReader:
    """Follows the frames of one direction.

    Attributes:
        has_closed: True once there was a Close frame, which is the last (section 5.5.1).
    """

    __slots__ = ("_head", "_is_control", "_is_lost", "_is_split", "_left", "has_closed")

    def __init__(self) -> None:
        self.has_closed = False
        self._head = b""  # of a frame, as long as it is not whole
        self._left = 0  # of the frame's payload
        self._is_control = False
        self._is_split = False
        self._is_lost = False

    @property
    def may_follow(self) -> bool:
        """True if another frame may follow: the last one is whole, and was not a Close."""
        return not (self._left or self._head or self._is_lost or self.has_closed)

    @property
    def may_say(self) -> bool:
        """True if a message may follow: none is between two of its frames (section 5.4)."""
        return self.may_follow and not self._is_split

    def feed(self, data: bytes) -> bool:
        """Follow the next bytes; returns whether some of them belong to a message."""
        if self._is_lost:
            return True
        if self._head:
            data, self._head = self._head + data, b""
        at = min(self._left, len(data))
        self._left -= at
        is_message = at > 0 and not self._is_control
        for _ in range(MOST_FRAMES):
            if len(data) - at < 2:
                break
            length = data[at + 1] & _SHORT
            payload = at + 2 + (4 if data[at + 1] & _MASKED else 0)
            if length > MOST_CONTROL_BYTES:
                size = 2 if length == 126 else 8
                payload += size
                length = int.from_bytes(data[at + 2 : at + 2 + size], "big")
            if payload > len(data):
                break
            if not self._note(data[at]):
                return True
            is_message |= not self._is_control
            at = min(payload + length, len(data))
            self._left = payload + length - at
        else:
            self._is_lost = True
            return True
        self._head = data[at:]
        return is_message

    def _note(self, first: int) -> bool:
        """Note a frame's first byte; returns False if it cannot be one."""
        opcode = first & _OPCODE
        self._is_control = opcode >= CLOSE
        if not self._is_control:
            self._is_split = not first & _FIN
        elif opcode == CLOSE:
            self.has_closed = True
        self._is_lost = bool(first & _UNKNOWN)
        return not self._is_lost


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """Return one whole frame (section 5.2); clients must mask theirs (section 5.3)."""
    flag = _MASKED if mask else 0
    if len(payload) <= MOST_CONTROL_BYTES:
        head = bytes((_FIN | opcode, flag | len(payload)))
    elif len(payload) < 1 << 16:
        head = bytes((_FIN | opcode, flag | 126)) + len(payload).to_bytes(2, "big")
    else:
        head = bytes((_FIN | opcode, flag | 127)) + len(payload).to_bytes(8, "big")
    return head + mask + (masked(payload, mask) if mask else payload)


def masked(payload: bytes, mask: bytes) -> bytes:
    """Mask or unmask a payload (section 5.3); the operation is its own inverse."""
    length = len(payload)
    key = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
