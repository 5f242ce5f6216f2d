"""Server-sent events, from pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator

MOST_BYTES = 16 << 20
"""Longest line, and longest event; llmux's own are shorter."""


class Events:
    """Reads one stream of events. Only line feeds end lines, as in llmux's own."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes, wanted: bytes) -> Iterator[bytes]:
        """Add a piece; yield the data of each event of a kind that it completes.

        Raises:
            ValueError: A line, or an event, is longer than `MOST_BYTES`.
        """
        self._rest += piece
        if b"\n" not in piece:
            if len(self._rest) > MOST_BYTES:
                raise ValueError(f"a line of more than {MOST_BYTES >> 20} MiB")
            return
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            name, _, value = bytes(line).removesuffix(b"\r").partition(b":")
            if name == b"event":
                self._name = value.strip()
            elif name == b"data" and self._name == wanted:
                self._data.append(value.removeprefix(b" "))
                self._size += len(value) + 1
                if self._size > MOST_BYTES:
                    raise ValueError(f"an event of more than {MOST_BYTES >> 20} MiB")
            elif not name and not value:
                if self._data:
                    yield b"\n".join(self._data)
                self._name, self._data, self._size = b"", [], 0
