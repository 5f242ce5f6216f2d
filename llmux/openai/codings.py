"""Content codings of request bodies: find them, and decompress within bounds.

Responses have their own decoder, `llmux.openai.decoding`, which works as they arrive.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import brotli

from llmux.base.names import shown
from llmux.errors import BadRequest, NotJson, UnsupportedCoding
from llmux.http.syntax import Headers
from llmux.openai.decoding import codings as named_codings
from llmux.openai.decoding import content_encoding
from llmux.openai.inflating import GZIP, InflateError, Inflater, deflate_format
from llmux.openai.scanning import SLICE_BYTES, Pause, TooLong, no_pause

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT_ENCODING = b"content-encoding"

MAX_CODINGS = 5
"""Limit for one body, as in curl and urllib3."""

MAX_MEMBERS = 4096
"""Limit for members of a gzip body and frames of a zstd body: each costs a new decompressor, even
if it is empty. `bgzip` writes a member per 64 KiB, so 256 MiB of text pass."""

MAX_WINDOW_LOG = 23
"""Window of zstd, 2**23 bytes: the limit for HTTP (RFC 9659). A frame could ask for gigabytes."""

GROW_BYTES = 1 << 20
"""Decompressed bytes between two calls of `Bounds.grow`."""

MAX_GROWTH = 2
"""Bytes of UTF-8 per byte of UTF-16: at most three for two, rounded up."""

Pieces = Iterator[bytes]


class Bounds(NamedTuple):
    """Limits for decompressing.

    Attributes:
        most_bytes: Limit for the result, in bytes.
        pause: Called between two slices.
        grow: Called with the number of bytes by which the result has grown; may raise to stop the
            work.
    """

    most_bytes: int
    pause: Pause = no_pause
    grow: Callable[[int], object] | None = None

    def for_utf8(self) -> Bounds:
        """Return the bounds for the UTF-8 form of a UTF-16 text that is within these."""
        return self._replace(most_bytes=MAX_GROWTH * self.most_bytes)


def content_codings(headers: Headers) -> tuple[str, ...]:
    """Return the codings of a body, in the order in which they must be undone.

    Raises:
        UnsupportedCoding: A coding is unknown, or there are too many.
    """
    for name, _ in headers:
        # Every request passes here: comparing lengths first saves most calls of `lower`.
        if len(name) == 16 and name.lower() == CONTENT_ENCODING:
            return _codings(headers)
    return ()


def _codings(headers: Headers) -> tuple[str, ...]:
    names = [each.decode("latin-1") for each in named_codings(content_encoding(headers))]
    codings = [_ALIASES.get(name, name) for name in names]
    for coding in codings:
        if coding not in _DECODERS:
            known = ", ".join(_DECODERS)
            raise UnsupportedCoding(
                f"Content-Encoding {shown(coding)!r} is not supported: use {known} or identity"
            )
    if len(codings) > MAX_CODINGS:
        raise UnsupportedCoding(f"Content-Encoding names more than {MAX_CODINGS} codings")
    return tuple(reversed(codings))  # listed in the order applied (RFC 9110, section 8.4)


def decoded(body: bytes, codings: Sequence[str], bounds: Bounds) -> bytes:
    """Undo codings of a body.

    Args:
        body: Body as received.
        codings: Codings to undo, in this order: those of `content_codings`, or Python codecs, whose
            text is re-encoded as UTF-8.
        bounds: Limits for the result and for each intermediate form.

    Raises:
        TooLong: A limit is exceeded.
        BadRequest: The body does not have these codings.
    """
    pieces: Pieces = (body[at : at + SLICE_BYTES] for at in range(0, len(body), SLICE_BYTES))
    for coding in codings:
        decode = _DECODERS.get(coding) or partial(_recoded, codec=coding)
        pieces = _bounded(decode(pieces, bounds.pause), bounds.most_bytes)
    copy = io.BytesIO()  # hands over its buffer, where b"".join(pieces) would hold all of it twice
    counted = 0
    for piece in pieces:
        size = copy.tell() + len(piece)
        if bounds.grow is not None and size >= counted + GROW_BYTES:
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
_GARBAGE = "data follows its end"


def _gunzipped(pieces: Pieces, pause: Pause) -> Pieces:
    return _inflated(pieces, pause, "gzip", GZIP)


def _undeflated(pieces: Pieces, pause: Pause) -> Pieces:
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= 2:
            break
    return _inflated(chain([start], pieces), pause, "deflate", deflate_format(start))


def _inflated(pieces: Pieces, pause: Pause, coding: str, wbits: int) -> Pieces:
    inflater = Inflater(wbits, SLICE_BYTES, _Members(coding).count_one)
    try:
        for piece in pieces:
            for inflated in inflater.feed(piece):
                yield inflated
                pause()
    except InflateError as error:
        raise _corrupt(coding, error) from None
    if not inflater.is_complete:
        raise _corrupt(coding, _CUT_OFF)


class _Members:
    """Counts the members of a gzip body, or the frames of a zstd one."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._count = 1

    def count_one(self) -> None:
        """Count another; raises BadRequest if there may be none."""
        if self._coding == "deflate":
            raise _corrupt(self._coding, _GARBAGE)
        if self._count == MAX_MEMBERS:
            raise _corrupt(self._coding, f"it has more than {MAX_MEMBERS} members")
        self._count += 1


def _unzstd(pieces: Pieces, pause: Pause) -> Pieces:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    decompressor = zstd.ZstdDecompressor(options=options)
    members = _Members("zstd")
    try:
        for piece in pieces:
            rest = piece
            while rest or not (decompressor.eof or decompressor.needs_input):
                if decompressor.eof:
                    members.count_one()
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
        while not decompressor.is_finished():  # output that the limit per call held back
            if not (more := decompressor.process(b"", output_buffer_limit=SLICE_BYTES)):
                raise _corrupt("br", _CUT_OFF)
            yield more
            pause()
    except brotli.error:
        raise _corrupt("br", "invalid data") from None


def _recoded(pieces: Pieces, pause: Pause, codec: str) -> Pieces:
    """Re-encode text as UTF-8, with lone surrogates, since Python's `json` accepts them."""
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
