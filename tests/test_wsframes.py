"""Frames are followed wherever they are split."""

from __future__ import annotations

import random

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from llmux.wsframes import MOST_FRAMES, TRY_AGAIN_LATER, FrameReader, close_frame


@pytest.mark.parametrize("kind", [ConnectionType.CLIENT, ConnectionType.SERVER])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_frames_end_where_they_do(kind: ConnectionType, size: int, step: int) -> None:
    data = Connection(kind).send(BytesMessage(data=random.Random(size).randbytes(size)))
    reader = FrameReader()
    for at in range(0, len(data), step):
        assert at == 0 or not reader.is_between
        reader.feed(data[at : at + step])
    assert reader.is_between


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
    assert reader.is_between


def test_so_many_frames_are_followed_no_more() -> None:
    """They would take tens of milliseconds, of everybody's."""
    ping, reader = b"\x89\x00", FrameReader()
    assert not reader.feed(ping * (MOST_FRAMES - 1))
    assert reader.feed(ping * MOST_FRAMES)
    assert reader.feed(ping)
    assert not reader.is_between


def test_a_close_frame() -> None:
    frames = Connection(ConnectionType.CLIENT)
    frames.receive_data(close_frame(TRY_AGAIN_LATER))
    (event,) = frames.events()
    assert isinstance(event, CloseConnection)
    assert event.code == 1013
