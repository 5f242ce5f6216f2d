"""Split the requests on one HTTP/1 connection strictly into heads and bodies, for another reader.

The output is the bytes of whole heads and of bodies, in which nothing is left that could be read in
two ways: heads and bodies with a length as received, chunked bodies in chunks of this module's own.
Sans I/O; a violation is raised where it occurs, and there is no output after it.
"""

from __future__ import annotations

from typing import NamedTuple

from llmux.errors import LlmuxError
from llmux.http.chunks import LAST_CHUNK, ChunkReader, chunk
from llmux.http.heads import (
    RequestHead,
    check_empty_bytes,
    find_end,
    parse_head,
    skip_empty_lines,
)
from llmux.http.syntax import CRLF
from llmux.http.targets import origin_form

PREFACE_LINE = b"PRI * HTTP/2.0\r\n"
"""First line of a connection that speaks HTTP/2 with prior knowledge (RFC 9113, section 3.4)."""


class Piece(NamedTuple):
    """Bytes to pass on.

    Attributes:
        data: As passed on.
        head: Parsed, if `data` is a head.
    """

    data: bytes
    head: RequestHead | None = None


class RequestReader:
    """Reads the requests of one connection.

    Args:
        most_fields: Limit for the header fields of a request.

    Attributes:
        rest: Received, and not passed on yet.
        has_begun: True once there has been a request.
        has_ended: True once nothing more is read: a request was the last, or was refused.
        line: The first line of the last request, refused or not.
    """

    def __init__(self, most_fields: int) -> None:
        self.rest = b""
        self.has_begun = False
        self.has_ended = False
        self.line = b""
        self._most_fields = most_fields
        self._seen = 0
        self._empty_bytes = 0
        self._length = 0
        self._chunks: ChunkReader | None = None
        self._is_last = False

    def receive(self, data: bytes) -> None:
        """Add received bytes; call `next_piece` until it returns None."""
        if not self.has_ended:
            self.rest += data

    @property
    def speaks_http2(self) -> bool:
        """True if the connection begins with the preface of HTTP/2."""
        return not self.has_begun and self.rest.startswith(PREFACE_LINE)

    def next_piece(self) -> Piece | None:
        """Return the next bytes to pass on; None if more must be received first.

        Raises:
            LlmuxError: Not a request; there is no output from then on.
        """
        try:
            if self._length:
                return self._next_of_length()
            if self._chunks is not None:
                return self._next_of_chunks(self._chunks)
            return self._next_head()
        except LlmuxError:
            self.end()
            raise

    def end(self) -> None:
        """Drop what was received, and whatever comes."""
        self.has_ended = True
        self.rest = b""

    def _next_of_length(self) -> Piece | None:
        data, self.rest = self.rest[: self._length], self.rest[self._length :]
        self._length -= len(data)
        if not self._length:
            self._finish_request()
        return Piece(data) if data else None

    def _next_of_chunks(self, chunks: ChunkReader) -> Piece | None:
        body = bytearray()
        data, self.rest = self.rest, b""
        rest = chunks.feed(data, body)
        out = chunk(bytes(body)) if body else b""
        if rest is not None:
            out += LAST_CHUNK
            self.rest, self._chunks = rest, None
            self._finish_request()
        return Piece(out) if out else None

    def _next_head(self) -> Piece | None:
        before = len(self.rest)
        data = self.rest = skip_empty_lines(self.rest)
        self._empty_bytes += before - len(data)
        check_empty_bytes(self._empty_bytes)
        if not data or data in CRLF:
            return None
        self.line = data.partition(CRLF)[0]
        end = find_end(data, self._seen)
        if not end:
            self._seen = len(data)
            return None
        head = parse_head(data[:end], self._most_fields)
        origin_form(head.target)
        self.rest = data[end:]
        self.has_begun = True
        self._seen = self._empty_bytes = 0
        self._length = head.content_length
        self._chunks = ChunkReader() if head.is_chunked else None
        self._is_last = not head.keeps_alive
        if not (self._length or self._chunks):
            self._finish_request()
        return Piece(data[:end], head)

    def _finish_request(self) -> None:
        if self._is_last:
            self.end()
