"""A stand-in model server for `bench.soak`: a process that holds a GPU, and misbehaves when asked.

Started by a wake hook with nothing but the standard library (`python -I -S`), so that it is up at
once. The GPU is a file that it locks for as long as it lives; a server that finds it locked has
been woken beside another. Each request says in its `x-soak` header what is to become of it; those
of hostile clients have none. No request may come that llmux should have refused.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

GPU_S = 0.5
"""A probe may hold the lock for a moment; a model that is awake holds it for good."""

LOOK_S = 0.02
"""How often it is looked whether the mark is gone under a request."""

MARKER = b"soak-marker"
"""In the path of each request that hostile clients hide in another."""

MOST_FRAME_BYTES = 1 << 20

PORT_S = 3.0
"""Longest wait for the port, which the model's last server may not have left quite yet."""

GARBAGE = (
    b"\x16\x03\x01\x00\xee\x01\x00\x00\xff\xfe\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 300_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    b"HTTP/1.1 200",
    b"",
)


# ---- What a right answer is, for both sides ----


def plain_body(model: str, request_id: str, checksum: int, size: int) -> bytes:
    """The response to a plain request: model, request id, and `size` unique bytes."""
    head = json.dumps({"model": model, "id": request_id, "checksum": checksum}).encode()
    unit = f"\n{request_id}".encode()
    return head + (unit * (size // len(unit) + 1))[:size]


def stream_events(model: str, request_id: str, checksum: int, count: int) -> list[bytes]:
    """The answer to a streaming request, event by event."""
    events = [b'data: {"id": "%s", "n": %d}\n\n' % (request_id.encode(), n) for n in range(count)]
    last = {"model": model, "id": request_id, "checksum": checksum}
    return [*events, b"data: %s\n\n" % json.dumps(last).encode(), b"data: [DONE]\n\n"]


# ---- The server ----


class Server:
    """One model's server.

    Attributes:
        folder: Of the run: locks, marks of who is awake, and what was seen.
    """

    def __init__(self, folder: Path, *, model: str, slug: str, group: str, port: int) -> None:
        self.folder = folder
        self._model = model
        self._awake = folder / f"awake-{slug}"
        self._lost = folder / f"lost-{slug}"
        self._ready = folder / f"ready-{slug}"
        self._gpu = folder / f"gpu-{group}"
        self._port = port
        self._listener = socket.socket()
        self._inside: dict[socket.socket, str] = {}

    def run(self) -> NoReturn:
        """Take the GPU, listen, say so, and serve for ever."""
        gpu = os.open(self._gpu, os.O_RDWR | os.O_CREAT, 0o600)
        if not _retry(lambda: fcntl.flock(gpu, fcntl.LOCK_EX | fcntl.LOCK_NB), GPU_S):
            holder = os.pread(gpu, 200, 0).decode()
            self._complain(f"two models awake: {self._model} is woken beside {holder}")
            sys.exit("the GPU is taken")
        os.ftruncate(gpu, 0)
        os.pwrite(gpu, self._model.encode(), 0)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not _retry(lambda: self._listener.bind(("127.0.0.1", self._port)), PORT_S):
            sys.exit(f"port {self._port} is taken")
        self._listener.listen(256)
        self._ready.write_text(f"{os.getpid()}\n")
        threading.Thread(target=self._look, daemon=True).start()
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it refuses from now on
                signal.pause()
                continue
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffer = b""
            while True:
                head, body, buffer = _receive(connection, buffer)
                if head.startswith(b"GET /health "):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    continue
                self._inspect(head, body)
                asked = _asked(head)
                self._inside[connection] = asked["id"]
                try:
                    self._check(connection, asked["id"])
                    if _header(head, b"upgrade").lower() == b"websocket":
                        self._websocket(connection, head, buffer, asked["id"])
                        return
                    self._answer(connection, asked, zlib.crc32(body))
                finally:
                    self._inside.pop(connection, None)

    def _inspect(self, head: bytes, body: bytes) -> None:
        """Complain of a request that llmux must not let through."""
        target = head.split(b" ", 2)[1]
        path = target.partition(b"?")[0]
        if MARKER in path:
            self._complain(f"a smuggled request came through: {head[:300]!r}")
        if not path.startswith(b"/") or b"/../" in path + b"/":
            self._complain(f"a target that is not normal: {head[:300]!r}")
        if b"\r\nx-soak:" not in head.lower() and b"model" in body.lower():
            for name in _models_named(body):
                if re.match(r"(maker/)?model-\d", name) and name != self._model:
                    self._complain(f"{self._model} is asked in its body for {name!r}")

    def _websocket(
        self, connection: socket.socket, head: bytes, buffer: bytes, request_id: str
    ) -> None:
        """Echo frame by frame, until the client closes (RFC 6455, section 5)."""
        key = _header(head, b"sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key).digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        while True:
            first, payload, buffer = _frame(connection, buffer)
            opcode = first & 0x0F
            if opcode == 8:
                self._leave(connection, request_id)
            connection.sendall(_unmasked(first if opcode != 9 else 0x8A, payload))
            if opcode == 8:
                raise EOFError

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_S)
            for connection, request_id in list(self._inside.items()):
                self._check(connection, request_id)

    def _answer(self, connection: socket.socket, asked: Mapping[str, Any], checksum: int) -> None:
        time.sleep(asked["work_s"])
        lie = asked["lie"]
        if lie:
            self._note(lie)
            self._misbehave(connection, lie, asked)
        if asked["chunks"]:
            self._stream(connection, asked, lie, checksum)
            return
        body = plain_body(self._model, asked["id"], checksum, asked["size"])
        status, length = b"200 OK", len(body)
        if lie == "says 503":
            status = b"503 Service Unavailable"
        elif lie == "length too short":
            length -= 20
        elif lie == "length too long":
            length += 20
        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, length)
        if lie == "length too short":
            # At once: bytes that come later would look like the next answer.
            connection.sendall(head + body)
            raise EOFError
        half = len(body) // 2 if len(body) > 5000 or lie else len(body) - 1
        connection.sendall(head + body[:half])
        self._break_half_way(connection, lie)
        self._leave(connection, asked["id"])
        connection.sendall(body[half:])
        if lie == "length too long":
            raise EOFError

    def _stream(
        self, connection: socket.socket, asked: Mapping[str, Any], lie: str, checksum: int
    ) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        events = stream_events(self._model, asked["id"], checksum, asked["chunks"])
        for number, event in enumerate(events):
            if number == len(events) // 2:
                self._break_half_way(connection, lie)
            time.sleep(asked["gap_s"])
            connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
        self._leave(connection, asked["id"])
        connection.sendall(b"0\r\n\r\n")

    def _misbehave(self, connection: socket.socket, lie: str, asked: Mapping[str, Any]) -> None:
        """Before the answer; may not return."""
        if lie == "garbage head":
            connection.sendall(GARBAGE[asked["size"] % len(GARBAGE)])
            raise EOFError
        if lie == "resets":
            _reset(connection)
        elif lie == "crashes":
            _end_with(signal.SIGKILL)
        elif lie == "hangs":
            _end_with(signal.SIGSTOP)
        elif lie == "refuses":
            # Not close() alone: the thread in accept() would go on to take connections.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _break_half_way(self, connection: socket.socket, lie: str) -> None:
        if lie == "breaks off":
            raise EOFError
        if lie == "resets half-way":
            _reset(connection)
        if lie == "breaks framing":
            connection.sendall(b"no chunk size\r\n")
            raise EOFError
        if lie == "crashes half-way":
            _end_with(signal.SIGKILL)
        if lie == "stalls":
            while not _is_gone(connection):
                time.sleep(0.05)
            raise EOFError

    def _leave(self, connection: socket.socket, request_id: str) -> None:
        """Before the last byte, since the model may sleep after it."""
        self._check(connection, request_id)
        self._inside.pop(connection, None)

    def _check(self, connection: socket.socket, request_id: str) -> None:
        """No request may be inside of a model whose sleep hook was started.

        Contract, section 5, invariant 2: streams may be cut for it, but are so before the hook
        starts. So a client that is still connected once the mark is gone has not been cut. A model
        that is to preserve its requests, and does not, loses them.
        """
        if self._awake.exists() or self._lost.exists():
            return
        if not _is_gone(connection) and connection in self._inside:
            self._inside.pop(connection, None)  # once is enough
            self._complain(f"{self._model} is not awake, but has request {request_id}")

    def _complain(self, what: str) -> None:
        self._append("violations", {"what": what})

    def _note(self, kind: str) -> None:
        self._append("faults", {"kind": f"backend {kind}", "model": self._model})

    def _append(self, file: str, entry: dict[str, Any]) -> None:
        line = json.dumps({"at": time.time(), **entry}) + "\n"
        with (self.folder / file).open("ab", buffering=0) as output:
            output.write(line.encode())


def _receive(connection: socket.socket, buffer: bytes) -> tuple[bytes, bytes, bytes]:
    """One request: head, body, and what follows; raises EOFError."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        buffer += _some(connection)
    head, received = buffer[:end], bytearray(buffer[end + 4 :])
    length = int(_header(head, b"content-length") or 0)
    while len(received) < length:
        received += _some(connection)
    return head, bytes(received[:length]), bytes(received[length:])


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 18)
    if not data:
        raise EOFError
    return data


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


def _asked(head: bytes) -> Mapping[str, Any]:
    """The answer that the request asks for; a small one if it asks for none."""
    asked: dict[str, Any] = {"id": "hostile", "lie": "", "size": 0, "chunks": 0, "gap_s": 0.0}
    asked["work_s"] = 0.0
    text = _header(head, b"x-soak")
    return asked | json.loads(text) if text else asked


def _models_named(body: bytes) -> Iterator[str]:
    """The models that a body names, in any spelling that some server may take."""
    with suppress(ValueError, RecursionError):
        fields = json.loads(body, object_pairs_hook=list)
        for entry in fields if isinstance(fields, list) else ():
            key, value = entry if isinstance(entry, tuple) else ("", None)
            if key.lower() == "model" and isinstance(value, str):
                yield value


def _frame(connection: socket.socket, buffer: bytes) -> tuple[int, bytes, bytes]:
    """A client's frame: its first byte, its payload, and what follows."""

    def need(count: int) -> None:
        nonlocal buffer
        while len(buffer) < count:
            buffer += _some(connection)

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


def _unmasked(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes([first, length]) + payload
    size, code = (2, 126) if length < 1 << 16 else (8, 127)
    return bytes([first, code]) + length.to_bytes(size, "big") + payload


def _is_gone(connection: socket.socket) -> bool:
    """Return whether the other side has closed, with everything it sent read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _reset(connection: socket.socket) -> NoReturn:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise EOFError


def _end_with(number: signal.Signals) -> NoReturn:
    os.kill(os.getpid(), number)
    while True:  # another thread may get it, and this one go on for a moment
        time.sleep(1)


def _retry(attempt: Any, longest_s: float) -> bool:
    deadline = time.monotonic() + longest_s
    while True:
        try:
            attempt()
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", help="the run's mark and the model, by which its process is found")
    parser.add_argument("--model")
    parser.add_argument("--slug", help="its name in file names")
    parser.add_argument("--group")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    Server(
        Path.cwd(),
        model=options.model,
        slug=options.slug,
        group=options.group,
        port=options.port,
    ).run()


if __name__ == "__main__":
    main()
