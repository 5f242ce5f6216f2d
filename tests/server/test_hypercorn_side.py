"""HTTP/2 and WebSockets where Hypercorn serves them: hostile clients, on real sockets."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import pytest
import trio
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.ws_stream import FrameTooLargeError
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from llmux.downstream import asgi_websocket
from llmux.server.hypercorn_side.frames import BURST, REFILL_PER_S, Budget, FrameCutter
from llmux.server.hypercorn_side.sockets import Sending
from llmux.server.hypercorn_side.websocket import MessageBuffer
from tests.lanes import LANES, read_all, running_lane
from tests.servers import ALL_FORMS, LlmuxProcess, Rack, chat, running_backends, running_llmux

HANDSHAKE = (
    b"GET /upstream/a/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


class Client:
    """One connection of HTTP/2, frame by frame."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []
        self.statuses: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.goaway: int | None = None
        self.acked = 0
        self.is_closed = False

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send_all(data)

    async def begin(self, number: int, *, end: bool = True, **pseudo: str | None) -> int:
        fields = {"method": "GET", "scheme": "http", "path": "/health", "authority": "h", **pseudo}
        headers = [(f":{key}", value) for key, value in fields.items() if value is not None]
        self.h2.send_headers(number, headers, end_stream=end)
        await self.flush()
        return number

    async def receive(self) -> None:
        """Take what comes next."""
        try:
            await self.flush()
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.is_closed = True
            return
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                headers = dict(cast("Any", event.headers))
                self.statuses[event.stream_id] = int(headers[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.reset[event.stream_id] = event.error_code
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event.error_code
            elif isinstance(event, h2.events.PingAckReceived):
                self.acked += 1

    async def until(self, *streams: int) -> None:
        with trio.fail_after(20):
            while not self.ended >= set(streams):
                assert not self.is_closed
                await self.receive()

    async def until_closed(self) -> None:
        with trio.fail_after(20):
            while not self.is_closed:
                await self.receive()


@asynccontextmanager
async def http2(llmux: LlmuxProcess) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", port_of(llmux)) as stream:
        client = Client(stream)
        client.h2.initiate_connection()
        await client.flush()
        yield client


def port_of(llmux: LlmuxProcess) -> int:
    return cast("int", httpx.URL(llmux.url).port)


# ---- HTTP/2 ----


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_an_early_answer_ends_no_sibling(rack: Rack, form: str) -> None:
    config = rack.write_config(http2=True, api_keys=["key"])
    async with running_llmux(config, form) as llmux, http2(llmux) as client:
        await client.begin(1, path="/v1/chat/completions", method="POST", end=False)
        await client.until(1)
        assert client.statuses[1] == 401  # before a byte of its body
        await client.begin(3, path="/health", end=False)
        for _ in range(40):  # more than both windows hold
            client.h2.send_data(1, b"x" * 1600)
            await client.flush()
        while client.h2.local_flow_control_window(1) < 16_000:
            with trio.fail_after(20):
                await client.receive()
        client.h2.send_data(1, b"x", end_stream=True)
        client.h2.end_stream(3)
        await client.flush()
        await client.until(3)
        assert (client.statuses[3], client.goaway, client.reset) == (200, None, {})
        assert not any("Traceback" in line for line in llmux.lines)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_what_is_no_request_of_http2_is_told_on_its_stream(rack: Rack, form: str) -> None:
    config = rack.write_config(http2=True, limits={"header_fields": 20})
    async with running_llmux(config, form) as llmux, http2(llmux) as client:
        bad: list[dict[str, str | None]] = [
            {"path": "/a b"},
            {"path": "/a\x01"},
            {"path": "a"},
            {"path": ""},
            {"path": None},
            {"path": "http://h/x"},
            {"path": "/é"},
            {"method": "GET /"},
            {"method": "G\x01T"},
            {"method": ""},
            {"method": None},
            {"scheme": None},
            {"authority": "a/b"},
            {"method": "CONNECT"},
            {"method": "CONNECT", "protocol": "tcp"},
        ]
        for number, pseudo in enumerate(bad):
            stream = await client.begin(2 * number + 1, **cast("Any", pseudo))
            await client.until(stream)
            assert (pseudo, client.statuses[stream]) == (pseudo, 400)
            assert json.loads(client.bodies[stream])["error"]["code"] == "bad_request"
        stream = 2 * len(bad) + 1
        plain = [(":method", "GET"), (":scheme", "http"), (":path", "/health"), (":authority", "h")]
        for fields, status in ((20, 200), (21, 431), (1500, 431)):
            client.h2.send_headers(stream, plain + [("a", "b")] * fields, end_stream=True)
            await client.flush()
            await client.until(stream)
            assert client.statuses[stream] == status
            stream += 2
        for name, value in (("Upper", "x"), ("connection", "close"), ("a", "b\0"), ("a\n", "b")):
            client.h2.send_headers(stream, [*plain, (name, value)], end_stream=True)
            await client.flush()
            await client.until(stream)
            assert client.statuses[stream] == 400
            stream += 2
        await client.until(await client.begin(stream))
        assert client.statuses[stream] == 200
        assert not any("Traceback" in line for line in llmux.lines)


FLOODS = {
    "PING": b"\0\0\x08\x06\0\0\0\0\0" + b"12345678",
    "SETTINGS": b"\0\0\0\x04\0\0\0\0\0",
    "PRIORITY": b"\0\0\x05\x02\0\0\0\0\x09" + b"\0\0\0\0\x01",
    "WINDOW_UPDATE": b"\0\0\x04\x08\0\0\0\0\0" + b"\0\0\0\x01",
    "of a kind that is not known": b"\0\0\0\x20\0\0\0\0\0",
    "empty DATA": b"\0\0\0\0\0\0\0\0\x01",
}


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_floods_end_their_connection(rack: Rack, form: str) -> None:
    calm = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    async with running_llmux(rack.write_config(http2=True), form) as llmux, llmux.client() as other:
        for name, frame in FLOODS.items():
            async with http2(llmux) as client:
                await client.begin(1, path="/v1/chat/completions", method="POST", end=False)
                with trio.fail_after(20):
                    try:
                        for _ in range(30):
                            await client.stream.send_all(frame * 1000)
                    except trio.BrokenResourceError:
                        pass
                    await client.until_closed()
                assert client.goaway in {calm, None}, name  # a reset may overtake it
            assert (await other.get("/health")).status_code == 200
        async with http2(llmux) as client:  # CVE-2023-44487
            with trio.fail_after(10):
                for number in range(1, 4001, 2):
                    try:
                        headers = [(":method", "GET"), (":path", "/health"), (":scheme", "http")]
                        client.h2.send_headers(number, [*headers, (":authority", "h")])
                        client.h2.reset_stream(number)
                        await client.flush()
                    except trio.BrokenResourceError:
                        break
                await client.until_closed()
            assert client.goaway in {calm, None}
        assert (await other.get("/health")).status_code == 200
        now = (await other.get("/control/status")).json()
        assert now["models"]["a"]["in_flight"] == 0
        assert not any("Traceback" in line for line in llmux.lines)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_client_of_http2_that_is_served_is_no_flood(rack: Rack, form: str) -> None:
    """Hundreds of requests, and a WINDOW_UPDATE or two for each piece of an answer."""
    async with running_llmux(rack.write_config(http2=True), form) as llmux:
        async with httpx.AsyncClient(
            base_url=llmux.url, http1=False, http2=True, timeout=30
        ) as client:
            for _ in range(120):
                assert (await client.get("/health")).status_code == 200
            body = chat("a", stream=True, chunks=1000)
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.text.endswith("data: 999\n\n")
            large = chat("a", filler="x" * 5_000_000)
            assert (await client.post("/v1/chat/completions", json=large)).status_code == 200


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("how", ["GOAWAY", "RST_STREAM", "closes"])
async def test_a_client_of_http2_that_has_left_is_noticed(rack: Rack, form: str, how: str) -> None:
    """Also one that has left no room for the answer that is being sent."""
    config = rack.write_config(http2=True)
    async with running_llmux(config, form) as llmux, llmux.client() as other:
        async with http2(llmux) as client:
            window = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
            client.h2.update_settings(cast("Any", window))
            body = json.dumps(chat("a")).encode()
            await client.begin(1, path="/v1/chat/completions", method="POST", end=False)
            client.h2.send_data(1, body, end_stream=True)
            await client.flush()
            with trio.fail_after(20):
                while 1 not in client.statuses:
                    await client.receive()
                assert await in_flight(other) == 1
                if how == "GOAWAY":
                    client.h2.close_connection()
                elif how == "RST_STREAM":
                    client.h2.reset_stream(1)
                await client.flush()
                if how == "closes":
                    await client.stream.aclose()
                while await in_flight(other):
                    await trio.sleep(0.01)
                # and a switch has its turn
                assert (await other.post("/v1/chat/completions", json=chat("b"))).status_code == 200
        assert not any("Traceback" in line for line in llmux.lines)


async def in_flight(client: httpx.AsyncClient) -> int:
    status = (await client.get("/control/status")).json()
    return cast("int", status["models"]["a"]["in_flight"])


def test_frames_are_cut_and_counted_wherever_they_are_split() -> None:
    ping, headers = FLOODS["PING"], b"\0\0\x05\x01\0\0\0\0\x01hello"
    data = b"\0\x04\0\0\0\0\0\0\x01" + b"x" * 1024
    sent = b"p" * 24 + ping * 3 + headers + data + ping
    for split in (1, 7, 30, len(sent)):
        cutter = FrameCutter(2)
        cuts = [
            cut
            for start in range(0, len(sent), split)
            for cut in cutter.cut(sent[start : start + split])
        ]
        assert b"".join(piece for piece, _ in cuts) == sent
        assert sum(cost for _, cost in cuts) == 3 + 5 + 0 + 1
    assert len([*FrameCutter(2).cut(sent)]) == 3


def test_a_budget_comes_back_with_time_and_answers() -> None:
    budget = Budget(now=0)
    assert budget.spend(BURST, now=0)
    assert budget.spend(10, now=10 / REFILL_PER_S)
    assert Budget(now=0, most=3, refill_per_s=1).spend(3, now=9)
    assert not Budget(now=0, most=3, refill_per_s=1).spend(4, now=9)
    assert not budget.spend(1, now=10 / REFILL_PER_S)
    budget.earn(2 * BURST)
    assert not budget.spend(BURST + 1, now=10 / REFILL_PER_S)


# ---- WebSockets ----


async def echo_frames(stream: trio.SocketStream, request: bytes) -> None:
    """A backend that accepts, and tells back how long messages are."""
    await stream.send_all(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    frames = Connection(ConnectionType.SERVER)
    length = 0
    while data := await stream.receive_some():
        frames.receive_data(bytes(data))
        for event in frames.events():
            if isinstance(event, TextMessage | BytesMessage):
                length += len(event.data)
                if event.message_finished:
                    await stream.send_all(frames.send(TextMessage(data=str(length))))
                    length = 0
            elif isinstance(event, CloseConnection):
                await stream.send_all(frames.send(event.response()))
                return


def frame(
    payload: bytes, *, opcode: int = 2, rsv: int = 0, fin: bool = True, length: int = -1
) -> bytes:
    size = len(payload) if length < 0 else length
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        return first + bytes([0x80 | size]) + bytes(4) + payload
    return first + b"\xff" + struct.pack(">Q", size) + bytes(4) + payload


def close_code(received: bytes) -> int:
    """Of the close frame at the end of what a server has sent."""
    at = received.rindex(b"\x88")
    return int.from_bytes(received[at + 2 : at + 4], "big")


async def open_websocket(port: int) -> tuple[trio.SocketStream, bytes]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    # Behind another request, so that it is Hypercorn that serves it.
    await stream.send_all(HEALTH)
    while b'"ok"}' not in bytes(await stream.receive_some()):
        pass
    await stream.send_all(HANDSHAKE)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some()
    return stream, received


@asynccontextmanager
async def with_socket_backend(folder: Path, form: str) -> AsyncIterator[LlmuxProcess]:
    """A llmux whose model is that backend."""

    async def accept(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            with suppress(trio.BrokenResourceError):  # it is closed in mid-echo
                await echo_frames(stream, received)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, accept, listeners)
        port = listeners[0].socket.getsockname()[1]
        model = {"port": port, "wake": "true", "sleep": "true", "alive": "true"}
        path = folder / "llmux.json"
        path.write_text(json.dumps({"port": 0, "state_dir": "state", "models": {"a": model}}))
        async with running_llmux(path, form) as llmux:
            yield llmux
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_websockets_are_not_compressed_and_bounded(tmp_path: Path, form: str) -> None:
    async with with_socket_backend(tmp_path, form) as llmux:
        port = port_of(llmux)
        stream, answer = await open_websocket(port)
        async with stream:
            assert b"101" in answer.partition(b"\r\n")[0]
            assert b"sec-websocket-extensions" not in answer.lower()
            with trio.fail_after(20):
                await stream.send_all(frame(b"hel", fin=False) + frame(b"lo", opcode=0))
                assert b"5" in bytes(await stream.receive_some())
                await stream.send_all(frame("é".encode() * 3, opcode=1))
                assert b"3" in bytes(await stream.receive_some())

        wrong = {
            # Compressed, though it was not negotiated: 1 MB of this would be 1 GB.
            1002: [frame(b"\xec\xc1\x01\r\x00" * 100, rsv=4)],
            1009: [frame(b"x" * 1_000_000, fin=number == 17, opcode=0 if number else 2) for number in range(18)],
            1008: [frame(b"") * 20_000],
        }  # fmt: skip
        for code, frames in wrong.items():
            stream, _ = await open_websocket(port)
            async with stream:
                with trio.fail_after(60):
                    try:
                        for one in frames:
                            await stream.send_all(one)
                    except trio.BrokenResourceError:
                        pass
                    assert close_code(await read_all(stream)) == code
        # A length that is never sent is nothing but a number.
        stream, _ = await open_websocket(port)
        async with stream:
            await stream.send_all(frame(b"x" * 100, length=1 << 62))
        assert resident_mb(llmux) < 400
        async with llmux.client() as client:
            with trio.fail_after(20):
                while await in_flight(client):
                    await trio.sleep(0.01)
        assert not any("Traceback" in line for line in llmux.lines)


def resident_mb(llmux: LlmuxProcess) -> int:
    status = Path(f"/proc/{llmux.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def test_a_message_is_held_as_bytes() -> None:
    buffer = MessageBuffer(10)
    buffer.extend(TextMessage(data="é€", message_finished=False))
    buffer.extend(TextMessage(data="abc"))
    assert buffer.to_message() == {"type": "websocket.receive", "bytes": None, "text": "é€abc"}
    buffer.clear()
    buffer.extend(BytesMessage(data=b"0123456789"))
    assert buffer.to_message()["bytes"] == b"0123456789"
    with pytest.raises(FrameTooLargeError):
        buffer.extend(BytesMessage(data=b"0"))


async def test_who_sends_while_hypercorn_closes_is_told_that_it_is_closed() -> None:
    class Server:
        def __init__(self) -> None:
            self.protocol = self
            self.handled: list[ConnectionEvent] = []

        async def protocol_send(self, event: ConnectionEvent) -> None:
            raise trio.BusyResourceError

        async def handle(self, event: ConnectionEvent) -> None:
            self.handled.append(event)

    server = Server()
    await Sending(server.protocol_send)(RawData(data=b"x"))
    assert server.handled == [Closed()]


@pytest.mark.parametrize("lane", LANES)
async def test_a_backends_message_is_bounded(
    tmp_path: Path, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the ASGI lane, which holds whole messages; the fast lane passes on what comes."""
    monkeypatch.setattr(asgi_websocket, "MAX_MESSAGE_BYTES", 100_000)

    async def talk(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        for number in range(10):  # of one message
            piece = b"\x7e" + (30_000).to_bytes(2, "big") + b"x" * 30_000
            await stream.send_all((b"\0" if number else b"\x02") + piece)
        await read_all(stream)

    async with running_lane(lane, tmp_path) as site:
        site.backend.play = talk
        async with await site.connect() as stream:
            with trio.fail_after(20):
                await stream.send_all(HANDSHAKE)
                if lane == "asgi":
                    received = await read_all(stream)
                    assert close_code(received) == 1009
                    assert len(received) < 30_000
                else:
                    received = b""
                    while len(received) < 300_000:
                        received += await stream.receive_some()
