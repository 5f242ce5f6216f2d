"""HTTP and WebSocket as the stand-in server reads and writes them, on blocking sockets."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from typing import NoReturn

MOST_FRAME_BYTES = 1 << 20


def receive(connection: socket.socket, buffer: bytes) -> tuple[bytes, bytes, bytes]:
    """Read one request: head, body, and the bytes that follow; raises EOFError."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        buffer += some(connection)
    head, received = buffer[:end], bytearray(buffer[end + 4 :])
    length = int(header(head, b"content-length") or 0)
    while len(received) < length:
        received += some(connection)
    return head, bytes(received[:length]), bytes(received[length:])


def some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 18)
    if not data:
        raise EOFError
    return data


def header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


def upgrade_head(head: bytes) -> bytes:
    """The response that accepts a WebSocket (RFC 6455, section 4.2.2)."""
    key = header(head, b"sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )


def frame(connection: socket.socket, buffer: bytes) -> tuple[int, bytes, bytes]:
    """Read a client's frame: its first byte, its payload, and the bytes that follow."""

    def need(count: int) -> None:
        nonlocal buffer
        while len(buffer) < count:
            buffer += some(connection)

    need(2)
    first, length, at = buffer[0], buffer[1] & 0x7F, 2
    if extended := {126: 2, 127: 8}.get(length, 0):
        need(2 + extended)
        at = 2 + extended
        length = int.from_bytes(buffer[2:at], "big")
    if length > MOST_FRAME_BYTES or not buffer[1] & 0x80:
        raise EOFError
    need(at + 4 + length)
    mask = buffer[at : at + 4] * (length // 4 + 1)
    masked = buffer[at + 4 : at + 4 + length]
    plain = int.from_bytes(masked, "big") ^ int.from_bytes(mask[:length], "big")
    return first, plain.to_bytes(length, "big"), buffer[at + 4 + length :]


def unmasked(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes([first, length]) + payload
    size, code = (2, 126) if length < 1 << 16 else (8, 127)
    return bytes([first, code]) + length.to_bytes(size, "big") + payload


def is_gone(connection: socket.socket) -> bool:
    """Return whether the other side has closed, with everything it sent read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def reset(connection: socket.socket) -> NoReturn:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise EOFError
