"""Hosts that are gone without a word: no FIN, no reset, no answer to anything.

A socket filter that drops every segment makes one of an end of a connection on loopback: to the
other end it looks like a laptop whose lid was shut.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.http import wire
from llmux.server.hypercorn_side.rules import RULES
from llmux.upstream import Backend
from tests.downstream.test_lane_cuts import ALL_LANES, connect, on_lane, until
from tests.downstream.test_lanes import HANDSHAKE, SWITCHING, post, status
from tests.lanes import OK, ScriptedBackend, play, read_all, read_request, running_lane
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

SO_ATTACH_FILTER = 26
DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)  # BPF_RET of 0 bytes

SOON = {"dead_peer_secs": 2, "client_stall_secs": 2}

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has the filter"
)


def vanish(sock: Any) -> None:
    """This end of a connection hears nothing any more, and so answers nothing."""
    program = ctypes.create_string_buffer(DROP_ALL)
    filter_ = struct.pack("HP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


async def say_nothing(stream: trio.SocketStream, request: bytes) -> None:
    if b"websocket" in request:
        await stream.send_all(SWITCHING)
    while await stream.receive_some():
        pass


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_clients_that_vanish_hold_nothing(lane: str, tmp_path: Path) -> None:
    """One in flight, one with a WebSocket, one in line."""
    async with on_lane(lane, tmp_path, limits=SOON, models=["a", "b"]) as site:
        site.backend.play = say_nothing
        journeys = site.service.proxy.journeys
        clients = [await connect(site, lane) for _ in range(3)]
        await clients[0].send_all(post())
        await clients[1].send_all(HANDSHAKE)
        await until(lambda: len(site.backend.received) == 2)
        await clients[2].send_all(post(b'{"model": "b"}'))
        await until(lambda: site.service.board.queue_depths["b"] == 1)
        for client in clients:
            vanish(client.socket)
        await until(lambda: not journeys.list(1).total, 6)
        await until(lambda: not site.backend.open)
        for client in clients:
            await trio.aclose_forcefully(client)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_clients_of_real_servers_that_vanish(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        async with running_llmux(rack.write_config(limits=SOON), form) as llmux:
            async with llmux.client() as client:

                async def counts() -> tuple[int, int]:
                    models = (await client.get("/v1/models")).json()["data"]
                    found = {model["id"]: model["llmux"] for model in models}
                    return found["a"]["in_flight"], found["b"]["queued"]

                port = int(llmux.url.rpartition(":")[2])
                body = b'{"model": "%b", "seconds": 60}'
                gone = []
                for model, expected in ((b"a", (1, 0)), (b"b", (1, 1))):
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    await stream.send_all(post(body % model, close=False))
                    with trio.fail_after(10):
                        while await counts() != expected:
                            await trio.sleep(0.02)
                    gone.append(stream)
                for stream in gone:
                    vanish(stream.socket)
                with trio.fail_after(8):
                    while await counts() != (0, 0):
                        await trio.sleep(0.05)
                answer = await client.post("/v1/chat/completions", json=chat("b"))
                assert answer.status_code == 200
                for stream in gone:
                    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("when", ["before its head", "in its body", "as a websocket"])
async def test_a_backend_that_vanishes(when: str, tmp_path: Path) -> None:
    async def disappear(stream: trio.SocketStream, request: bytes) -> None:
        if when == "in its body":
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        elif when == "as a websocket":
            await stream.send_all(SWITCHING)
        vanish(stream.socket)
        await trio.sleep_forever()

    async with running_lane("fast", tmp_path, limits=SOON) as site:
        site.backend.play = disappear
        request = HANDSHAKE if when == "as a websocket" else post()
        answer = await site.exchange(request, seconds=8)
        expected = {"before its head": 502, "in its body": 200, "as a websocket": 101}
        assert status(answer) == expected[when]
        site.backend.play = play(OK)
        assert status(await site.exchange(post())) == 200


async def test_a_backend_that_vanishes_with_a_request_on_its_way() -> None:
    """Nothing acknowledges the second request; without more, TCP would send it again for 15 min."""

    async def disappear(stream: trio.SocketStream, request: bytes) -> None:
        if len(server.received) == 1:
            vanish(stream.socket)
        await stream.send_all(OK)

    server = ScriptedBackend()
    server.play = disappear
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        backend = Backend(f"http://127.0.0.1:{server.port}", dead_peer_s=1)
        for _ in range(2):  # the second is sent once more, on a new connection
            with trio.fail_after(6):
                async with backend.exchange(b"POST", b"/", [], b"x") as answer:
                    assert await answer.read() == b"ok"
        assert len(server.received) == 2
        backend.close()
        nursery.cancel_scope.cancel()


async def test_a_backend_may_be_busy_before_it_reads_a_large_body() -> None:
    """It is there, but its window is shut: TCP_USER_TIMEOUT would take that for death."""
    body = bytes(4 << 20)

    async def read_late(*, task_status: trio.TaskStatus[int]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        async with listener, await listener.accept() as stream:
            await trio.sleep(3)
            assert (await read_request(stream)).endswith(body)
            await stream.send_all(OK)

    async with trio.open_nursery() as nursery:
        port = await nursery.start(read_late)
        backend = Backend(f"http://127.0.0.1:{port}", dead_peer_s=1)
        with trio.fail_after(10):
            async with backend.exchange(b"POST", b"/", [], body) as answer:
                assert await answer.read() == b"ok"
        backend.close()


@pytest.mark.parametrize("lane", ALL_LANES)
async def test_a_client_may_read_nothing_for_as_long_as_the_stall_limit_says(
    lane: str, tmp_path: Path
) -> None:
    limits = {"dead_peer_secs": 1, "client_stall_secs": 20}
    size = 4 << 20
    async with on_lane(lane, tmp_path, limits=limits) as site:
        site.backend.play = play(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, bytes(size)
        )
        async with await connect(site, lane) as stream:
            await stream.send_all(post())
            await trio.sleep(2.5)
            with trio.fail_after(10):
                answer = await read_all(stream)
        assert len(answer.partition(b"\r\n\r\n")[2]) == size


class Recorder:
    """A socket that has none of the options."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.family = family
        self.tried: list[int] = []

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        self.tried.append(option)
        raise OSError("Protocol not available")


def test_what_a_platform_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT"):
        monkeypatch.delattr(socket, name)
    recorder = Recorder()
    wire.notice_death(recorder, 120)
    wire.allow_stall(recorder, 120, allowed=True)
    assert recorder.tried == [socket.SO_KEEPALIVE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]


@pytest.mark.parametrize("seconds", [0.001, 1, 120, 1e6, 1e300])
def test_any_number_of_seconds_is_taken(seconds: float) -> None:
    with socket.socket() as sock:
        wire.notice_death(sock, seconds)
        idle, unacked = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
        )
    assert 1 <= idle <= 32767
    assert unacked >= 1


def test_unix_sockets_and_null_are_left_alone() -> None:
    unix, off = Recorder(socket.AF_UNIX), Recorder()
    wire.notice_death(unix, 120)
    wire.allow_stall(unix, 120, allowed=True)
    wire.notice_death(off, None)
    wire.allow_stall(off, None, allowed=True)
    assert not unix.tried
    assert not off.tried
    assert RULES.dead_peer_s
