"""Read the responses of backends: heads, and where bodies end (RFC 9112, sections 4, 6 and 7).

llhttp (through httptools) checks them, and this module checks what llhttp lets pass. Framing is
checked, never rebuilt, so that a response can be relayed as it came. Every error is the backend's
(`BackendBroke`); requests are read by `heads` and `chunks`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal, Protocol

import httptools

from llmux.errors import BackendBroke
from llmux.http.syntax import BLANK_LINE, MAX_LENGTH_DIGITS

Framing = Literal["none", "length", "chunked", "close"]

MAX_HEAD_BYTES = 65536
"""Limit for status line and headers; also for trailers and chunk extensions."""

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
READ_ON = frozenset({b"transfer-encoding", b"content-length", b"connection"})
CONTROLS = bytes({*range(32), 127} - {9})


class Parts(Protocol):
    """Receives llhttp's callbacks, until its part of a message is done."""

    is_done: bool


class Reader:
    """Feeds llhttp up to the end of one part of a message (its head, its body) and no further.

    llhttp reports what it found but not where, and continues into a next message by itself. Both
    parts end with a blank line, since llhttp takes no bare LF. So data is fed in pieces that stop
    behind every blank line; the part ends with the piece that completes it. Data without a blank
    line, which is nearly all of a stream, is fed whole.
    """

    __slots__ = ("_feed", "_parts", "llhttp")

    def __init__(self, parts: Parts, start: bytes = b"") -> None:
        self.llhttp = httptools.HttpResponseParser(parts)
        self._parts = parts
        self._feed = self.llhttp.feed_data
        self._feed(start)

    def feed(self, data: bytes) -> bytes | None:
        """Parse received data.

        Returns:
            The bytes behind the end of the part; None if the end has not come yet.

        Raises:
            BackendBroke: Not HTTP.
        """
        try:
            # A blank line that began in earlier data continues with CR or LF. `rfind` takes half as
            # long as `in`, which for a token is as long as llhttp takes to read it.
            if data.rfind(BLANK_LINE) >= 0 or data[0] in BLANK_LINE:
                return self._feed_pieces(data)
            self._feed(data)
        except httptools.HttpParserError as error:
            raise BackendBroke(f"not HTTP: {error}") from error
        return None

    def feed_head(self, data: bytes) -> bytes | None:
        """Like `feed`, for a head: it nearly always comes whole, up to the first blank line."""
        end = data.find(BLANK_LINE) + len(BLANK_LINE)
        if end < len(BLANK_LINE) or data[0] in BLANK_LINE:
            return self.feed(data)
        try:
            self._feed(data[:end])
        except httptools.HttpParserUpgrade:
            assert self._parts.is_done  # llhttp's way to end the head of a 101
        except httptools.HttpParserError as error:
            raise BackendBroke(f"not HTTP: {error}") from error
        return data[end:] if self._parts.is_done else self.feed(data[end:])

    def _feed_pieces(self, data: bytes) -> bytes | None:
        view = memoryview(data)
        for start, stop in pairwise(possible_ends(data)):
            try:
                self._feed(view[start:stop])
            except httptools.HttpParserUpgrade:
                assert self._parts.is_done  # llhttp's way to end the head of a 101
            if self._parts.is_done:
                return data[stop:]
        return None


def possible_ends(data: bytes) -> list[int]:
    """Return the offsets at which a part can end, and both ends of the data.

    Blank lines cannot overlap: there is some text before the one that ends a part.
    """
    begun_before = range(4) if data[0] in BLANK_LINE else ()
    found = (match.end() for match in re.finditer(BLANK_LINE, data))
    return sorted({0, *begun_before[: len(data)], *found, len(data)})


class Head:
    """A response's status line and headers.

    Attributes:
        status: Status code.
        reason: Reason phrase; may be empty.
        http_version: "1.0" or "1.1".
        headers: In the order received, duplicates too; white space around values is removed.
    """

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.http_version = ""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_done = False
        self._read_on: dict[bytes, list[bytes]] | None = None

    def on_status(self, reason: bytes) -> None:
        """Append a piece of the reason phrase."""
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_done = True

    def check(self) -> None:
        """Check what llhttp lets pass.

        Raises:
            BackendBroke: Not a response to relay.
        """
        if self.http_version not in {"1.0", "1.1"}:
            raise BackendBroke(f"speaks HTTP/{self.http_version}")
        if self.status < 100:
            raise BackendBroke(f"status {self.status}")
        if self.reason.translate(None, CONTROLS) != self.reason:
            raise BackendBroke("control characters in the status line")

    def framing(self, method: bytes) -> tuple[Framing, int]:
        """Return how the body ends, and its length in bytes where known (RFC 9112, section 6.3).

        Raises:
            BackendBroke: The framing is ambiguous, or not supported.
        """
        if method == b"HEAD" or self.status in {101, 204, 304}:
            return "none", 0
        codings = self._read().get(b"transfer-encoding")
        if codings:
            # HTTP/1.0 has no transfer codings, so its framing cannot be trusted (section 6.1).
            if codings != [b"chunked"] or self.http_version == "1.0":
                raise BackendBroke(f"Transfer-Encoding {b', '.join(codings)!r}")
            return "chunked", 0
        lengths = self._read().get(b"content-length")
        if not lengths:
            return "close", 0
        if len(lengths[0]) > MAX_LENGTH_DIGITS:
            raise BackendBroke(f"Content-Length has more than {MAX_LENGTH_DIGITS} digits")
        return "length", int(lengths[0])  # llhttp has checked that it is one number, given once

    def keeps_alive(self) -> bool:
        """Return whether the backend takes another request (RFC 9112, section 9.3)."""
        values = self._read().get(b"connection")
        if values is None:
            return self.http_version == "1.1"
        tokens = {token.strip() for value in values for token in value.split(b",")}
        return b"close" not in tokens and (self.http_version == "1.1" or b"keep-alive" in tokens)

    def _read(self) -> dict[bytes, list[bytes]]:
        """Return the values of the headers in `READ_ON`, in lower case."""
        if self._read_on is None:
            self._read_on = {}
            for name, value in self.headers:
                if (lower := name.lower()) in READ_ON:
                    self._read_on.setdefault(lower, []).append(value.lower())
        return self._read_on


class ChunkedEnd:
    """Notices the end of a chunked body and nothing else: fewer callbacks make llhttp faster."""

    __slots__ = ("is_done",)

    def __init__(self) -> None:
        self.is_done = False

    def on_message_complete(self) -> None:
        """End the body, at the blank line behind the last chunk and the trailers."""
        self.is_done = True


class ChunkedParts(ChunkedEnd):
    """Collects the data and the trailers of a chunked body."""

    __slots__ = ("on_body", "pieces", "trailers")

    def __init__(self, trailers: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.trailers = trailers

    def on_header(self, name: bytes, value: bytes) -> None:
        self.trailers.append((name, value.rstrip(b" \t")))
