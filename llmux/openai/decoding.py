"""Bodies without their Content-Encoding, piece by piece, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from llmux.errors import BackendBroke, BackendError
from llmux.http.syntax import Headers

PIECE_BYTES = 65536
"""The most that is decoded at a time: a deflated byte may become a thousand."""

_WITH_HEADER = 32 + zlib.MAX_WBITS  # of gzip or zlib, whichever there is
_ZLIB_METHOD = 8
"""Low bits of the first byte where `deflate` has zlib's header (RFC 1950); some send none."""


def codings(value: bytes) -> list[bytes]:
    """What a Content-Encoding says, less what changes nothing."""
    said = (each.strip().lower() for each in value.split(b","))
    return [each for each in said if each not in {b"", b"identity"}]


def content_encoding(headers: Headers) -> bytes:
    """What all headers of this name say, as one (RFC 9110, section 5.3)."""
    return b", ".join(value for name, value in headers if name.lower() == b"content-encoding")


class Decoder:
    """Takes the coding off a body.

    Args:
        encoding: The value of Content-Encoding.

    Raises:
        BackendError: It is none that can be taken off.
    """

    def __init__(self, encoding: bytes) -> None:
        wanted = codings(encoding)
        if wanted not in ([], [b"gzip"], [b"x-gzip"], [b"deflate"]):
            raise BackendError(
                f"answered with Content-Encoding {encoding.decode('latin-1')!r}, though it was "
                "asked for none"
            )
        self._is_plain = not wanted
        self._is_deflate = wanted == [b"deflate"]
        self._inner = zlib.decompressobj(_WITH_HEADER)
        self._has_begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What this says; raises BackendBroke if it is not so encoded."""
        if self._is_plain:
            if data:
                yield data
            return
        if data and not self._has_begun:
            self._begin(data[0])
        while data:
            if self._inner.eof:  # one member of gzip may follow another (RFC 1952, section 2.2)
                self._inner = zlib.decompressobj(_WITH_HEADER)
            try:
                piece = self._inner.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise BackendBroke(f"sent what is not encoded as it says: {error}") from None
            if piece:
                yield piece
            data = self._inner.unconsumed_tail or self._inner.unused_data
            if not data and len(piece) == PIECE_BYTES:
                yield from self._pending()

    def _pending(self) -> Iterator[bytes]:
        """What is still inside, though all that came has been taken."""
        while piece := self._inner.decompress(b"", PIECE_BYTES):
            yield piece

    def _begin(self, first: int) -> None:
        self._has_begun = True
        if self._is_deflate and first & 0x0F != _ZLIB_METHOD:
            self._inner = zlib.decompressobj(-zlib.MAX_WBITS)

    def check_end(self) -> None:
        """The body has ended; raises BackendBroke if what is inside of it has not."""
        if self._has_begun and not self._inner.eof:
            raise BackendBroke("sent an encoded body without its end")
