"""Frames are followed wherever they are split."""

from __future__ import annotations

import random

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from llmux.http.wsframes import CLOSE, MOST_FRAMES, TEXT, FrameReader, frame


@pytest.mark.parametrize("kind", [ConnectionType.CLIENT, ConnectionType.SERVER])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_frames_end_where_they_do(kind: ConnectionType, size: int, step: int) -> None:
    data = Connection(kind).send(BytesMessage(data=random.Random(size).randbytes(size)))
    reader = FrameReader()
    for at in range(0, len(data), step):
        assert at == 0 or not reader.may_follow
        reader.feed(data[at : at + step])
    assert reader.may_follow


@pytest.mark.parametrize("step", [1, 3, 100])
def test_pings_are_no_messages(step: int) -> None:
    frames, reader = Connection(ConnectionType.CLIENT), FrameReader()
    pings = b"".join(frames.send(Ping(payload=bytes(n))) for n in (0, 4, 125))
    assert not any(reader.feed(pings[at : at + step]) for at in range(0, len(pings), step))
    assert reader.feed(pings + frames.send(TextMessage(data="x")) + pings)
    piece = frames.send(TextMessage(data="x" * 100))
    reader.feed(piece[:50])
    assert reader.feed(piece[50:])
    assert not reader.feed(pings)
    assert reader.may_follow


def test_so_many_frames_are_followed_no_more() -> None:
    """They would take tens of milliseconds, of everybody's."""
    ping, reader = b"\x89\x00", FrameReader()
    assert not reader.feed(ping * (MOST_FRAMES - 1))
    assert reader.feed(ping * MOST_FRAMES)
    assert reader.feed(ping)
    assert not reader.may_follow


def fed(*pieces: bytes) -> FrameReader:
    ends = FrameReader()
    for piece in pieces:
        ends.feed(piece)
    return ends


def test_frames_that_follow_each_other() -> None:
    server = Connection(ConnectionType.SERVER)
    sizes = [0, 1, 125, 126, 127, 65535, 65536, 70000]
    frames = [server.send(BytesMessage(data=b"x" * size)) for size in sizes]
    data, rng = b"".join(frames), random.Random(1)
    ends_at, at = set(), 0
    for each in frames:
        at += len(each)
        ends_at.add(at)
    for _ in range(20):
        ends, at = FrameReader(), 0
        while at < len(data):
            step = rng.choice([1, 2, 3, 7, 60000])
            ends.feed(data[at : at + step])
            at = min(len(data), at + step)
            assert ends.may_follow == (at in ends_at), at


def test_a_message_in_pieces() -> None:
    server = Connection(ConnectionType.SERVER)
    first = server.send(TextMessage(data="a", message_finished=False))
    ping, last = server.send(Ping()), server.send(TextMessage(data="b"))
    assert fed().may_say
    assert fed(first).may_follow
    assert not fed(first).may_say
    assert not fed(first, ping).may_say
    assert fed(first, ping, last).may_say


def test_what_nothing_may_follow() -> None:
    close = Connection(ConnectionType.SERVER).send(CloseConnection(code=1000))
    assert not fed(close).may_follow
    assert fed(close).has_closed
    assert not fed(b"bye").may_follow, "no frames"
    assert not fed(b"\x81\x80").may_follow, "a server masks nothing"


def test_frames_of_llmuxs_own() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(frame(TEXT, b"a" * 200) + frame(CLOSE, (1013).to_bytes(2, "big") + b"why"))
    said, closed = client.events()
    assert isinstance(said, TextMessage)
    assert said.data == "a" * 200
    assert isinstance(closed, CloseConnection)
    assert (closed.code, closed.reason) == (1013, "why")
