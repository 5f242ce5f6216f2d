"""The requests and responses that the soak's clients and its stand-in server agree on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from bench.soak.backend.wire import header

MARKER = b"soak-marker"
"""Part of the path of each request that hostile clients hide in another one."""

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
"""Heads that are no HTTP response; sent by a server that is asked for a garbage head."""


def plain_body(model: str, request_id: str, checksum: int, size: int) -> bytes:
    """Return the response to a plain request: model, request id, and `size` unique bytes."""
    head = json.dumps({"model": model, "id": request_id, "checksum": checksum}).encode()
    unit = f"\n{request_id}".encode()
    return head + (unit * (size // len(unit) + 1))[:size]


def stream_events(model: str, request_id: str, checksum: int, count: int) -> list[bytes]:
    """Return the response to a streaming request, event by event."""
    events = [b'data: {"id": "%s", "n": %d}\n\n' % (request_id.encode(), n) for n in range(count)]
    last = {"model": model, "id": request_id, "checksum": checksum}
    return [*events, b"data: %s\n\n" % json.dumps(last).encode(), b"data: [DONE]\n\n"]


def asked_of(head: bytes) -> Mapping[str, Any]:
    """Return the orders in a request's `x-soak` header; without one, those for a small response."""
    asked: dict[str, Any] = {"id": "hostile", "lie": "", "size": 0, "chunks": 0, "gap_s": 0.0}
    asked["work_s"] = 0.0
    text = header(head, b"x-soak")
    return asked | json.loads(text) if text else asked


def models_named(body: bytes) -> Iterator[str]:
    """Yield the models that a body names, in any spelling that some server may accept."""
    with suppress(ValueError, RecursionError):
        fields = json.loads(body, object_pairs_hook=list)
        for entry in fields if isinstance(fields, list) else ():
            key, value = entry if isinstance(entry, tuple) else ("", None)
            if key.lower() == "model" and isinstance(value, str):
                yield value
