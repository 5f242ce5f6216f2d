"""Content codings of responses: decompress piece by piece, in bounded memory.

Backends of streams are asked for no coding, and some compress anyway. Requests have their own
decoders, `llmux.openai.codings`, which need a whole body.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmux.errors import BackendBroke, BackendError
from llmux.http.syntax import Headers
from llmux.openai.inflating import GZIP_OR_ZLIB, RAW, InflateError, Inflater, deflate_format

PIECE_BYTES = 65536
"""Limit for one decoded piece: a compressed byte may expand to a thousand."""


def codings(value: bytes) -> list[bytes]:
    """Return the codings that a Content-Encoding names, without those that change nothing."""
    names = (each.strip().lower() for each in value.split(b","))
    return [each for each in names if each not in {b"", b"identity"}]


def content_encoding(headers: Headers) -> bytes:
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
        self._inflater: Inflater | None = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes of the body; raises BackendBroke if they are corrupt."""
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
            raise BackendBroke(f"sent a body unlike its Content-Encoding: {error}") from None

    def check_end(self) -> None:
        """Check that the compressed data ends where the body does; raises BackendBroke."""
        if self._inflater is not None and not self._inflater.is_complete:
            raise BackendBroke("sent a compressed body without its end")
