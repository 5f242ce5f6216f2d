"""gzip and deflate: inflate data as it arrives, in pieces of bounded size."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

GZIP = 16 + zlib.MAX_WBITS
ZLIB = zlib.MAX_WBITS
RAW = -zlib.MAX_WBITS
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
"""Formats, as `zlib.decompressobj` takes them (`wbits`). `RAW` is deflate without a header."""


class InflateError(Exception):
    """The data is not of the expected format."""


class Inflater:
    """Inflates one stream, or several members in a row (RFC 1952, section 2.2).

    Args:
        wbits: The format.
        piece_bytes: Limit for one piece of output. One byte may inflate to a thousand.
        next_member: Called before each member after the first; may raise, to refuse it.
    """

    def __init__(
        self, wbits: int, piece_bytes: int, next_member: Callable[[], object] | None = None
    ) -> None:
        self._inner = zlib.decompressobj(wbits)
        # Raw data has no header to begin another member with; what follows must have one.
        self._next_wbits = GZIP_OR_ZLIB if wbits == RAW else wbits
        self._piece_bytes = piece_bytes
        self._next_member = next_member

    @property
    def is_complete(self) -> bool:
        """True if the data may end here: the last member has ended."""
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Inflate more data; yields once per step of work, so pieces may be empty.

        Raises:
            InflateError: The data is corrupt.
        """
        try:
            while data:
                if self._inner.eof:
                    if self._next_member is not None:
                        self._next_member()
                    self._inner = zlib.decompressobj(self._next_wbits)
                yield self._inner.decompress(data, self._piece_bytes)
                data = self._inner.unconsumed_tail or self._inner.unused_data
            # zlib may hold back output although it has consumed all input.
            while piece := self._inner.decompress(b"", self._piece_bytes):
                yield piece
        except zlib.error as error:
            # Such as "Error -3 while decompressing data: incorrect header check".
            raise InflateError(str(error).rpartition(": ")[2]) from None


def deflate_format(start: bytes) -> int:
    """Tell the format of `deflate` data from its first two bytes, or from one if that is all.

    It should be zlib's, but some senders omit the header (RFC 9110, section 8.4.1.2). The header is
    a method of 8, a window of at most 32 KiB, and a check: its two bytes are a multiple of 31 (RFC
    1950, section 2.2).
    """
    has_method = start[:1] != b"" and start[0] & 0x8F == zlib.DEFLATED
    passes_check = len(start) < 2 or int.from_bytes(start[:2]) % 31 == 0
    return ZLIB if has_method and passes_check else RAW


def inflate_start(data: bytes, coding: bytes, most_bytes: int) -> bytes:
    """Inflate the start of a body; returns nothing for corrupt data and for other codings.

    Args:
        data: The start of the body.
        coding: Its only content coding, in lower case.
        most_bytes: Limit for the result.
    """
    wbits = _HEADERS.get(coding)
    if wbits is None:
        return b""
    try:
        return zlib.decompressobj(wbits).decompress(data, most_bytes)
    except zlib.error:
        return b""


_HEADERS = {b"gzip": GZIP_OR_ZLIB, b"x-gzip": GZIP_OR_ZLIB, b"deflate": ZLIB}
