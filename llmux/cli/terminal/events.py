"""Parse server-sent events from a stream of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """An event.

    Attributes:
        name: What it is.
        data: What it says.
        id: Where to go on after it; empty: as before.
    """

    name: str
    data: bytes
    id: str


def read_events(pieces: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events of a stream, without comments and an unfinished last event.

    Only line feeds end lines: JSON may hold other characters that Unicode takes for line ends.
    """
    rest = b""
    fields: dict[bytes, bytes] = {}
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name:
                value = value.removeprefix(b" ")
                more = name == b"data" and name in fields
                fields[name] = fields[name] + b"\n" + value if more else value
            elif line in (b"", b"\r"):
                if b"data" in fields:
                    event, key = (
                        fields.get(n, b"").decode(errors="replace") for n in (b"event", b"id")
                    )
                    yield Event(event or "message", fields[b"data"], key)
                fields = {}
