"""Decompressing the bodies of requests: in slices, within bounds, and strictly."""

from __future__ import annotations

import gzip
import os
import random
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest

from llmux.errors import BadRequest, UnsupportedCoding
from llmux.openai import codings
from llmux.openai.codings import Bounds, content_codings, decoded
from llmux.openai.fields import read_coded
from llmux.openai.scanning import SLICE_BYTES, TooLong

zstd: Any = vars(codings)["zstd"]


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "br": brotli.compress,
}
ENCODINGS = [*ENCODE.items(), ("deflate", raw_deflate)]
MANY = ["gzip", "zstd"]  # members, or frames, one behind the other

DATA = {
    "nothing": b"",
    "little": b'{"model":"a"}',
    "no end of one byte": b"a" * 1_000_000,
    "noise": os.urandom(200_000),
    "both": (b"abc" * 10_000 + os.urandom(1000)) * 20,
}


def most(count: int) -> Bounds:
    return Bounds(count)


@pytest.mark.parametrize(("coding", "encode"), ENCODINGS)
@pytest.mark.parametrize("what", DATA)
def test_what_was_compressed_comes_back(
    coding: str, encode: Callable[[bytes], bytes], what: str
) -> None:
    data = DATA[what]
    encoded = encode(data)
    assert decoded(encoded, [coding], most(len(data))) == data
    for cut in {1, len(encoded) // 2, len(encoded) - 1} - {len(encoded)}:
        with pytest.raises(BadRequest, match=f"^body is not what its .*: {coding}: "):
            decoded(encoded[:cut], [coding], most(10**7))
    for behind in (b"\0", b"\n", b"{}", b"\x1f", b"(", os.urandom(100_000)):
        with pytest.raises(BadRequest, match=f"^body is not what its .*: {coding}: "):
            decoded(encoded + behind, [coding], most(10**7))
    if data:
        with pytest.raises(TooLong):
            decoded(encoded, [coding], most(len(data) - 1))
    if coding in MANY:
        assert decoded(encoded * 3, [coding], most(10**7)) == data * 3
    else:
        with pytest.raises(BadRequest):
            decoded(encoded * 2, [coding], most(10**7))


@pytest.mark.parametrize("coding", ENCODE)
def test_a_bit_that_was_changed_is_found_or_changes_little(coding: str) -> None:
    """What a check finds is refused; nothing is an unforeseen error."""
    random.seed(1)
    encoded = bytearray(ENCODE[coding](b'{"model":"a","x":"%b"}' % os.urandom(300).hex().encode()))
    for _ in range(300):
        changed = bytearray(encoded)
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        try:
            decoded(bytes(changed), [coding], most(10**6))
        except (BadRequest, TooLong):
            pass


@pytest.mark.parametrize("coding", ENCODE)
def test_a_bomb_ends_at_the_bound(coding: str) -> None:
    """64 MiB of zeros, and a bomb in a bomb: no more is ever there than a slice, and the copy."""
    bomb = ENCODE[coding](bytes(64 << 20))
    assert len(bomb) < 70_000
    held: list[int] = []
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    for body, order in [(bomb, [coding]), (gzip.compress(bomb), ["gzip", coding])]:
        held.clear()
        with pytest.raises(TooLong):
            decoded(body, order, Bounds(8 << 20, pause, held.append))
        assert sum(held) <= 8 << 20
        assert max(held) < 1.2 * codings.GROW_BYTES
    assert pauses >= 2 * (8 << 20) / (SLICE_BYTES * 2)


def test_what_is_in_between_is_bounded_too() -> None:
    """A gigabyte of frames that hold nothing is nothing in the end."""
    frame = b"\x50\x2a\x4d\x18" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)
    with pytest.raises(TooLong):
        decoded(gzip.compress(frame * 4), ["gzip", "zstd"], most(2 << 20))


@pytest.mark.parametrize("coding", MANY)
def test_members_are_few(coding: str) -> None:
    empty = ENCODE[coding](b"")
    assert decoded(empty * codings.MAX_MEMBERS, [coding], most(1)) == b""
    with pytest.raises(BadRequest, match="more than 4096 members"):
        decoded(empty * (codings.MAX_MEMBERS + 1), [coding], most(1))


def test_a_zstd_frame_cannot_ask_for_more_memory_than_http_allows() -> None:
    level = zstd.CompressionParameter.compression_level
    window = zstd.CompressionParameter.window_log
    noise = os.urandom(9 << 20)
    for log, is_fine in [(23, True), (24, False)]:
        compressor = zstd.ZstdCompressor(options={level: 1, window: log})
        body = compressor.compress(noise) + compressor.flush()
        if is_fine:
            assert decoded(body, ["zstd"], most(len(noise))) == noise
        else:
            with pytest.raises(BadRequest, match="too much memory"):
                decoded(body, ["zstd"], most(len(noise)))


@pytest.mark.parametrize("slice_bytes", [1, 2, 7])
@pytest.mark.parametrize(("coding", "encode"), ENCODINGS)
def test_slices_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    slice_bytes: int,
    coding: str,
    encode: Callable[[bytes], bytes],
) -> None:
    monkeypatch.setattr(codings, "SLICE_BYTES", slice_bytes)
    data = b'{"model":"a"}' + os.urandom(20) * 10
    assert decoded(encode(data), [coding], most(1000)) == data
    assert decoded(gzip.compress(encode(data)), ["gzip", coding], most(1000)) == data
    with pytest.raises(BadRequest):
        decoded(encode(data)[:-1], [coding], most(1000))


def named(*values: bytes, name: bytes = b"Content-Encoding") -> tuple[str, ...]:
    return content_codings([(b"Host", b"h"), *((name, value) for value in values)])


def test_codings_are_undone_in_reverse() -> None:
    assert named(b"gzip, zstd") == ("zstd", "gzip")
    assert named(b"gzip", b"zstd, br") == ("br", "zstd", "gzip")
    assert named(b"X-GZip ,, identity,\tDeflate", name=b"CONTENT-encoding") == ("deflate", "gzip")
    assert named(b"identity") == named(b"") == named(b" , ") == named() == ()
    body = DATA["both"]
    for coding in ("gzip", "zstd", "br", "deflate", "gzip"):
        body = ENCODE[coding](body)
    order = named(b"gzip, zstd, br, deflate, gzip")
    assert decoded(body, order, most(10**7)) == DATA["both"]


@pytest.mark.parametrize(
    "value",
    [b"compress", b"gzip;q=1", b"gzip zstd", b"*", b"\xff", b"br, x", b"utf-16", b"gzip," * 6],
)
def test_other_codings_are_not_supported(value: bytes) -> None:
    with pytest.raises(UnsupportedCoding):
        named(value)


@pytest.mark.parametrize("body", [b'{"model":"a"}', b' \n{"x":1}'])
@pytest.mark.parametrize("coding", ENCODE)
def test_plain_json_that_is_said_to_be_compressed_is_refused(coding: str, body: bytes) -> None:
    with pytest.raises(BadRequest, match="plain JSON"):
        read_coded([], body, (coding,), most(1000))
