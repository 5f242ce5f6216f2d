"""Content codings of responses: decompress piece by piece, in bounded memory.

Backends of streams are asked for no coding, and some compress anyway. Requests have their own
decoders, `llmux.openai.codings`, which need a whole body.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from llmux.errors import BackendBroke, BackendError

PIECE_BYTES = 65536
"""Limit for one decoded piece: a compressed byte may expand to a thousand."""

_WITH_HEADER = 32 + zlib.MAX_WBITS  # detects gzip's header or zlib's
_ZLIB_METHOD = 8
"""Low bits of the first byte of zlib's header (RFC 1950), which some servers' `deflate` lacks."""


def codings(value: bytes) -> list[bytes]:
    """Return the codings that a Content-Encoding names, without those that change nothing."""
    names = (each.strip().lower() for each in value.split(b","))
    return [each for each in names if each not in {b"", b"identity"}]


def content_encoding(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the values of all Content-Encoding headers, joined (RFC 9110, section 5.3)."""
    return b", ".join(value for name, value in headers if name.lower() == b"content-encoding")


class Decoder:
    """Removes the coding of a body that arrives in pieces.

    Args:
        encoding: Value of Content-Encoding.

    Raises:
        BackendError: The coding is not supported: only gzip and deflate are.
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
        """Decode the next bytes of the body; raises BackendBroke if they are corrupt."""
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
                raise BackendBroke(f"sent a body unlike its Content-Encoding: {error}") from None
            if piece:
                yield piece
            data = self._inner.unconsumed_tail or self._inner.unused_data
            if not data and len(piece) == PIECE_BYTES:
                yield from self._pending()

    def _pending(self) -> Iterator[bytes]:
        """Drain output that the limit per piece held back, though all input is consumed."""
        while piece := self._inner.decompress(b"", PIECE_BYTES):
            yield piece

    def _begin(self, first: int) -> None:
        self._has_begun = True
        if self._is_deflate and first & 0x0F != _ZLIB_METHOD:
            self._inner = zlib.decompressobj(-zlib.MAX_WBITS)

    def check_end(self) -> None:
        """Check that the compressed data ends where the body does; raises BackendBroke."""
        if self._has_begun and not self._inner.eof:
            raise BackendBroke("sent a compressed body without its end")
