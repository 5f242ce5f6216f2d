"""The stand-in server: holds the group's GPU, or a part of it, serves, misbehaves, and reports."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from bench.soak.backend.amounts import GPU
from bench.soak.backend.answers import (
    GARBAGE,
    MARKER,
    asked_of,
    models_named,
    plain_body,
    stream_events,
)
from bench.soak.backend.wire import (
    frame,
    header,
    is_gone,
    receive,
    reset,
    unmasked,
    upgrade_head,
)

GPU_S = 0.5
"""Longest wait for the GPU's lock: a probe may hold it for a moment, an awake model keeps it."""

LOOK_S = 0.02
"""Interval between checks that no request is inside a model that is going to sleep."""

PORT_S = 3.0
"""Longest wait for the port: the model's previous server may not have closed it yet."""


class Server:
    """One model's server.

    Attributes:
        folder: The run's folder: locks, marks of awake models, and records.
    """

    def __init__(
        self, folder: Path, *, model: str, slug: str, gpu: str, books: str, port: int
    ) -> None:
        self.folder = folder
        self._model = model
        self._awake = folder / f"awake-{slug}"
        self._lost = folder / f"lost-{slug}"
        self._ready = folder / f"ready-{slug}"
        self._gpu = folder / gpu
        self._books = books
        self._port = port
        self._listener = socket.socket()
        self._inside: dict[socket.socket, str] = {}

    def run(self) -> NoReturn:
        """Take the GPU, listen, mark the server as ready, and serve for ever."""
        gpu = os.open(self._gpu, os.O_RDWR | os.O_CREAT, 0o600)
        if not _retry(lambda: fcntl.flock(gpu, fcntl.LOCK_EX | fcntl.LOCK_NB), GPU_S):
            holder = os.pread(gpu, 200, 0).decode()
            self._complain(f"two models awake: {self._model} is woken beside {holder}")
            sys.exit("the GPU is taken")
        os.ftruncate(gpu, 0)
        os.pwrite(gpu, (self._books or self._model).encode(), 0)
        if self._books:
            self._check_books()
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

    def _check_books(self) -> None:
        """Check that what all servers hold is no more than there is.

        Each has written it into the file that it locks, so one that has ended holds nothing.
        """
        found: list[str] = []
        for _ in range(round(GPU_S / LOOK_S)):
            found = overdrawn(self.folder)
            if not found:
                return
            time.sleep(LOOK_S)
        self._complain(f"more is held than there is, with {self._model} woken: {found}")

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffer = b""
            while True:
                head, body, buffer = receive(connection, buffer)
                if head.startswith(b"GET /health "):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    continue
                self._inspect(head, body)
                asked = asked_of(head)
                self._inside[connection] = asked["id"]
                try:
                    self._check(connection, asked["id"])
                    if header(head, b"upgrade").lower() == b"websocket":
                        self._websocket(connection, head, buffer, asked["id"])
                        return
                    self._answer(connection, asked, zlib.crc32(body))
                finally:
                    self._inside.pop(connection, None)

    def _inspect(self, head: bytes, body: bytes) -> None:
        """Report a request that llmux must not let through."""
        target = head.split(b" ", 2)[1]
        path = target.partition(b"?")[0]
        if MARKER in path:
            self._complain(f"a smuggled request came through: {head[:300]!r}")
        if not path.startswith(b"/") or b"/../" in path + b"/":
            self._complain(f"a target that is not normal: {head[:300]!r}")
        if b"\r\nx-soak:" not in head.lower() and b"model" in body.lower():
            for name in models_named(body):
                if re.match(r"(maker/)?model-\d", name) and name != self._model:
                    self._complain(f"{self._model} is asked in its body for {name!r}")

    def _websocket(
        self, connection: socket.socket, head: bytes, buffer: bytes, request_id: str
    ) -> None:
        """Echo frame by frame, until the client closes (RFC 6455, section 5)."""
        connection.sendall(upgrade_head(head))
        while True:
            first, payload, buffer = frame(connection, buffer)
            opcode = first & 0x0F
            if opcode == 8:
                self._leave(connection, request_id)
            connection.sendall(unmasked(first if opcode != 9 else 0x8A, payload))
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
        """Misbehave before the response; may not return."""
        if lie == "garbage head":
            connection.sendall(GARBAGE[asked["size"] % len(GARBAGE)])
            raise EOFError
        if lie == "resets":
            reset(connection)
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
            reset(connection)
        if lie == "breaks framing":
            connection.sendall(b"no chunk size\r\n")
            raise EOFError
        if lie == "crashes half-way":
            _end_with(signal.SIGKILL)
        if lie == "stalls":
            while not is_gone(connection):
                time.sleep(0.05)
            raise EOFError

    def _leave(self, connection: socket.socket, request_id: str) -> None:
        """Note the end of a request, before its last byte: after that the model may sleep."""
        self._check(connection, request_id)
        self._inside.pop(connection, None)

    def _check(self, connection: socket.socket, request_id: str) -> None:
        """Check that no request is inside a model whose sleep hook has started.

        Invariant 2 of docs/guarantees.md: llmux may cut streams for a switch, but does so before
        the hook starts. So a client that is still connected once the mark is gone was not cut.
        A model that claims to preserve its requests, and does not, loses them.
        """
        if self._awake.exists() or self._lost.exists():
            return
        if not is_gone(connection) and connection in self._inside:
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


def overdrawn(folder: Path) -> list[str]:
    """Return the resources of which the running servers hold more than there is, and who does."""
    held: dict[str, dict[str, int]] = {}
    for file in folder.glob("holds-*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            for entry in filter(None, os.pread(descriptor, 1000, 0).decode().split(",")):
                resource, _, size = entry.partition("=")
                held.setdefault(resource, {})[file.name] = int(size)
        finally:
            os.close(descriptor)
    return [f"{name}: {sizes}" for name, sizes in held.items() if sum(sizes.values()) > GPU]


def _end_with(number: signal.Signals) -> NoReturn:
    os.kill(os.getpid(), number)
    while True:  # another thread may get it, and this one go on for a moment
        time.sleep(1)


def _retry(attempt: Callable[[], object], longest_s: float) -> bool:
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
    parser.add_argument("--gpu", help="the file that it locks")
    parser.add_argument("--books", help="what it needs, in a run whose models share memory")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    Server(
        Path.cwd(),
        model=options.model,
        slug=options.slug,
        gpu=options.gpu,
        books=options.books,
        port=options.port,
    ).run()
