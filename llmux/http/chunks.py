"""The chunked transfer coding (RFC 9112, section 7.1): requests read strictly, and chunks written.

`ChunkReader` refuses what two readers could read in two ways: lines that end without CRLF, sizes
that are not plain hexadecimal numbers, control characters in extensions and trailers. It checks
extensions and trailers, then drops them, as section 7.1.1 has recipients do with unknown ones.

Its errors are the client's (400). Answers of backends are read by `llmux.http.responses`, whose
errors are the backend's (502), so neither can be mistaken for the other.
"""

from __future__ import annotations

import re

from llmux.errors import BadRequest
from llmux.http.syntax import CRLF, TOKEN

MAX_CHUNKS = 1_000_000
"""Limit for one body. 64 MiB in chunks of 64 bytes pass; chunks of one byte end in a second."""

MAX_LINE_BYTES = 4096
"""Limit for one line: a chunk's size, or a trailer (Go's net/http: 4096)."""

MAX_EXTRA_BYTES = 65536
"""Limit for all extensions and trailers of one body."""

# Up to 16 digits: the range of a 64-bit number. No white space before an extension, as in llhttp:
# the grammar allows it for bad implementations only (RFC 9112, section 7.1.1), and readers that
# disagree on where a chunk's size ends have been used for request smuggling.
_EXTENSION = rb";[^\x00-\x08\x0a-\x1f\x7f]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(%b)?\r\n" % _EXTENSION)
_SIZE_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?:%b)?\r?)?" % _EXTENSION)
_TRAILER = re.compile(rb"%b:[^\x00-\x08\x0a-\x1f\x7f]*\r\n" % TOKEN)
_TRAILER_BEGUN = re.compile(rb"\r?|%b(?::[^\x00-\x08\x0a-\x1f\x7f]*\r?)?" % TOKEN)

# In the middle of a body, found by its shape: JSON has no such line, nor have events. Lenient,
# since it reads backends' framing, which has been checked before.
_HEAD_INSIDE = re.compile(rb"\r\n[0-9A-Fa-f]{1,16}(?:[ \t]*;[^\r\n]*)?\r\n")
_HEAD_AT_END = re.compile(rb"%b\Z" % _HEAD_INSIDE.pattern)

LAST_CHUNK = b"0\r\n\r\n"
"""The end of a chunked body without trailers."""


def chunk(data: bytes) -> bytes:
    """Frame data, which must not be empty: an empty chunk is the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def without_chunk_heads(piece: bytes) -> bytes:
    """Remove the lines between the chunks from a piece of a body, which may begin amid one."""
    return _HEAD_INSIDE.sub(b"", CRLF + piece).removeprefix(CRLF)


def tail_of_chunks(raw: bytes) -> bytes | None:
    """Return the last bytes (up to 4) of the data in chunks; None in the middle of a chunk."""
    last = CRLF + raw[-64:]
    if not raw.endswith(CRLF) or _HEAD_AT_END.search(last):
        return None
    return _HEAD_INSIDE.sub(b"", last)[-6:-2]


class ChunkReader:
    """Extracts the data of a chunked body, with bounded work.

    The work for one chunk depends neither on its size nor on its content.
    """

    __slots__ = ("_chunks", "_extra_bytes", "_in_trailers", "_missing", "_rest")

    def __init__(self) -> None:
        self._rest = b""  # of a line that is not whole yet
        self._missing = 0  # of the chunk that is coming, its CRLF included
        self._chunks = 0
        self._extra_bytes = 0
        self._in_trailers = False

    def feed(self, data: bytes, body: bytearray) -> bytes | None:
        """Read more of the body.

        Args:
            data: As received.
            body: The data of the chunks is appended here.

        Returns:
            The bytes after the body; None if its end has not come yet.

        Raises:
            BadRequest: Not chunked, or too many chunks, extensions or trailers.
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
        """Read more of a chunk that has begun; returns the offset of the next one."""
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
        # Checked at once: a line that can never become valid must not be waited for.
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
