"""The content codings of requests: name them, and decode a body within bounds of memory."""

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
from llmux.openai.decoding import content_encoding, listed_codings
from llmux.openai.inflating import GZIP, InflateError, Inflater, deflate_format
from llmux.openai.scanning import SLICE_BYTES, Pause, TooLong, no_pause

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT_ENCODING = b"content-encoding"

MAX_CODINGS = 5
"""Limit for the codings of one body, as in curl and urllib3."""

MAX_MEMBERS = 4096
"""Limit for the members of a gzip body, and the frames of a zstd body. `bgzip` makes a member of
each 64 KiB."""

MAX_WINDOW_LOG = 23
"""Limit for zstd's window: 8 MiB, as HTTP's coding has it (RFC 9659). A frame may ask for
gigabytes."""

COUNTED_BYTES = 1 << 20
"""Bytes decoded between two calls of `Bounds.grow`."""

MOST_GROWTH = 2
"""Limit for the bytes of UTF-8 made of one byte of UTF-16: three of two, rounded up."""

Pieces = Iterator[bytes]


class Bounds(NamedTuple):
    """Limits for decoding one body.

    Attributes:
        most_bytes: Limit for the decoded body.
        pause: Called between two slices.
        grow: Called with the number of bytes by which the decoded copy has grown; may raise, to end
            the work.
    """

    most_bytes: int
    pause: Pause = no_pause
    grow: Callable[[int], object] | None = None

    def for_utf8(self) -> Bounds:
        """Return the bounds for recoding to UTF-8 a text that may be in UTF-16."""
        return self._replace(most_bytes=MOST_GROWTH * self.most_bytes)


def content_codings(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """Return the codings of a body in the order in which to undo them; empty for most bodies.

    Raises:
        UnsupportedCoding: An unknown coding, or too many.
    """
    for name, _ in headers:
        if len(name) == 16 and name.lower() == CONTENT_ENCODING:  # few have this length
            return _codings(headers)
    return ()


def _codings(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, ...]:
    names = [each.decode("latin-1") for each in listed_codings(content_encoding(headers))]
    codings = [_ALIASES.get(name, name) for name in names]
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
    """Decode a body.

    Args:
        body: The body as received.
        codings: What to undo, in this order: names of `content_codings`, or Python's text codecs,
            whose text is recoded to UTF-8.
        bounds: Limits for the result, and for the output of each coding on the way to it.

    Raises:
        TooLong: A limit is exceeded.
        BadRequest: The body does not match its codings.
    """
    pieces: Pieces = (body[at : at + SLICE_BYTES] for at in range(0, len(body), SLICE_BYTES))
    for coding in codings:
        decode = _DECODERS.get(coding) or partial(_recoded, codec=coding)
        pieces = _bounded(decode(pieces, bounds.pause), bounds.most_bytes)
    copy = io.BytesIO()  # its buffer becomes the result; joining pieces would need twice the memory
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
        while not decompressor.is_finished():  # it may hold back output
            if not (more := decompressor.process(b"", output_buffer_limit=SLICE_BYTES)):
                raise _corrupt("br", _CUT_OFF)
            yield more
            pause()
    except brotli.error:
        raise _corrupt("br", "invalid data") from None


def _recoded(pieces: Pieces, pause: Pause, codec: str) -> Pieces:
    """Recode text to UTF-8, with lone surrogates, as Python's `json` takes them."""
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
