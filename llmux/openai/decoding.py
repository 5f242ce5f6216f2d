"""The content codings of backends' answers: decode a body piece by piece, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmux.errors import BackendBroke, BackendError
from llmux.openai.inflating import GZIP_OR_ZLIB, RAW, InflateError, Inflater, deflate_format

PIECE_BYTES = 65536
"""Limit for one decoded piece: one deflated byte may inflate to a thousand."""


def listed_codings(value: bytes) -> list[bytes]:
    """Return the codings that a Content-Encoding lists, in lower case, without `identity`."""
    names = (each.strip().lower() for each in value.split(b","))
    return [each for each in names if each not in {b"", b"identity"}]


def content_encoding(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the values of all Content-Encoding headers as one list (RFC 9110, section 5.3)."""
    return b", ".join(value for name, value in headers if name.lower() == b"content-encoding")


class Decoder:
    """Removes the content coding of one body.

    Args:
        encoding: Value of Content-Encoding.

    Raises:
        BackendError: Several codings, or one that is not supported.
    """

    def __init__(self, encoding: bytes) -> None:
        codings = listed_codings(encoding)
        if codings not in ([], [b"gzip"], [b"x-gzip"], [b"deflate"]):
            raise BackendError(
                f"answered with Content-Encoding {encoding.decode('latin-1')!r}, though it was "
                "asked for none"
            )
        self._is_plain = not codings
        self._is_deflate = codings == [b"deflate"]
        self._inflater: Inflater | None = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next data; raises BackendBroke if it is corrupt."""
        if not data:
            return
        if self._is_plain:
            yield data
            return
        if self._inflater is None:
            is_raw = self._is_deflate and deflate_format(data) == RAW
            self._inflater = Inflater(RAW if is_raw else GZIP_OR_ZLIB, PIECE_BYTES)
        try:
            yield from filter(None, self._inflater.feed(data))
        except InflateError as error:
            raise BackendBroke(
                f"sent a body that does not match its Content-Encoding: {error}"
            ) from None

    def check_end(self) -> None:
        """Raise BackendBroke if the body ends before its compressed data does."""
        if self._inflater is not None and not self._inflater.is_complete:
            raise BackendBroke("sent a compressed body that is cut off")
