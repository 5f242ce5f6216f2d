"""Where a frame may follow what a WebSocket's server has sent."""

from __future__ import annotations

import random

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from llmux.socketframes import CLOSE, TEXT, FrameEnds, frame


def fed(*pieces: bytes) -> FrameEnds:
    ends = FrameEnds()
    for piece in pieces:
        ends.feed(piece)
    return ends


def test_frames_of_all_sizes_cut_anywhere() -> None:
    server = Connection(ConnectionType.SERVER)
    sizes = [0, 1, 125, 126, 127, 65535, 65536, 70000]
    frames = [server.send(BytesMessage(data=b"x" * size)) for size in sizes]
    data, rng = b"".join(frames), random.Random(1)
    ends_at, at = set(), 0
    for each in frames:
        at += len(each)
        ends_at.add(at)
    for _ in range(20):
        ends, at = FrameEnds(), 0
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
