"""How connections of Hypercorn end: nothing is lost in them, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import h2.connection
import pytest
import trio
from hypercorn.asyncio.worker_context import EventWrapper as AsyncioEvent
from hypercorn.config import Config as ServerConfig
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Body, Response, StreamClosed
from hypercorn.trio.worker_context import EventWrapper as TrioEvent
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from llmux.server.hypercorn_side.ends import EndingAsyncioServer, EndingTrioServer
from llmux.server.hypercorn_side.http1 import StrictH11Protocol
from llmux.server.hypercorn_side.http2 import BoundedH2Protocol
from llmux.server.hypercorn_side.inbox import Inbox, InboxAsyncioGroup, InboxTrioGroup
from tests.lanes import read_all
from tests.server.test_hypercorn_side import http2, port_of
from tests.servers import ALL_FORMS, Rack, running_backends, running_llmux

HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
LARGE = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhello"


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


# ---- An answer before the request is whole ----


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_an_answer_to_half_a_request_says_that_the_connection_closes(
    rack: Rack, form: str
) -> None:
    config = rack.write_config(limits={"body_bytes": 50, "client_stall_secs": 1})
    async with running_llmux(config, form) as llmux:
        for path in (b"/v1/completions", b"/control/switch"):
            for before in (b"", HEALTH):  # with it, it is Hypercorn's connection
                stream = await trio.open_tcp_stream("127.0.0.1", port_of(llmux))
                async with stream:
                    with trio.fail_after(20):
                        await stream.send_all(before + LARGE % path)
                        answer = await read_all(stream)
                if before:
                    whole, answer = answer.split(b"HTTP/1.1 ")[1:]
                    assert b"connection: close" not in whole.lower()
                status = answer.removeprefix(b"HTTP/1.1 ")[:3]
                assert status in {b"413", b"408"}
                assert answer.lower().count(b"\r\nconnection: close\r\n") == 1


@pytest.mark.parametrize("length", [2, 3])
async def test_an_answer_that_is_cut_behind_its_last_byte_closes_nothing(length: int) -> None:
    """The app was cancelled between them; the client has it all, and may have asked again."""
    told: list[object] = []

    async def send(event: object) -> None:
        told.append(event)

    async def app(*_: object) -> None:
        await trio.sleep_forever()

    async with InboxTrioGroup() as group:
        state = ConnectionState({})
        protocol = StrictH11Protocol(
            app, ServerConfig(), WorkerContext(None), group, state, False, None, None, send
        )
        await protocol.handle(RawData(HEALTH))
        headers = [(b"content-length", b"%d" % length)]
        await protocol.stream_send(Response(stream_id=1, headers=headers, status_code=200))
        await protocol.stream_send(Body(stream_id=1, data=b"ok"))
        await protocol.stream_send(StreamClosed(stream_id=1))
        assert isinstance(told[-1], Closed if length > 2 else Updated)
        assert group._nursery is not None
        group._nursery.cancel_scope.cancel()


async def start_of_an_answer(protocol_class: Any, request: bytes) -> list[Any]:
    """What is sent when an app is cancelled while it sends the head of its answer."""
    told: list[Any] = []

    async def send(event: object) -> None:
        told.append(event)
        await trio.lowlevel.checkpoint()

    async def app(_scope: object, _receive: object, tell: Any, *_: object) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await tell({"type": "http.response.start", "status": 200, "headers": []})

    with trio.fail_after(20):
        async with InboxTrioGroup() as group:
            state = ConnectionState({})
            protocol = protocol_class(
                app, ServerConfig(), WorkerContext(None), group, state, False, None, None, send
            )
            await protocol.initiate()
            await protocol.handle(RawData(request))
            await trio.testing.wait_all_tasks_blocked()
            assert group._nursery is not None
            group._nursery.cancel_scope.cancel()
    return told


async def test_an_app_that_is_cancelled_at_the_head_of_its_answer() -> None:
    told = await start_of_an_answer(StrictH11Protocol, HEALTH)
    assert b" 200 " in told[1].data
    assert isinstance(told[-1], Closed)


async def test_the_same_on_a_stream_of_http2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.server.hypercorn_side.rules.RULES.http2", True)
    client = h2.connection.H2Connection()
    client.initiate_connection()
    fields = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "h"}
    client.send_headers(1, [*fields.items()], end_stream=True)
    told = await start_of_an_answer(BoundedH2Protocol, client.data_to_send())
    data = b"".join(event.data for event in told if isinstance(event, RawData))
    events = [type(event).__name__ for event in client.receive_data(data)]
    assert "ResponseReceived" in events
    assert "StreamReset" in events
    assert "StreamEnded" not in events


async def test_a_cancelled_task_tells_all_of_a_connection_that_broke() -> None:
    class Broken(Stream):
        async def send_all(self, _data: bytes) -> None:
            raise trio.BrokenResourceError

    told: list[object] = []

    class Protocol:
        async def handle(self, event: object) -> None:
            await trio.lowlevel.checkpoint()
            told.append(event)

    server = trio_server(Broken())
    server.protocol = cast("Any", Protocol())
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.protocol_send(RawData(b"x"))
    assert len(told) == 1


# ---- Clients that leave ----


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("speaks", ["HTTP/1.1", "HTTP/2"])
async def test_an_idle_client_that_leaves_is_gone_at_once(
    rack: Rack, form: str, speaks: str
) -> None:
    async with running_llmux(rack.write_config(http2=True), form) as llmux:
        port = port_of(llmux)
        for _ in range(5):
            if speaks == "HTTP/2":
                async with http2(llmux) as client:
                    await client.until(await client.begin(1))
            else:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(HEALTH)
                    assert await stream.receive_some()
        with trio.fail_after(4):  # Hypercorn's own idle time is 5 s, that of `llmux` 75
            while half_closed(port):
                await trio.sleep(0.01)


def half_closed(port: int) -> int:
    """Connections to this port which the client has closed, and the server has not."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ends = [line.split()[1:4:2] for line in lines]
    return sum(local.endswith(f":{port:04X}") and state == "08" for local, state in ends)


# ---- What waits behind others ----


class Stream:
    """A client that takes something when it is let."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.may_take = trio.Event()

    async def send_all(self, data: bytes) -> None:
        await self.may_take.wait()
        self.taken.append(data)


def trio_server(stream: Stream) -> EndingTrioServer:
    return EndingTrioServer(*cast("Any", (None, None, None, None, stream)))


async def test_what_a_cancelled_task_was_to_send_is_sent_by_others() -> None:
    stream = Stream()
    server = trio_server(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.protocol_send, RawData(b"1"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as waiting:
            await server.protocol_send(RawData(b"2"))
        assert waiting.cancelled_caught  # it does not wait for its turn
        nursery.start_soon(server.protocol_send, RawData(b"3"))
        await trio.testing.wait_all_tasks_blocked()
        stream.may_take.set()
    assert stream.taken == [b"1", b"2", b"3"]


async def test_what_a_cancelled_task_sends_first_is_sent() -> None:
    stream = Stream()
    stream.may_take.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio_server(stream).protocol_send(RawData(b"1"))
    assert stream.taken == [b"1"]


class Writer:
    """An asyncio connection whose client takes something when it is let."""

    def __init__(self) -> None:
        self.data = b""
        self.left = 0
        self.transport = self
        self.is_aborted = False

    def get_extra_info(self, name: str) -> None:
        """It has no socket."""

    def write(self, data: bytes) -> None:
        self.data += data
        self.left += len(data)

    def get_write_buffer_size(self) -> int:
        return self.left

    async def drain(self) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.is_aborted = True


def asyncio_server(writer: Writer) -> EndingAsyncioServer:
    return EndingAsyncioServer(*cast("Any", (None, None, None, None, None, None, writer)))


def test_asyncio_sends_in_the_order_of_calls_whatever_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmux.server.hypercorn_side.rules.RULES.stall_s", 0.05)

    async def main() -> None:
        writer = Writer()
        server = asyncio_server(writer)
        told: list[object] = []

        class Protocol:
            async def handle(self, event: object) -> None:
                told.append(event)

        server.protocol = cast("Any", Protocol())
        for data in (b"1", b"2"):
            task = asyncio.create_task(server.protocol_send(RawData(data)))
            await asyncio.sleep(0)
            task.cancel()
        assert writer.data == b"12"
        sending = asyncio.create_task(server.protocol_send(RawData(b"3")))
        await asyncio.sleep(0.03)
        writer.left -= 1  # it takes something: the time begins again
        await asyncio.sleep(0.03)
        assert not told
        await asyncio.wait_for(sending, 5)
        assert writer.is_aborted
        assert told

    asyncio.run(main())


async def test_a_connection_that_has_ended_is_not_idle() -> None:
    server = trio_server(Stream())
    async with InboxTrioGroup() as server._task_group:
        pass
    await server.protocol_send(Updated(idle=True))


def test_a_connection_that_has_ended_is_not_idle_in_asyncio() -> None:
    async def main() -> None:
        server = asyncio_server(Writer())
        async with InboxAsyncioGroup(asyncio.get_running_loop()) as server._task_group:
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await server.protocol_send(Updated(idle=True))
            gc.collect()

    asyncio.run(main())


# ---- What is for nobody ----


async def exercise(inbox: Inbox, spawn: Callable[[Any], Any], settle: Callable[[], Any]) -> None:
    body = {"type": "http.request", "body": b"x", "more_body": True}
    done: list[str] = []

    async def put(name: str, message: dict[str, object]) -> None:
        await inbox.put(cast("Any", message))
        done.append(name)

    for name in ("first", "second", "third", "fourth"):
        spawn(put(name, body))
        await settle()
    assert done == ["first", "second"]
    spawn(put("last", {"type": "http.disconnect"}))
    await settle()
    assert done == ["first", "second", "last"]
    assert (await inbox.get())["type"] == "http.request"
    assert (await inbox.get())["type"] == "http.request"
    await settle()
    assert len(done) == 4

    async def app(*_: object) -> None:
        return

    await inbox.closed_after(cast("Any", app))(*cast("Any", (None,) * 5))
    await settle()
    assert sorted(done) == ["first", "fourth", "last", "second", "third"]
    await inbox.put(cast("Any", body))  # again and again, for nobody
    await inbox.put(cast("Any", body))
    await inbox.put(cast("Any", body))


async def test_an_inbox_that_nobody_reads_holds_up_nobody() -> None:
    async with trio.open_nursery() as nursery:

        def spawn(coroutine: Any) -> None:
            async def run() -> None:
                await coroutine

            nursery.start_soon(run)

        with trio.fail_after(20):
            await exercise(Inbox(2, TrioEvent), spawn, trio.testing.wait_all_tasks_blocked)


def test_the_same_in_asyncio() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def main() -> None:
        inbox = Inbox(2, AsyncioEvent)
        await exercise(inbox, lambda task: tasks.append(asyncio.create_task(task)), settle)

    asyncio.run(asyncio.wait_for(main(), 5))


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_many_frames_of_a_refused_body_hold_up_no_sibling(rack: Rack, form: str) -> None:
    paths = ["/v1/completions", "/control/switch"]
    config = rack.write_config(http2=True, limits={"body_bytes": 1000})
    async with running_llmux(config, form) as llmux, http2(llmux) as client:
        for stream in range(1, 20, 2):
            fields = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", paths[stream // 2 % 2]),
                (":authority", "h"),
                ("content-length", "9900000"),
            ]
            client.h2.send_headers(stream, fields)
            for _ in range(50):
                client.h2.send_data(stream, b"x" * 20)
            await client.flush()
            await client.until(stream)
            assert client.statuses[stream] == 413
        await client.until(await client.begin(21))
        assert client.statuses[21] == 200
