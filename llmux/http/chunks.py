"""The chunked body of a request, read strictly (RFC 9112, section 7.1), with bounded work.

What two readers could read in two ways is refused: lines that end without CRLF, sizes that are no
plain hexadecimal number, control characters in extensions and trailers. Extensions and trailers
are checked and dropped.
"""

from __future__ import annotations

import re

from llmux.errors import BadRequest
from llmux.http.heads import CRLF, TOKEN

MAX_CHUNKS = 1_000_000
"""Chunks of one body. 64 MiB in chunks of 64 bytes pass; chunks of one byte end in a second."""

MAX_LINE_BYTES = 4096
"""One line of a chunk's size, or of the trailers (Go's net/http: 4096)."""

MAX_EXTRA_BYTES = 65536
"""Extensions and trailers of one body."""

# Up to 16 digits: what a 64-bit number holds. No white space before an extension, as in llhttp.
_EXTENSION = rb";[^\x00-\x08\x0a-\x1f\x7f]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(%b)?\r\n" % _EXTENSION)
_SIZE_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?:%b)?\r?)?" % _EXTENSION)
_TRAILER = re.compile(rb"%b:[^\x00-\x08\x0a-\x1f\x7f]*\r\n" % TOKEN)
_TRAILER_BEGUN = re.compile(rb"\r?|%b(?::[^\x00-\x08\x0a-\x1f\x7f]*\r?)?" % TOKEN)


class ChunkReader:
    """Takes the data out of a chunked body.

    The work for one chunk does not depend on its size, nor on what is in it.
    """

    __slots__ = ("_chunks", "_extra_bytes", "_in_trailers", "_missing", "_rest")

    def __init__(self) -> None:
        self._rest = b""  # of a line that is not whole yet
        self._missing = 0  # of the chunk that is coming, its CRLF included
        self._chunks = 0
        self._extra_bytes = 0
        self._in_trailers = False

    def feed(self, data: bytes, body: bytearray) -> bytes | None:
        """Read what has been received.

        Args:
            data: It.
            body: Gets the data of the chunks.

        Returns:
            What follows the body; None if its end has not come yet.

        Raises:
            BadRequest: It is not in chunks, or there is too much beside the data.
        """
        data, self._rest = self._rest + data, b""
        at = self._finish_chunk(data, body) if self._missing else 0
        while at < len(data) and not self._in_trailers:
            line = _SIZE_LINE.match(data, at)
            if line is None:
                self._keep(data[at:], _SIZE_LINE_BEGUN)
                return None
            at = line.end()
            digits, extension = line.groups()
            size = int(digits, 16)
            self._chunks += 1
            if self._chunks > MAX_CHUNKS:
                raise BadRequest(f"The request's body is in more than {MAX_CHUNKS} chunks")
            if extension is not None:
                self._count_extra(len(extension))
            if size == 0:
                self._in_trailers = True
                break
            stop = at + size
            body += data[at:stop]
            at = stop + 2
            if at > len(data):
                self._missing = at - len(data)
                if stop < len(data):
                    self._check_end(data[stop:])
                return None
            if not data.startswith(CRLF, stop):
                raise _no_end()
        return self._read_trailers(data, at) if self._in_trailers else None

    def _finish_chunk(self, data: bytes, body: bytearray) -> int:
        """Go on with the chunk that was coming; returns where the next one begins."""
        missing_data = max(0, self._missing - 2)
        body += data[:missing_data]
        end = CRLF[2 - self._missing :] if self._missing < 2 else CRLF
        self._check_end(data[missing_data : missing_data + 2][: len(end)], end)
        at = min(self._missing, len(data))
        self._missing -= at
        return at

    def _check_end(self, data: bytes, end: bytes = CRLF) -> None:
        if data != end[: len(data)]:
            raise _no_end()

    def _count_extra(self, by: int) -> None:
        self._extra_bytes += by
        if by > MAX_LINE_BYTES or self._extra_bytes > MAX_EXTRA_BYTES:
            raise BadRequest(
                f"Chunk extensions and trailers are larger than {MAX_EXTRA_BYTES} bytes, "
                f"or one of their lines than {MAX_LINE_BYTES}"
            )

    def _keep(self, rest: bytes, begun: re.Pattern[bytes]) -> None:
        """Keep a line that has begun; raises BadRequest if it cannot become one."""
        if not begun.fullmatch(rest):
            raise BadRequest("The request's body is not in chunks")
        if len(rest) > MAX_LINE_BYTES:
            self._count_extra(len(rest))
        self._rest = rest

    def _read_trailers(self, data: bytes, at: int) -> bytes | None:
        while not data.startswith(CRLF, at):
            line = _TRAILER.match(data, at)
            if line is None:
                self._keep(data[at:], _TRAILER_BEGUN)
                return None
            self._count_extra(line.end() - at)
            at = line.end()
        return data[at + len(CRLF) :]


def _no_end() -> BadRequest:
    return BadRequest("A chunk of the request's body does not end where it says")
