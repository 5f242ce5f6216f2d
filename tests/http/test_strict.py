"""The strict reader of requests: whatever the bytes, and however they are split."""

from __future__ import annotations

import time

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.errors import BadRequest, LlmuxError
from llmux.http import chunks
from llmux.http import heads as http1
from llmux.http.chunks import MAX_CHUNKS, MAX_EXTRA_BYTES, MAX_LINE_BYTES, ChunkReader
from llmux.http.heads import MAX_EMPTY_BYTES, MAX_HEAD_BYTES, parse_head
from llmux.http.strict import RequestReader

HOST = b"Host: h\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"

Result = tuple[list[bytes], bytes, int, bool]
"""Heads, bodies, status of the refusal (0: none), whether all that follows is dropped."""


def read(*pieces: bytes, most_fields: int = 128) -> Result:
    reader = RequestReader(most_fields)
    heads: list[bytes] = []
    body = b""
    for data in pieces:
        reader.receive(data)
        try:
            while (piece := reader.next_piece()) is not None:
                if piece.head is None:
                    body += piece.data
                else:
                    heads.append(piece.data)
        except LlmuxError as error:
            return heads, unchunked(body), error.status, reader.has_ended
    return heads, unchunked(body), 0, reader.has_ended


def unchunked(body: bytes) -> bytes:
    """Bodies in our own chunks, joined: how they were received decides how many there are."""
    data = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            return data + body  # it had a length
        data += rest[:length] or b"|"
        body = rest[length + 2 :]
    return data


def status_of(*pieces: bytes) -> int:
    return read(*pieces)[2]


# ---- Heads ----

BAD_HEADS = {
    "length and chunks": b"POST / HTTP/1.1\r\n%bContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "folded": b"POST / HTTP/1.1\r\n%bTransfer-Encoding:\r\n chunked\r\n",
    "folded with a tab": b"GET / HTTP/1.1\r\n%bA: b\r\n\tc\r\n",
    "bare LF": b"GET / HTTP/1.1\n%bA: b\r\n",
    "bare CR": b"GET / HTTP/1.1\r\n%bA: b\rc\r\n",
    "NUL": b"GET / HTTP/1.1\r\n%bA: b\0c\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n%bContent-Length: 5\r\nContent-Length: 5\r\n",
    "lengths in a list": b"POST / HTTP/1.1\r\n%bContent-Length: 5, 5\r\n",
    "a signed length": b"POST / HTTP/1.1\r\n%bContent-Length: +5\r\n",
    "a length of many digits": b"POST / HTTP/1.1\r\n%bContent-Length: " + b"0" * 21 + b"\r\n",
    "a length of thousands of digits": b"POST / HTTP/1.1\r\n%bContent-Length: " + b"0" * 5000 + b"\r\n",
    "white space before the colon": b"POST / HTTP/1.1\r\n%bContent-Length : 5\r\n",
    "white space before the name": b"POST / HTTP/1.1\r\n Content-Length: 5\r\n%b",
    "another coding": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: gzip, chunked\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "chunked, quoted": b'POST / HTTP/1.1\r\n%bTransfer-Encoding: "chunked"\r\n',
    "a coding that is not known": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: xchunked\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n%bHost: i\r\n",
    "two hosts, one empty": b"GET / HTTP/1.1\r\n%bHost:\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n%b",
    "a space behind": b"GET / HTTP/1.1 \r\n%b",
    "a space in the target": b"GET /a b HTTP/1.1\r\n%b",
    "no version": b"GET /\r\n%b",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n%b",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n%b",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n%b",
    "another protocol": b"GET / RTSP/1.0\r\n%b",
    "lower case": b"GET / http/1.1\r\n%b",
    "no method": b" / HTTP/1.1\r\n%b",
    "a method that is no token": b"G(T / HTTP/1.1\r\n%b",
    "a method of another protocol": b"DESCRIBE / HTTP/1.1\r\n%b",
    "CONNECT": b"CONNECT h:1 HTTP/1.1\r\n%b",
    "connect": b"connect h:1 HTTP/1.1\r\n%b",
    "a target that is no URI": b"GET http://[::1/x HTTP/1.1\r\n%b",
    "a target beyond ASCII": "GET /é HTTP/1.1\r\n%b".encode(),
    "a name that is none": b"GET / HTTP/1.1\r\n%bA(: b\r\n",
    "no name": b"GET / HTTP/1.1\r\n%b: b\r\n",
    "no colon": b"GET / HTTP/1.1\r\n%bAb\r\n",
    "an unknown method with both framings": b"BREW / HTTP/1.1\r\n%bContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "1.0 with chunks": b"POST / HTTP/1.0\r\n%bTransfer-Encoding: chunked\r\n",
    "1.0 with two lengths": b"POST / HTTP/1.0\r\n%bContent-Length: 5\r\nContent-Length: 5\r\n",
    "1.0, folded": b"POST / HTTP/1.0\r\n%bA: b\r\n c\r\n",
    "the preface, later": b"PRI * HTTP/2.0\r\n%b",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_head_that_two_readers_could_read_in_two_ways(name: str) -> None:
    head = BAD_HEADS[name] % HOST + b"\r\n"
    assert read(head) == ([], b"", 400, True)
    assert read(GET + head + GET) == ([GET], b"", 400, True)
    assert read(*[bytes([byte]) for byte in head])[::2] == ([], 400)


@pytest.mark.parametrize(
    "host", [b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a@b\r\n"]
)
def test_one_host_that_is_a_host(host: bytes) -> None:
    assert status_of(b"GET / HTTP/1.1\r\n" + host + b"\r\n") == 400


@pytest.mark.parametrize("host", [b"h", b"h:80", b"[::1]:80", b"a_b.c", b"", b"xn--e1a.de"])
def test_hosts(host: bytes) -> None:
    assert status_of(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n") == 0


def test_http_1_0_needs_no_host_and_is_the_last() -> None:
    old = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    assert read(old + b"\r\n" + GET) == ([old], b"", 0, True)
    assert not parse_head(old, 128).is_common


def test_a_method_of_its_own() -> None:
    brew = b"BREW /x?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n"
    head = parse_head(brew, 128)
    assert (head.method, head.target, head.content_length) == (b"BREW", b"/x?a=b", 2)
    assert not head.is_common
    assert read(brew + b"hi" + GET) == ([brew, GET], b"hi", 0, False)


@pytest.mark.parametrize("connection", [b"close", b"foo, Close"])
def test_what_follows_the_last_request_is_dropped(connection: bytes) -> None:
    last = LENGTH.replace(HOST, HOST + b"Connection: " + connection + b"\r\n")
    for behind in (b"\r\n", GET, b"\0"):
        assert read(last + b"hello" + behind, behind) == ([last], b"hello", 0, True)


def test_empty_lines_before_a_head_are_few() -> None:
    few = b"\r\n" * (MAX_EMPTY_BYTES // 2)
    assert read(few + GET + few + GET)[0] == [GET, GET]
    assert read(*[bytes([byte]) for byte in few + GET])[0] == [GET]
    assert status_of(few + b"\r\n") == 400
    assert status_of(*[b"\r", b"\n"] * (MAX_EMPTY_BYTES // 2 + 1)) == 400
    for bad in (b"\n" + GET, b"\r" + GET, b"\0" + GET):
        assert status_of(bad) == 400


def test_a_head_has_a_largest_size() -> None:
    fits = b"GET / HTTP/1.1\r\nHost: h\r\nA: %b\r\n\r\n"
    fits %= b"x" * (MAX_HEAD_BYTES - len(fits) + 2)
    assert read(fits)[0] == [fits]
    assert status_of(fits.replace(b"xx", b"xxx", 1)) == 431
    assert status_of(*[b"GET / HTTP/1.1\r\nA: ", *[b"x" * 1000] * 66]) == 431


def test_a_head_has_a_most_of_fields() -> None:
    fits = b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 127 + b"\r\n"
    assert read(fits)[0] == [fits]
    assert status_of(fits.replace(b"A: b\r\n", b"A: b\r\nA: b\r\n", 1)) == 431
    assert status_of(GET.replace(b"\r\n\r\n", b"\r\n" + b"A:\r\n" * 9250 + b"\r\n")) == 431


def test_thousands_of_fields_are_counted_and_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing them takes 12 ms and more."""
    head = b"GET / HTTP/1.1\r\nHost: h\r\n" + b"a:bcd\r\n" * 9250 + b"\r\n"
    monkeypatch.setattr(http1, "_feed", None)
    assert status_of(head) == 431


# ---- Chunks ----


@pytest.mark.parametrize(
    "body",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\rX0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b";a\r\nhello\r\n0\r\n\r\n",
        b"5;a\0b\r\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\x7fb\r\nhello\r\n0\r\n\r\n",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"0\r\nA b\r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\r\nA: b\0\r\n\r\n",
        b"0\r\nA: b\n\r\n\r\n",
        b"0\r\n: b\r\n\r\n",
        b"0\r\n\n",
        b"0\r\n\rX",
        b"5;" + b"x" * MAX_LINE_BYTES + b"\r\nhello\r\n0\r\n\r\n",
        b"0\r\nA: " + b"x" * MAX_LINE_BYTES + b"\r\n\r\n",
        b"0\r\n" + b"A: bcde\r\n" * (MAX_EXTRA_BYTES // 9 + 1) + b"\r\n",
        (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 66 + b"0\r\n\r\n",
    ],
)
def test_bodies_that_are_not_in_chunks(body: bytes) -> None:
    for split in (1, len(body)):
        reader = ChunkReader()
        with pytest.raises(BadRequest):
            for start in range(0, len(body), split):
                assert reader.feed(body[start : start + split], bytearray()) is None


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"0000000000000005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b'a;b=c\r\n0123456789\r\n0;d="e;f\t\xc3"\r\n\r\n', b"0123456789"),
        (b"8\r\n\r\n\r\n\r\n\r\n\r\n4\r\n0\r\n\r\r\n0\r\nA: b\r\nC:\r\n\r\n", b"\r\n" * 4 + b"0\r\n\r"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", [1, 2, 3, 7, 1000])
def test_bodies_in_chunks(body: bytes, data: bytes, split: int) -> None:
    reader, out = ChunkReader(), bytearray()
    whole = body + b"rest"
    rest = None
    for start in range(0, len(whole), split):
        assert rest is None or start >= len(body)
        if rest is None:
            rest = reader.feed(whole[start : start + split], out)
        else:
            rest += whole[start : start + split]
    assert (bytes(out), rest) == (data, b"rest")


@pytest.mark.parametrize("size", [16384, 60_000_000], ids=["16 KiB", "60 MB"])
def test_what_a_chunk_holds_costs_nothing(size: int) -> None:
    """llhttp with a cut behind each blank line took 9.3 s for 60 MB of them."""
    chunk = b"%x\r\n%b\r\n" % (size, b"\r\n" * (size // 2))
    body = chunk * (60_000_000 // size) + b"0\r\n\r\n"
    reader, out = ChunkReader(), bytearray()
    started = time.process_time()
    for start in range(0, len(body), 65536):
        reader.feed(body[start : start + 65536], out)
    assert len(out) == 60_000_000 // size * size
    assert time.process_time() - started < 5


def test_a_body_has_a_most_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNKS", 3)
    ChunkReader().feed(b"1\r\na\r\n1\r\na\r\n0\r\n\r\n", bytearray())
    with pytest.raises(BadRequest, match="3 chunks"):
        ChunkReader().feed(b"1\r\na\r\n" * 4, bytearray())


def test_chunks_of_one_byte_end_soon() -> None:
    reader, body = ChunkReader(), bytearray()
    with pytest.raises(BadRequest):
        for _ in range(0, 64 << 20, 10_000):
            reader.feed(b"1\r\na\r\n" * 10_000, body)
    assert len(body) == MAX_CHUNKS == 1_000_000


# ---- Splits, and other readers ----

bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is right, or nearly."""
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"1.3"]))
    method = draw(st.sampled_from([b"GET", b"POST", b"BREW", b"HEAD"]))
    fields = [b"Host: h"] * draw(st.sampled_from([1, 1, 1, 0, 2]))
    fields += draw(
        st.lists(
            st.sampled_from([b"A: b", b"Connection: close", b"A:", b"B : c", b" d"]), max_size=2
        )
    )
    end = draw(st.sampled_from([b"\r\n"] * 5 + [b"\n"]))
    pieces = draw(bodies)
    framing = draw(st.sampled_from(["none", "length", "chunks", "both"]))
    body = b""
    if framing in {"length", "both"}:
        body = b"".join(pieces)
        fields.append(b"Content-Length: %d" % len(body))
    if framing in {"chunks", "both"}:
        fields.append(b"Transfer-Encoding: chunked")
        extension = draw(st.sampled_from([b"", b"", b";a", b";\0"]))
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        body += b"0\r\n" + draw(st.sampled_from([b"", b"T: u\r\n", b"T\r\n"])) + b"\r\n"
    line = b"%b / HTTP/%b" % (method, version)
    return draw(st.sampled_from([b"", b"\r\n"])) + end.join([line, *fields, b"", b""]) + body


streams = st.lists(requests(), min_size=1, max_size=3).map(b"".join)


@given(st.one_of(streams, st.binary(max_size=60)), st.data())
def test_splits_change_nothing(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, split = read(stream), read(*pieces)
    # What came before a violation in the same bytes may have been given out already.
    assert (split[0], split[2], split[3]) == (whole[0], whole[2], whole[3])
    assert split[1] == whole[1] or (whole[2] and split[1].startswith(whole[1]))


@given(streams)
def test_what_is_passed_on_is_read_alike_by_others(stream: bytes) -> None:
    """h11, behind it, and llhttp, in its own words, see the requests that this one has seen."""
    heads, body, status, _ = read(stream)
    seen = [parse_head(head, 128) for head in heads]
    passed = passed_on(stream)
    parser, found = httptools.HttpRequestParser(collected := Collected()), collected.seen
    if all(head.is_common for head in seen):
        try:
            parser.feed_data(passed)
        except httptools.HttpParserError as error:
            raise AssertionError(passed) from error
        assert found == [(head.target, head.headers) for head in seen]
        assert collected.body == body.replace(b"|", b"") or status
    assert read_by_h11(passed) == [(head.method, head.target) for head in seen]


def passed_on(stream: bytes) -> bytes:
    reader = RequestReader(128)
    reader.receive(stream)
    passed = b""
    try:
        while (piece := reader.next_piece()) is not None:
            assert piece.head is None or piece.data in stream
            passed += piece.data
    except LlmuxError:
        pass
    return passed


class Collected:
    def __init__(self) -> None:
        self.seen: list[tuple[bytes, list[tuple[bytes, bytes]]]] = []
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.seen.append((url, []))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.seen[-1][1].append((name, value.rstrip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self.body += data


def read_by_h11(passed: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    connection = h11.Connection(h11.SERVER)
    if passed:
        connection.receive_data(passed)
    while (event := connection.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.Request):
            found.append((event.method, event.target))
        elif isinstance(event, h11.EndOfMessage):
            if connection.their_state is not h11.DONE:
                break
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        else:
            assert isinstance(event, h11.Data)
    return found
