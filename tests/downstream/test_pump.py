"""The pump: bodies relayed by one task, and what it leaves to the tasks of the requests."""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmux.downstream.fast_connection import ClientConnection
from llmux.downstream.pump import PIECES_A_TURN, Pump
from llmux.errors import BackendBroke
from llmux.http import wire
from llmux.http.wire import RECEIVE_BYTES
from llmux.proxy.lane import ClientLeft
from llmux.upstream.answers import BodyUntilClose, ChunkedWire, CountedBody, WireBody
from llmux.upstream.connections import TimedConnection
from tests.downstream.test_lanes import post
from tests.lanes import read_all, running_lane

MORE_THAN_BUFFERED = bytes(RECEIVE_BYTES)


class Lane:
    """See `fast_connection.Server`."""

    stall_s = 30.0
    is_stopping = False

    def __init__(self, pump: Pump) -> None:
        self.pump = pump

    def note_idle(self, connection: ClientConnection) -> None:
        """Nothing to note."""

    def note_busy(self, connection: ClientConnection) -> None:
        """Nothing to note."""


class Stream:
    """A backend and a client, both played by the test, and the two ends that llmux has."""

    def __init__(self, pump: Pump, sockets: ExitStack) -> None:
        backend, source = trio.socket.socketpair()
        client, target = trio.socket.socketpair()
        for each in (backend, source, client, target):
            sockets.callback(each.close)
        self.pump, self.backend, self.client = pump, backend, client
        self.source = TimedConnection(trio.SocketStream(source))
        self.target = ClientConnection(Lane(pump), trio.SocketStream(target))

    async def leftover(self, body: WireBody | None = None) -> bytes:
        body = BodyUntilClose(self.source) if body is None else body
        return await self.pump.leftover(body, self.target)

    def fill(self) -> None:
        """Make the client's socket full."""
        self.target.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        plain = socket.socket(fileno=self.target.fileno)
        try:
            while True:
                plain.send(bytes(1024))
        except BlockingIOError:
            pass
        finally:
            plain.detach()

    def unread(self) -> bytes | None:
        """Return the data left in the source's socket."""
        return self.source.receive_now()


@pytest.fixture
async def pump(nursery: trio.Nursery) -> Pump:
    pump = Pump()
    nursery.start_soon(pump.run)
    return pump


@pytest.fixture
async def sockets() -> AsyncIterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_a_body_is_relayed_to_its_end(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    seen = stream.source.seen
    async with trio.open_nursery() as nursery:

        async def relay() -> None:
            assert await stream.leftover() == b""

        nursery.start_soon(relay)
        for piece in (b"one", b"two"):
            await stream.backend.send(piece)
            assert await stream.client.recv(100) == piece
        stream.backend.close()
    assert stream.target.sent_bytes == 6
    assert seen.ending() == b"onetwo"
    assert stream.source.has_ended


async def test_a_counted_body_ends_without_the_connection(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    await stream.backend.send(b"four of these")
    assert await stream.leftover(CountedBody(stream.source, 4)) == b""
    assert await stream.client.recv(100) == b"four"
    assert stream.source.pending == b" of these"


async def test_wrong_framing_ends_its_own_stream_only(pump: Pump, sockets: ExitStack) -> None:
    wrong, right = Stream(pump, sockets), Stream(pump, sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.leftover)
        await wrong.backend.send(b"no chunk\r\n")
        with pytest.raises(BackendBroke, match="not HTTP"):
            await wrong.leftover(ChunkedWire(wrong.source))
        await right.backend.send(b"right")
        assert await right.client.recv(100) == b"right"
        right.backend.close()


@pytest.mark.parametrize("body", [ChunkedWire, lambda source: CountedBody(source, 9)])
async def test_a_body_that_breaks_off_is_an_error(
    body: type[ChunkedWire], pump: Pump, sockets: ExitStack
) -> None:
    stream = Stream(pump, sockets)
    stream.backend.close()
    with pytest.raises(BackendBroke, match="before the end"):
        await stream.leftover(body(stream.source))


async def test_a_backend_that_resets_is_an_error(pump: Pump) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    backend = await trio.testing.open_stream_to_socket_listener(listener)
    source = await listener.accept()
    client, target = trio.socket.socketpair()
    connection = TimedConnection(source)
    with client, target, source.socket, listener.socket:
        backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        backend.socket.close()
        lane = ClientConnection(Lane(pump), trio.SocketStream(target))
        with pytest.raises(BackendBroke, match="reset"):
            await pump.leftover(BodyUntilClose(connection), lane)


async def test_a_client_that_has_left_ends_the_request(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    stream.client.close()
    await stream.backend.send(b"too late")
    with pytest.raises(ClientLeft):
        await stream.leftover()


async def test_a_full_client_holds_its_backend_up(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    stream.fill()
    await stream.backend.send(b"first")
    assert await stream.leftover() == b"first"
    await stream.backend.send(b"second")
    await wait_all_tasks_blocked(0.02)
    assert stream.unread() == b"second"


async def test_what_a_client_took_is_counted(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    stream.target.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    taken_bytes = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.backend.send, MORE_THAN_BUFFERED)
        leftover = await stream.leftover()
        assert leftover
        taken_bytes = stream.target.sent_bytes
        nursery.cancel_scope.cancel()
    got = 0
    with trio.move_on_after(0.1):
        while True:
            got += len(await stream.client.recv(RECEIVE_BYTES))
    assert got == taken_bytes


async def test_nothing_is_relayed_once_cancelled(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.leftover()
    assert scope.cancelled_caught
    await stream.backend.send(b"for the next")
    await wait_all_tasks_blocked(0.02)
    assert stream.unread() == b"for the next"


async def test_a_cancel_in_the_same_turn_as_a_piece_wins(pump: Pump, sockets: ExitStack) -> None:
    """Data that arrives with the cancel is neither lost nor sent: it stays in the socket."""
    stream = Stream(pump, sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.leftover)
        await wait_all_tasks_blocked()
        os.write(stream.backend.fileno(), b"late")  # no checkpoint
        nursery.cancel_scope.cancel()
    assert stream.unread() == b"late"


async def test_a_number_is_used_again(pump: Pump, sockets: ExitStack) -> None:
    """An event of a descriptor's earlier owner must not reach the present one."""
    first = Stream(pump, sockets)
    number = first.source.fileno
    first.backend.close()
    assert await first.leftover() == b""
    first.source.close()
    second = Stream(pump, sockets)
    assert number in {second.source.fileno, second.target.fileno, second.backend.fileno()}
    await second.backend.send(b"mine")
    second.backend.close()
    assert await second.leftover() == b""
    assert await second.client.recv(100) == b"mine"


class Endless(WireBody):
    """A body without an end, of which each piece is counted and none is sent."""

    taken: ClassVar[Counter[int]] = Counter()

    def take(self, data: bytes) -> bytes:
        self.taken[self.connection.fileno] += 1
        return b""


class AlwaysReady(TimedConnection):
    """A backend that sends faster than it is read."""

    def receive_now(self) -> bytes:
        return MORE_THAN_BUFFERED


async def test_no_stream_starves_another_nor_a_task(pump: Pump, sockets: ExitStack) -> None:
    count, turns = 2 * PIECES_A_TURN + 1, 50
    taken = Endless.taken = Counter()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            stream = Stream(pump, sockets)
            stream.source = AlwaysReady(stream.source.stream)
            await stream.backend.send(b"x")
            nursery.start_soon(stream.leftover, Endless(stream.source))
        await trio.lowlevel.checkpoint()  # the last one is in
        taken.clear()
        for _ in range(turns):
            await trio.lowlevel.checkpoint()  # no task waits for more than one round of the pump
        total = taken.total()
        nursery.cancel_scope.cancel()
    assert total <= (turns + 5) * PIECES_A_TURN
    assert len(taken) == count
    assert max(taken.values()) - min(taken.values()) <= 2


async def test_large_pieces_are_not_put_apart(
    pump: Pump, sockets: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Unix socket's buffer holds less than a backend can send within a pause."""
    monkeypatch.setattr("llmux.downstream.pump.REST_S", 1000.0)
    stream = Stream(pump, sockets)
    piece = bytes(RECEIVE_BYTES // 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.leftover)
        with trio.fail_after(5):
            for _ in range(20):
                os.write(stream.backend.fileno(), piece)
                got = 0
                while got < len(piece):
                    got += len(await stream.client.recv(RECEIVE_BYTES))
        nursery.cancel_scope.cancel()


async def test_a_body_that_begins_after_the_pump_has_ended_waits_to_be_cancelled(
    sockets: ExitStack,
) -> None:
    pump = Pump()
    with trio.CancelScope() as scope:
        scope.cancel()
        await pump.run()
    stream = Stream(pump, sockets)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.leftover()
    assert scope.cancelled_caught


async def test_bytes_taken_before_a_cancel_are_counted(pump: Pump, sockets: ExitStack) -> None:
    stream = Stream(pump, sockets)
    stream.target.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    got = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.target.send, MORE_THAN_BUFFERED)
        for _ in range(3):
            await wait_all_tasks_blocked()
            got += len(await stream.client.recv(RECEIVE_BYTES))
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0.1):
        while True:
            got += len(await stream.client.recv(RECEIVE_BYTES))
    assert 0 < got < len(MORE_THAN_BUFFERED)
    assert stream.target.sent_bytes == got


class LastByteKeptBack:
    """`os` for the pump: of each piece the client's socket does not take the last byte."""

    read = staticmethod(os.read)

    @staticmethod
    def write(fileno: int, data: bytes) -> int:
        return os.write(fileno, data[:-1])


async def test_a_cut_in_front_of_the_last_byte_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same byte that was left over of the chunk before, and was sent then."""
    piece = b"9\r\ndata: 1\n\n\r\n"
    left: list[bytes] = []
    write = wire.write

    def write_once(sock: trio.socket.SocketType, data: bytes) -> int:
        if data == b"\n":
            left.append(data)
            return write(sock, data) if len(left) == 1 else 0
        return write(sock, data)

    monkeypatch.setattr("llmux.downstream.pump.os", LastByteKeptBack)
    monkeypatch.setattr(wire, "write", write_once)
    async with running_lane("fast", tmp_path) as site, await site.connect() as stream:

        async def answer(backend: trio.SocketStream, request: bytes) -> None:
            head = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            await backend.send_all(b"HTTP/1.1 200 OK\r\n" + head)
            for _ in range(2):
                await trio.sleep(0.01)
                await backend.send_all(piece)
            await trio.sleep_forever()

        site.backend.play = answer
        await stream.send_all(post())
        with trio.fail_after(20):
            while len(left) < 2:
                await trio.sleep(0.001)
            site.service.board.models["a"].in_flight.cut()
            received = await read_all(stream)
    assert received.endswith(piece + piece[:-1])
