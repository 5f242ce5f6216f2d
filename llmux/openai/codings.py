"""Compressed bodies of requests: which codings they have, and what was compressed, in bounds."""

from __future__ import annotations

import codecs
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import brotli

from llmux.base.names import shown
from llmux.errors import BadRequest, NotJson, UnsupportedCoding
from llmux.http.syntax import Headers
from llmux.openai.scanning import SLICE_BYTES, Pause, TooLong, no_pause

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT_ENCODING = b"content-encoding"

MAX_CODINGS = 5
"""Codings of one body, as in curl and urllib3."""

MAX_MEMBERS = 4096
"""Members of a gzip body, frames of a zstd one. `bgzip` makes one of each 64 KiB."""

MAX_WINDOW_LOG = 23
"""zstd: 8 MiB, the most that HTTP's coding allows (RFC 9659); a frame may ask for gigabytes."""

COUNTED_BYTES = 1 << 20
"""How much is decompressed before it is counted."""

MOST_GROWTH = 2
"""Bytes of UTF-8 for each byte of UTF-16: three for two, rounded up."""

Pieces = Iterator[bytes]


class Bounds(NamedTuple):
    """What decompressing may take.

    Attributes:
        most_bytes: How much there may be of it.
        pause: Called between two slices.
        grow: Called with the number of bytes by which a copy has grown; may raise, to end the work.
    """

    most_bytes: int
    pause: Pause = no_pause
    grow: Callable[[int], object] | None = None

    def for_utf8(self) -> Bounds:
        """Return the bounds for the same text in UTF-8, if it is in UTF-16 now."""
        return self._replace(most_bytes=MOST_GROWTH * self.most_bytes)


def content_codings(headers: Headers) -> tuple[str, ...]:
    """The codings of a body, in the order in which they are undone; none for most bodies.

    Raises:
        UnsupportedCoding: There is one that is not known, or there are too many.
    """
    for name, _ in headers:
        if len(name) == 16 and name.lower() == CONTENT_ENCODING:  # few have this length
            return _codings(headers)
    return ()


def _codings(headers: Headers) -> tuple[str, ...]:
    values = (value for name, value in headers if name.lower() == CONTENT_ENCODING)
    named = [each.strip().lower().decode("latin-1") for each in b",".join(values).split(b",")]
    codings = [_ALIASES.get(each, each) for each in named if each not in {"", "identity"}]
    for coding in codings:
        if coding not in _DECODERS:
            known = ", ".join(_DECODERS)
            raise UnsupportedCoding(
                f"Content-Encoding {shown(coding)!r} is not supported: use {known} or identity"
            )
    if len(codings) > MAX_CODINGS:
        raise UnsupportedCoding(f"Content-Encoding names more than {MAX_CODINGS} codings")
    return tuple(reversed(codings))


def decoded(body: bytes, codings: Sequence[str], bounds: Bounds) -> bytes:
    """What was compressed.

    Args:
        body: What to decompress.
        codings: What to undo, in this order: of `content_codings`, or codecs of text, whose text
            is returned in UTF-8.
        bounds: Of the result, and of what there is on the way to it.

    Raises:
        TooLong: It is more.
        BadRequest: It is not what it is said to be.
    """
    pieces: Pieces = (body[at : at + SLICE_BYTES] for at in range(0, len(body), SLICE_BYTES))
    for coding in codings:
        decode = _DECODERS.get(coding) or partial(_recoded, codec=coding)
        pieces = _bounded(decode(pieces, bounds.pause), bounds.most_bytes)
    copy = io.BytesIO()  # it gives its buffer away, where joining pieces would hold all twice
    counted = 0
    for piece in pieces:
        size = copy.tell() + len(piece)
        if bounds.grow is not None and size >= counted + COUNTED_BYTES:
            bounds.grow(size - counted)
            counted = size
        copy.write(piece)
    return copy.getvalue()


def _bounded(pieces: Pieces, most_bytes: int) -> Pieces:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most_bytes:
            raise TooLong
        if piece:
            yield piece


def _corrupt(coding: str, reason: object) -> BadRequest:
    return BadRequest(f"body is not what its Content-Encoding says: {coding}: {reason}")


_CUT_OFF = "it is cut off"
_GARBAGE = "something else follows its end"


def _gunzipped(pieces: Pieces, pause: Pause) -> Pieces:
    return _inflated(pieces, pause, "gzip", 16 + zlib.MAX_WBITS)


def _undeflated(pieces: Pieces, pause: Pause) -> Pieces:
    """Undo zlib's format, or what some clients send instead of it (RFC 9110, section 8.4.1.2)."""
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= 2:
            break
    is_zlib = start[:1] and start[0] & 0x8F == zlib.DEFLATED and int.from_bytes(start[:2]) % 31 == 0
    wbits = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
    return _inflated(_chained(start, pieces), pause, "deflate", wbits)


def _chained(first: bytes, rest: Pieces) -> Pieces:
    yield first
    yield from rest


def _inflated(pieces: Pieces, pause: Pause, coding: str, wbits: int) -> Pieces:
    inflater = zlib.decompressobj(wbits)
    members = 1
    try:
        for piece in pieces:
            rest = piece
            while rest:
                if inflater.eof:
                    members = _next_member(members, coding)
                    inflater = zlib.decompressobj(wbits)
                yield inflater.decompress(rest, SLICE_BYTES)
                rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                pause()
        while not inflater.eof:  # what it holds back
            if not (more := inflater.decompress(b"", SLICE_BYTES)):
                raise _corrupt(coding, _CUT_OFF)
            yield more
            pause()
    except zlib.error as error:
        raise _corrupt(coding, str(error).rpartition(": ")[2]) from None


def _next_member(members: int, coding: str) -> int:
    """Count one more; raises BadRequest if there may be none."""
    if coding == "deflate":
        raise _corrupt(coding, _GARBAGE)
    if members == MAX_MEMBERS:
        raise _corrupt(coding, f"it has more than {MAX_MEMBERS} members")
    return members + 1


def _unzstd(pieces: Pieces, pause: Pause) -> Pieces:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    decompressor = zstd.ZstdDecompressor(options=options)
    members = 1
    try:
        for piece in pieces:
            rest = piece
            while rest or not (decompressor.eof or decompressor.needs_input):
                if decompressor.eof:
                    members = _next_member(members, "zstd")
                    decompressor = zstd.ZstdDecompressor(options=options)
                yield decompressor.decompress(rest, SLICE_BYTES)
                rest = decompressor.unused_data if decompressor.eof else b""
                pause()
    except zstd.ZstdError as error:
        raise _corrupt("zstd", str(error).rpartition(": ")[2]) from None
    if not decompressor.eof:
        raise _corrupt("zstd", _CUT_OFF)


def _unbrotli(pieces: Pieces, pause: Pause) -> Pieces:
    decompressor = brotli.Decompressor()
    try:
        for piece in pieces:
            if decompressor.is_finished():
                raise _corrupt("br", _GARBAGE)
            yield decompressor.process(piece, output_buffer_limit=SLICE_BYTES)
            pause()
            while not (decompressor.can_accept_more_data() or decompressor.is_finished()):
                yield decompressor.process(b"", output_buffer_limit=SLICE_BYTES)
                pause()
        while not decompressor.is_finished():  # what it holds back
            if not (more := decompressor.process(b"", output_buffer_limit=SLICE_BYTES)):
                raise _corrupt("br", _CUT_OFF)
            yield more
            pause()
    except brotli.error:
        raise _corrupt("br", "no such data") from None


def _recoded(pieces: Pieces, pause: Pause, codec: str) -> Pieces:
    """Text as UTF-8; Python's `json` takes lone surrogates, too."""
    decoder = codecs.getincrementaldecoder(codec)("surrogatepass")
    try:
        for piece in pieces:
            yield decoder.decode(piece).encode("utf-8", "surrogatepass")
            pause()
        yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise NotJson(f"not {codec.upper()}: {error.reason}") from None


_DECODERS: dict[str, Callable[[Pieces, Pause], Pieces]] = {
    "gzip": _gunzipped,
    "deflate": _undeflated,
    "zstd": _unzstd,
    "br": _unbrotli,
}
_ALIASES = {"x-gzip": "gzip"}  # RFC 9110, section 8.4.1.3
