"""The beginning of a WebSocket whose first message names its model: pure functions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from llmux.base.wildcards import Names
from llmux.errors import BadRequest, BodyTooLarge
from llmux.http.wsframes import CLOSE, PONG, frame
from llmux.proxy import opening
from llmux.proxy.opening import (
    MOST_FIRST_BYTES,
    MOST_FRAMES,
    EarlyFrames,
    FirstMessage,
    check_handshake,
    chosen_protocol,
    close_code,
    error_message,
    handshake_answer,
    missing_protocol,
    opened_headers,
)

NAMES = Names({"a": "a", "org/b": "org/b"})
KEY = (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==")


@pytest.mark.parametrize(
    ("message", "model"),
    [
        ({"type": "session.update", "session": {"model": "a"}}, "a"),
        ({"type": "session.update", "model": "org/b"}, "org/b"),  # vLLM
        ({"type": "session.start", "session": {"model": "new"}}, "new"),
        ({"type": "response.create", "model": "a", "input": "hi"}, "a"),
        ({"type": "response.create", "response": {"model": "a"}}, "a"),
        ({"model": "a"}, "a"),
        ({"model": "a", "session": {"model": "a"}}, "a"),
        ({"setup": {"model": "models/a"}}, "a"),
        ({"setup": {"model": "models/x"}}, "x"),
        (
            {"session": {"model": "a", "audio": {"input": {"transcription": {"model": "w"}}}}},
            "a",
        ),
        ({"session": {"audio": {"input": {"transcription": {"model": "w"}}}}}, "w"),
        (
            {
                "type": "transcription_session.update",
                "session": {"input_audio_transcription": {"model": "w"}},
            },
            "w",
        ),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, ""),
        ({"session": {"model": 7}, "model": None}, ""),
        ({"session": [{"model": "a"}]}, ""),
        ([{"model": "a"}], ""),
        ("model", ""),
        ({"items": [{"model": "a"}]}, ""),
    ],
)
def test_the_model_of_a_first_message(message: object, model: str) -> None:
    text = json.dumps(message).encode()
    for data in (text, b"\xef\xbb\xbf \n" + text):
        assert FirstMessage(data, NAMES).fields.name == model


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"model": "a"', "not JSON"),
        (b'{"model": "a"} {}', "not JSON"),
        (b'{"model": "\xff"}', "not JSON"),
        (b'{"model": "a", "session": {"model": "org/b"}}', "two models"),
        (b'{"model": "a", "model": "org/b"}', "two models"),
        (b'{"session": {"model": "a", "model": ["a"]}}', "two models"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_first_messages_that_cannot_be_read(data: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        FirstMessage(data, NAMES)


def test_another_name_for_the_model() -> None:
    message = {"type": "session.update", "session": {"model": "a", "n": 1.5, "é": "\u20ac"}}
    first = FirstMessage(json.dumps(message).encode(), NAMES)
    renamed = json.loads(first.renamed("org/x"))
    assert renamed == {**message, "session": {**message["session"], "model": "org/x"}}  # type: ignore[dict-item]


@pytest.mark.parametrize("message", [b'{"model":"a", "x":1e999}', b"\0audio", b"[]", b"{}"])
def test_what_needs_no_other_name_is_left_as_it_is(message: bytes) -> None:
    assert FirstMessage(message, NAMES).renamed("a") == message


@pytest.mark.parametrize("rest", [b"", b', "x": ' + b"[" * 100_000, b', "x": y}'])
def test_digits_do_not_hide_what_else_is_wrong(rest: bytes) -> None:
    with pytest.raises(BadRequest):
        FirstMessage(b'{"model": "a", "n": ' + b"1" * 5000 + rest, NAMES)


def test_what_is_renamed_is_text_whatever_escapes_it_has() -> None:
    first = FirstMessage(rb'{"model": "a", "x": "\ud83d", "y": "\u20ac"}', NAMES)
    renamed = first.renamed("org/x")
    assert json.loads(renamed.decode()) == {"model": "org/x", "x": "\ud83d", "y": "\u20ac"}


def test_what_is_nested_too_deeply_to_be_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes less of the stack than writing, which happens further down."""
    content: dict[str, object] = {}
    for _ in range(100_000):
        content = {"x": content}
    monkeypatch.setattr(opening, "_read", lambda _: {"model": "a", **content})
    first = FirstMessage(b'{"model": "a"}', NAMES)
    with pytest.raises(BadRequest, match="nested too deeply"):
        first.renamed("org/x")


def test_an_error_has_one_type() -> None:
    assert error_message(b'{"error":{}}') == b'{"type":"error","error":{}}'
    assert error_message(b'{"type":"error","error":{}}') == b'{"type":"error","error":{}}'


# ---- Subprotocols ----


def offer(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"Sec-WebSocket-Protocol", value) for value in values]


@pytest.mark.parametrize(
    ("offered", "answer", "to_backend"),
    [
        ([], b"", b""),
        ([b"realtime"], b"realtime", b"realtime"),
        ([b"a, b"], b"a", b"a"),
        (
            [b"openai-beta.realtime-v1,realtime", b"x"],
            b"realtime",
            b"openai-beta.realtime-v1, realtime",
        ),
        ([b"openai-insecure-api-key.k"], b"", b"openai-insecure-api-key.k"),
    ],
)
def test_the_subprotocol(offered: list[bytes], answer: bytes, to_backend: bytes) -> None:
    headers = [(b"A", b"1"), *offer(*offered), (b"Sec-WebSocket-Extensions", b"deflate")]
    assert chosen_protocol(headers) == answer
    assert opened_headers(headers) == [(b"A", b"1"), *(offer(to_backend) if to_backend else [])]


def test_realtime_is_agreed_where_the_backend_knows_no_subprotocols() -> None:
    assert missing_protocol(offer(b"x, realtime"), []) == offer(b"realtime")
    assert missing_protocol(offer(b"x, realtime"), offer(b"x")) == []
    assert missing_protocol(offer(b"x"), []) == []
    assert missing_protocol([], []) == []


# ---- Handshake and frames ----


def test_the_answer_to_a_handshake() -> None:
    answer = dict(handshake_answer([KEY]))
    assert answer[b"Sec-WebSocket-Accept"] == generate_accept_token(KEY[1])
    assert b"Sec-WebSocket-Protocol" not in answer


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        (b"POST", [KEY, (b"Sec-WebSocket-Version", b"13")]),
        (b"GET", [KEY]),
        (b"GET", [KEY, (b"Sec-WebSocket-Version", b"8")]),
        (b"GET", [(b"Sec-WebSocket-Version", b"13")]),
        (b"GET", [(b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", b"AAAA")]),
        (b"GET", [(b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", b"\xff")]),
    ],
)
def test_what_is_no_handshake(method: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    check_handshake(b"GET", [KEY, (b"sec-websocket-version", b"13")])
    with pytest.raises(BadRequest):
        check_handshake(method, headers)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("length", [0, 5, 125, 126, 65535, 65536])
def test_frames_are_those_of_the_protocol(length: int, size: int) -> None:
    """Against wsproto, in pieces of any size."""
    client = Connection(ConnectionType.CLIENT)
    text = "x" * length
    pieces = [
        client.send(Ping(payload=b"1")),
        client.send(TextMessage(data=text, message_finished=False)),
        client.send(Ping(payload=b"2")),
        client.send(TextMessage(data="end")),
        client.send(BytesMessage(data=b"more")),
    ]
    stream = b"".join(pieces)
    frames, answers = EarlyFrames(), b""
    for start in range(0, len(stream), size):
        answers += frames.feed(stream[start : start + size])
    assert frames.is_whole
    assert bytes(frames.message) == text.encode() + b"end"
    assert answers == frame(PONG, b"1") + frame(PONG, b"2")
    assert frames.take() == pieces[1] + pieces[3] + pieces[4]
    assert frames.take() == b""


def test_what_has_come_of_a_frame_is_for_the_backend() -> None:
    first, second = frame(1, b"{}", b"abcd"), frame(2, b"x" * 300, b"efgh")
    frames = EarlyFrames()
    frames.feed(first + second[:100])
    assert frames.take() == first + second[:100]


def test_a_first_message_that_is_replaced() -> None:
    frames = EarlyFrames()
    frames.feed(frame(1, b"one", b"abcd") + frame(1, b"two", b"abcd"))
    for text in (b"longer than one", b"1"):  # the request may be sent twice
        frames.replace_first(text)
    server = Connection(ConnectionType.SERVER)
    server.receive_data(frames.take())
    heard = [event.data for event in server.events() if isinstance(event, TextMessage)]
    assert heard == ["1", "two"]


def test_a_close() -> None:
    frames = EarlyFrames()
    closing = Connection(ConnectionType.CLIENT).send(CloseConnection(code=1001, reason="x"))
    assert frames.feed(closing + b"\xff") == frame(CLOSE, b"\x03\xe9")
    assert frames.has_closed


@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"not masked"),
        b"\xc1\x80abcd",  # compressed
        b"\x83\x80abcd",  # no such kind
        b"\x80\x80abcd",  # goes on without a beginning
        b"\x01\x80abcd\x01\x80abcd",  # begins amid another
        b"\x09\x80abcd",  # a ping in pieces
        b"\x89\xfe\x00\x80",  # a long one
    ],
)
def test_what_is_no_frame_of_a_client(data: bytes) -> None:
    with pytest.raises(BadRequest):
        EarlyFrames().feed(data)


def test_a_first_message_is_bounded() -> None:
    one = frame(1, b"x" * (MOST_FIRST_BYTES - 100), b"abcd")
    frames = EarlyFrames()
    frames.feed(one)
    assert frames.is_whole
    pieces = b"\x01" + one[1:]
    with pytest.raises(BodyTooLarge):
        EarlyFrames().feed(pieces + b"\0" + one[1:])
    with pytest.raises(BodyTooLarge):
        EarlyFrames().feed(frame(1, b"x" * (MOST_FIRST_BYTES + 1), b"abcd"))
    with pytest.raises(BodyTooLarge):
        EarlyFrames().feed(frame(1, b"x" * 3 * MOST_FIRST_BYTES, b"abcd")[:-1])
    with pytest.raises(BadRequest, match="frames"):
        EarlyFrames().feed(b"\x01\x80abcd" + b"\0\x80abcd" * MOST_FRAMES)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    frames = EarlyFrames()
    try:
        frames.feed(data)
    except BadRequest:
        return
    assert len(frames.take()) <= len(data)


def test_codes() -> None:
    statuses = (400, 404, 413, 429, 503, 500, 502)
    assert [close_code(each) for each in statuses] == [1008, 1008, 1009, 1013, 1013, 1011, 1011]
