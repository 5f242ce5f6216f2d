"""Hostile acts over HTTP/2 and WebSocket."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress

import h2.config
import h2.connection
import h2.errors
import h2.exceptions
import h2.settings
import trio

from bench.soak.hostile import Act, Foe
from bench.soak.run import BROKEN
from bench.soak.settings import KEY

BOMB_BYTES = 64 << 20
FLOOD = 3000
"""Frames of a flood."""

Headers = list[tuple[str, str]]


def bomb() -> bytes:
    """64 MiB of nothing, deflated as permessage-deflate wants it (RFC 7692, section 7.2.1)."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20))
    return (data + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMB = bomb()


# ---- WebSocket ----


def handshake(foe: Foe, extensions: str = "") -> bytes:
    """Of a WebSocket for a model."""
    return (
        f"GET /upstream/{foe.model}/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {KEY}\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extensions}\r\n"
    ).encode()


def frame(first: int, payload: bytes, length: int | None = None) -> bytes:
    """A masked frame (with a mask that changes nothing), maybe with a length of another."""
    size = len(payload) if length is None else length
    return bytes([first, 0xFF]) + size.to_bytes(8, "big") + bytes(4) + payload


async def websocket(foe: Foe) -> None:
    """Bombs, frames without end, floods, and echoes that nobody reads."""
    rng = foe.rng
    deflate = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    before = rng.choice((b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    data = rng.choice((
        [frame(0xC1, BOMB)] * 3,
        [frame(0xC2, BOMB)] * 3,
        [frame(0x82, b"x" * 60_000, length=1 << 62), *([b"y" * 60_000] * 200)],
        [frame(0x82, b"x" * 900_000)] * 8,
        [frame(0x02, b""), *([frame(0x00, b"x")] * 5000)],
        [frame(0x89, b"ping") * 2000],
        [frame(0x81, b"\xff\xfe")], [frame(0xF3, b"x")], [b"\x88\x80\x00\x00\x00\x00"] * 50,
    ))  # fmt: skip
    async with foe.connection(reads=rng.random() < 0.5) as stream:
        await stream.send_all(before + handshake(foe, rng.choice(("", deflate))))
        answer = b""
        with trio.move_on_after(5):
            while b"\r\n\r\n" not in answer.partition(b" 101 ")[2]:
                more = await stream.receive_some(4096)
                if not more:
                    return
                answer += more
        for piece in data:
            await stream.send_all(piece)
        await trio.sleep(rng.choice((0.5, 6)))


# ---- HTTP/2 ----


class Peer:
    """An HTTP/2 client that sends arbitrary frames."""

    def __init__(self, foe: Foe, stream: trio.SocketStream, window: int) -> None:
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.http = h2.connection.H2Connection(config=config)
        self.http.local_settings[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = window
        self.http.initiate_connection()
        self.stream = stream
        self._foe = foe

    def begin(self, headers: Headers, *, ends: bool = True) -> int:
        """A stream's head; returns its number."""
        number = self.http.get_next_available_stream_id()
        self.http.send_headers(number, headers, end_stream=ends)
        return number

    def head(self, path: str, method: str = "GET") -> Headers:
        """A head that is as it should be."""
        pseudo = [
            (":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path),
        ]  # fmt: skip
        return [*pseudo, ("authorization", f"Bearer {KEY}")]

    async def flush(self) -> None:
        """Send what there is."""
        await self.stream.send_all(self.http.data_to_send())

    async def take(self, seconds: float) -> None:
        """Take what comes for a while, and answer as the protocol wants it."""
        with trio.move_on_after(seconds):
            while data := await self.stream.receive_some(1 << 16):
                self.http.receive_data(bytes(data))
                await self.flush()


async def rapid_reset(peer: Peer, foe: Foe) -> None:
    """Streams that are reset as soon as they have begun (CVE-2023-44487)."""
    for _ in range(20):
        for _ in range(25):
            number = peer.begin(peer.head(foe.rng.choice(("/health", "/x?model=nobody"))))
            peer.http.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        await peer.flush()
    await peer.take(1)


async def frame_flood(peer: Peer, foe: Foe) -> None:
    """Control frames that each want an answer."""
    piece = foe.rng.choice((
        b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8),  # PING
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",  # SETTINGS
        b"\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x10",  # PRIORITY
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01",  # WINDOW_UPDATE
    ))  # fmt: skip
    await peer.flush()
    await peer.stream.send_all(piece * FLOOD)
    await peer.take(1)


async def gone_without_window(peer: Peer, foe: Foe) -> None:
    """Asks, says that it goes, has no room for an answer, and stays."""
    soak = {"id": "unread", "size": 500_000, "chunks": 0, "gap_s": 0.0, "work_s": 0.0, "lie": ""}
    for _ in range(foe.rng.choice((1, 20))):
        head = peer.head(f"/upstream/{foe.model}/x")
        peer.begin([*head, ("x-soak", json.dumps(soak))])
    peer.http.close_connection()
    await peer.flush()
    await trio.sleep(7)


async def endless_headers(peer: Peer, foe: Foe) -> None:
    """HEADERS without an end, and CONTINUATIONs (CVE-2024-27316)."""
    await peer.flush()
    block = b"\x00\x01a\x01b" * 3000
    for kind, _ in ((1, 0), *(((9, 0),) * 100)):
        head = len(block).to_bytes(3, "big") + bytes([kind, 0]) + (1).to_bytes(4, "big")
        await peer.stream.send_all(head + block)
    await peer.take(1)


async def odd_heads(peer: Peer, foe: Foe) -> None:
    """Heads that mean two requests, or none, once they are written as HTTP/1.1."""
    marked = f"{foe.marked_path('h2')} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    fine = peer.head(f"/upstream/{foe.model}/x", "POST")
    heads: list[Headers] = [
        peer.head(f"/upstream/{foe.model}/x HTTP/1.1\r\nHost: x\r\n\r\nGET {marked}"),
        peer.head(f"/upstream/{foe.model}/x y"),
        peer.head(f"/upstream/{foe.model}/x", "GE T"),
        peer.head(f"/upstream/{foe.model}/x", f"GET {marked}GET"),
        peer.head(""), peer.head("*"), peer.head(f"http://x/upstream/{foe.model}/x"),
        [*fine, ("x", f"y\r\n\r\nGET {marked}")],
        [*fine, ("x\r\nContent-Length: 0\r\n\r\nGET /", "y")],
        [*fine, ("transfer-encoding", "chunked")],
        [*fine, ("content-length", "0")],
        [*fine, ("content-length", "5"), ("content-length", "7")],
        [*fine, ("connection", "upgrade"), ("upgrade", "websocket")],
        [*fine, (":path", f"/upstream/{foe.model}/y")],
        [*fine, *((f"a{number}", "") for number in range(3000))],
        [*fine, ("x" * 30_000, "y"), ("cookie", "z" * 30_000)],
        fine[1:], [(":method", "GET")],
    ]  # fmt: skip
    number = peer.begin(foe.rng.choice(heads), ends=False)
    body = f"0\r\n\r\nGET {marked}".encode()
    peer.http.send_data(number, body, end_stream=True)
    await peer.flush()
    await peer.take(2)


async def early_answer(peer: Peer, foe: Foe) -> None:
    """Goes on with a body that was refused."""
    number = peer.begin([*peer.head("/v1/x", "POST"), ("content-length", "99000000")], ends=False)
    await peer.flush()
    for _ in range(20):
        await peer.take(0.02)
        room = min(16_000, peer.http.local_flow_control_window(number))
        peer.http.send_data(number, os.urandom(max(0, room)))
        await peer.flush()
    await peer.take(1)


H2_ACTS = (
    rapid_reset, frame_flood, gone_without_window, endless_headers, odd_heads, early_answer,
)  # fmt: skip


async def http2(foe: Foe) -> None:
    """One of the hostile acts over HTTP/2."""
    if not foe.run.stage.http2 and foe.rng.random() < 0.8:
        return
    act = foe.rng.choice(H2_ACTS)
    window = 0 if act is gone_without_window else 65_535
    with suppress(*BROKEN, h2.exceptions.H2Error):
        async with foe.connection(reads=window > 0) as stream:
            await act(Peer(foe, stream, window), foe)


FRAMED_ACTS: dict[str, Act] = {"WebSocket": websocket, "HTTP/2": http2}
