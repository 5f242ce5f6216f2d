"""The bridge from an asyncio server to a Trio app: with a fake server, and with Hypercorn's own."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypercorn.asyncio
import pytest
import sniffio
import trio
from hypercorn.config import Config
from trio.testing import wait_all_tasks_blocked

from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.server.guest import GuestBridge

DISCONNECT: Message = {"type": "http.disconnect"}


def in_asyncio(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in a loop of its own, and see that it leaves no task behind."""

    async def main() -> None:
        async with asyncio.timeout(10):
            await test()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not trio.lowlevel.in_trio_run()

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(main())

    return run


@dataclass
class Connection:
    """The server's side of one ASGI call."""

    kind: str = "http"
    incoming: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    outgoing: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)

    def start(self, bridge: GuestBridge) -> asyncio.Task[None]:
        return asyncio.create_task(self.call(bridge))

    async def call(self, bridge: GuestBridge) -> None:
        await bridge({"type": self.kind}, self.incoming.get, self.outgoing.put)

    def put(self, *bodies: bytes) -> None:
        for body in bodies:
            self.incoming.put_nowait({"type": "http.request", "body": body})

    async def get(self) -> Any:
        return (await self.outgoing.get())["body"]


@dataclass
class Lifespan(Connection):
    kind: str = "lifespan"
    task: asyncio.Task[None] = field(init=False)

    async def startup(self, bridge: GuestBridge) -> None:
        self.task = self.start(bridge)
        self.incoming.put_nowait({"type": "lifespan.startup"})
        assert await self.outgoing.get() == {"type": "lifespan.startup.complete"}

    async def shutdown(self) -> None:
        self.incoming.put_nowait({"type": "lifespan.shutdown"})
        await self.task
        assert self.outgoing.get_nowait() == {"type": "lifespan.shutdown.complete"}


def with_lifespan(serve: ASGIApp) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await serve(scope, receive, send)
            return
        for step in ("lifespan.startup", "lifespan.shutdown"):
            assert await receive() == {"type": step}
            await send({"type": f"{step}.complete"})

    return app


@asynccontextmanager
async def running(serve: ASGIApp) -> AsyncIterator[GuestBridge]:
    bridge = GuestBridge(with_lifespan(serve))
    lifespan = Lifespan()
    await lifespan.startup(bridge)
    yield bridge
    await lifespan.shutdown()
    assert repr(bridge) == "<GuestBridge stopped, 0 calls>"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send back each body; an empty one is the last."""
    while body := (await receive())["body"]:
        await send({"body": body})


def waiting_app(journal: list[str]) -> ASGIApp:
    """An app that says that it waits, waits until it is cancelled, and cleans up slowly."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(receive)
                await send({"body": b"waiting"})
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            journal.append("cleaned up")

    return app


@in_asyncio
async def test_each_side_runs_in_its_own_library() -> None:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"body": sniffio.current_async_library()})
        await trio.lowlevel.checkpoint()
        await receive()

    async def incoming() -> Message:
        heard.append(sniffio.current_async_library())
        await asyncio.sleep(0)
        return DISCONNECT

    async def outgoing(message: Message) -> None:
        await asyncio.sleep(0)
        heard.extend((sniffio.current_async_library(), message["body"]))

    heard: list[str] = []
    async with running(tell) as bridge:
        assert repr(bridge) == "<GuestBridge running, 0 calls>"
        await bridge({"type": "http"}, incoming, outgoing)
        heard.append(sniffio.current_async_library())
    assert heard == ["asyncio", "trio", "asyncio", "asyncio"]


@in_asyncio
async def test_messages_pass_both_ways_as_they_come() -> None:
    async with running(echo) as bridge:
        client = Connection()
        call = client.start(bridge)
        for body in (b"one", b"two", b"three"):
            client.put(body)
            assert await client.get() == body
        client.put(b"4", b"5", b"")
        await call
        assert [await client.get(), await client.get()] == [b"4", b"5"]


@in_asyncio
async def test_a_websocket() -> None:
    async def shout(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})

    async with running(shout) as bridge:
        peer = Connection("websocket")
        call = peer.start(bridge)
        peer.incoming.put_nowait({"type": "websocket.connect"})
        assert await peer.outgoing.get() == {"type": "websocket.accept"}
        peer.incoming.put_nowait({"type": "websocket.receive", "text": "hey"})
        assert (await peer.outgoing.get())["text"] == "HEY"
        peer.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await call


@in_asyncio
async def test_a_client_that_leaves() -> None:
    async def stream_until_left(scope: Scope, receive: Receive, send: Send) -> None:
        async def stream() -> None:
            while True:
                await send({"body": b"more"})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            assert await receive() == DISCONNECT
            nursery.cancel_scope.cancel()

    async with running(stream_until_left) as bridge:
        client = Connection()
        call = client.start(bridge)
        assert await client.get() == b"more"
        client.incoming.put_nowait(DISCONNECT)
        await call


@in_asyncio
async def test_fifty_calls_at_once() -> None:
    everyone_is_here = trio.Event()

    async def meet(scope: Scope, receive: Receive, send: Send) -> None:
        here.append(await receive())
        if len(here) == 50:
            everyone_is_here.set()
        await everyone_is_here.wait()
        await send(here[-1])

    here: list[Message] = []
    async with running(meet) as bridge:
        clients = [Connection() for _ in range(50)]
        calls = [client.start(bridge) for client in clients]
        for client in clients:
            client.put(b"here")
        await asyncio.gather(*calls)
        assert [await client.get() for client in clients] == [b"here"] * 50


@in_asyncio
async def test_a_cancelled_receive_loses_no_message() -> None:
    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            with trio.move_on_after(0):
                await receive()
        await send({"body": b"go on"})
        await echo(scope, receive, send)

    async with running(impatient) as bridge:
        client = Connection()
        call = client.start(bridge)
        assert await client.get() == b"go on"
        client.put(b"1", b"2", b"3", b"")
        await call
        assert [await client.get() for _ in range(3)] == [b"1", b"2", b"3"]


@in_asyncio
async def test_a_receive_cancelled_as_its_message_comes() -> None:
    """In whichever order the two reach the app, the message is there."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = None
        with trio.CancelScope() as impatience:
            cancels.append(impatience)
            await send({"body": b"waiting"})
            message = await receive()
        await send(message or await receive())

    cancels: list[trio.CancelScope] = []
    async with running(app) as bridge:
        for yields in range(6):
            client = Connection()
            call = client.start(bridge)
            assert await client.get() == b"waiting"
            client.put(b"precious")
            for _ in range(yields):
                await asyncio.sleep(0)
            cancels.pop().cancel()
            await call
            assert await client.get() == b"precious"


@in_asyncio
async def test_what_asyncio_cancels_is_cancelled_in_trio() -> None:
    journal: list[str] = []
    async with running(waiting_app(journal)) as bridge:
        client = Connection()
        call = client.start(bridge)
        assert await client.get() == b"waiting"
        call.cancel()
        await asyncio.sleep(0)
        call.cancel()  # once more, while it waits for the clean-up
        with pytest.raises(asyncio.CancelledError):
            await call
        assert journal == ["cleaned up"]


@in_asyncio
async def test_a_call_cancelled_before_the_app_began() -> None:
    journal: list[str] = []
    async with running(waiting_app(journal)) as bridge:
        call = Connection().start(bridge)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert journal == ["cleaned up"]


@in_asyncio
async def test_an_error_in_the_clean_up_is_not_lost() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"body": b"waiting"})
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    async with running(app) as bridge:
        client = Connection()
        call = client.start(bridge)
        await client.get()
        call.cancel()
        with pytest.raises(ValueError, match="in the clean-up"):
            await call


@in_asyncio
async def test_an_error_comes_without_its_nurseries_groups() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery(), trio.open_nursery():
            raise ValueError("mine")

    async with running(fail) as bridge:
        with pytest.raises(ValueError, match="mine"):
            await Connection().call(bridge)


@in_asyncio
async def test_several_errors_stay_grouped() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ExceptionGroup("two", [ValueError(), OSError()])

    async with running(fail) as bridge:
        with pytest.raises(ExceptionGroup, match="two"):
            await Connection().call(bridge)


@in_asyncio
async def test_the_servers_errors_reach_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(ConnectionResetError, match="in receive"):
            await receive()
        with pytest.raises(ConnectionResetError, match="in send"):
            await send({})

    async def fail_receive() -> Message:
        raise ConnectionResetError("in receive")

    async def fail_send(message: Message) -> None:
        raise ConnectionResetError("in send")

    async with running(app) as bridge:
        await bridge({"type": "http"}, fail_receive, fail_send)


@in_asyncio
async def test_a_slow_client_holds_the_app_back() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        for number in range(5):
            begun.append(number)
            await send({"body": b"%d" % number})

    begun: list[int] = []
    async with running(stream) as bridge:
        client = Connection(outgoing=asyncio.Queue(maxsize=1))
        call = client.start(bridge)
        for number in range(5):
            assert await client.get() == b"%d" % number
            assert len(begun) <= number + 3  # one read, one in the queue, one in its send
        await call


@in_asyncio
async def test_a_cancelled_send_has_ended_before_the_next_begins() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as patience:
            cancels.append(patience)
            await send({"body": "first"})
        await send({"body": "second"})

    async def send(message: Message) -> None:
        journal.append(f"{message['body']} begins")
        try:
            if cancels:
                cancels.pop().cancel()
                await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            journal.append(f"{message['body']} ends")

    cancels: list[trio.CancelScope] = []
    journal: list[str] = []
    async with running(app) as bridge:
        await bridge({"type": "http"}, asyncio.Queue[Message]().get, send)
    assert journal == ["first begins", "first ends", "second begins", "second ends"]


@in_asyncio
async def test_there_is_no_app_without_its_lifespan() -> None:
    bridge = GuestBridge(with_lifespan(echo))
    for _ in range(2):  # it can be started again
        with pytest.raises(RuntimeError, match="lifespan"):
            await Connection().call(bridge)
        lifespan = Lifespan()
        await lifespan.startup(bridge)
        await lifespan.shutdown()
    with pytest.raises(RuntimeError, match="lifespan"):
        await Connection().call(bridge)


@in_asyncio
async def test_a_shutdown_ends_the_calls_that_are_left() -> None:
    journal: list[str] = []
    async with running(waiting_app(journal)) as bridge:
        client = Connection()
        call = client.start(bridge)
        await client.get()
        assert repr(bridge) == "<GuestBridge running, 1 calls>"
    with pytest.raises(RuntimeError, match="lifespan has ended") as caught:
        await call
    assert caught.value.__cause__ is None
    assert journal == ["cleaned up"]


@in_asyncio
async def test_a_cancelled_lifespan_ends_all() -> None:
    journal: list[str] = []
    bridge = GuestBridge(with_lifespan(waiting_app(journal)))
    lifespan = Lifespan()
    await lifespan.startup(bridge)
    client = Connection()
    call = client.start(bridge)
    await client.get()
    lifespan.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lifespan.task
    with pytest.raises(RuntimeError, match="lifespan has ended"):
        await call
    assert journal == ["cleaned up"]


@in_asyncio
async def test_a_lifespan_cancelled_before_trio_began() -> None:
    lifespan = Connection("lifespan").start(GuestBridge(with_lifespan(echo)))
    await asyncio.sleep(0)
    lifespan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lifespan


@in_asyncio
async def test_the_shutdown_is_complete_when_trio_has_ended() -> None:
    """Hypercorn cancels the lifespan at that moment, which must find it done."""

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.shutdown.complete":
            assert not trio.lowlevel.in_trio_run()
            complete.set()

    complete = asyncio.Event()
    incoming = asyncio.Queue[Message]()
    incoming.put_nowait({"type": "lifespan.startup"})
    incoming.put_nowait({"type": "lifespan.shutdown"})
    bridge = GuestBridge(with_lifespan(echo))
    lifespan = asyncio.ensure_future(bridge({"type": "lifespan"}, incoming.get, send))
    await complete.wait()
    assert not lifespan.cancel()


@in_asyncio
async def test_a_lifespan_that_fails() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery():
            raise ValueError("no GPU")

    with pytest.raises(ValueError, match="no GPU"):
        await Connection("lifespan").call(GuestBridge(app))


@in_asyncio
async def test_when_trio_dies_everyone_hears_why() -> None:
    async def kill() -> None:
        raise ValueError("murder")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"body": b"here"})
        if await receive():
            trio.lowlevel.spawn_system_task(kill)
        await trio.sleep_forever()

    bridge = GuestBridge(with_lifespan(app))
    lifespan = Lifespan()
    await lifespan.startup(bridge)
    victim, killer = Connection(), Connection()
    calls = [victim.start(bridge), killer.start(bridge)]
    assert [await victim.get(), await killer.get()] == [b"here"] * 2
    killer.put(b"kill")
    for call in calls:
        with pytest.raises(RuntimeError, match="lifespan has ended") as caught:
            await call
        assert isinstance(caught.value.__cause__, trio.TrioInternalError)
    with pytest.raises(trio.TrioInternalError):
        await lifespan.task
    with pytest.raises(RuntimeError, match="lifespan"):
        await Connection().call(bridge)


@in_asyncio
async def test_a_thousand_calls_leave_nothing_behind() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)  # for the client to leave, as a proxy does
            await send({"body": b"hello"})
            nursery.cancel_scope.cancel()

    async with running(answer) as bridge:
        await Connection().call(bridge)
        tasks = len(asyncio.all_tasks())
        trio_tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            await asyncio.gather(*(Connection().call(bridge) for _ in range(50)))
        assert len(asyncio.all_tasks()) == tasks
        assert trio.lowlevel.current_statistics().tasks_living == trio_tasks
        assert repr(bridge) == "<GuestBridge running, 0 calls>"


def test_a_loop_that_ends_without_a_shutdown() -> None:
    """`asyncio.run` then cancels every task at once, those of the bridge's hops too."""

    async def main() -> None:
        bridge = GuestBridge(with_lifespan(waiting_app(journal)))
        lifespan = Lifespan()
        await lifespan.startup(bridge)
        client = Connection()
        calls.append(client.start(bridge))
        assert await client.get() == b"waiting"

    journal: list[str] = []
    calls: list[asyncio.Task[None]] = []
    asyncio.run(main())
    assert journal == ["cleaned up"]
    assert calls[0].cancelled()
    assert not trio.lowlevel.in_trio_run()


class Site:
    """A small Trio app: `/hello` answers, anything else streams until its client has left."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.stream_ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["path"] == "/hello":
            await self.hello(send)
        else:
            await self.stream(receive, send)

    async def live(self, receive: Receive, send: Send) -> None:
        try:
            await with_lifespan(echo)({"type": "lifespan"}, receive, send)
        finally:
            self.journal.append("site closed")

    async def hello(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0.001)
        await send({"type": "http.response.body", "body": b"hello"})

    async def stream(self, receive: Receive, send: Send) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.send_for_ever, send)
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.journal.append("client left")
                nursery.cancel_scope.cancel()
        finally:
            self.journal.append("stream ended")
            self.stream_ended.set()

    async def send_for_ever(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
            await trio.sleep(0.001)


@dataclass
class Served:
    site: Site
    client: httpx.AsyncClient
    stop: asyncio.Event


@asynccontextmanager
async def hypercorn_serving(graceful_timeout_s: float = 3) -> AsyncIterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = "http://{}:{}".format(*listener.getsockname())
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    config.graceful_timeout = graceful_timeout_s
    site, stop = Site(), asyncio.Event()
    server = asyncio.create_task(
        hypercorn.asyncio.serve(GuestBridge(site), config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
    )
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        yield Served(site, client, stop)
    stop.set()
    await server
    assert site.journal[-1] == "site closed"


@in_asyncio
async def test_hypercorn_serves() -> None:
    async with hypercorn_serving() as served:
        answers = await asyncio.gather(*(served.client.get("/hello") for _ in range(20)))
        assert [answer.text for answer in answers] == ["hello"] * 20


@in_asyncio
async def test_a_client_that_leaves_hypercorn_in_mid_stream() -> None:
    async with hypercorn_serving() as served:
        async with served.client.stream("GET", "/stream") as answer:
            assert b"more" in await anext(answer.aiter_raw())
        await served.site.stream_ended.wait()
        assert served.site.journal == ["client left", "stream ended"]
        assert (await served.client.get("/hello")).text == "hello"


@in_asyncio
async def test_hypercorn_stops_in_mid_stream() -> None:
    async with hypercorn_serving(graceful_timeout_s=0.01) as served:
        async with served.client.stream("GET", "/stream") as answer:
            assert b"more" in await anext(answer.aiter_raw())
            served.stop.set()
            await served.site.stream_ended.wait()
