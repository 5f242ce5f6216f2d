"""Every error reaches its client in the form that its API has, on every lane."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, RejectData, Request, TextMessage

from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, running_lane, settled
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

Body = dict[str, Any]

FAMILIES: dict[str, Callable[[Body], tuple[Any, Any]]] = {
    "/v1/chat/completions": lambda body: (body["error"]["code"], body["error"]["type"]),
    "/v1/responses": lambda body: (body["error"]["code"], body["error"]["type"]),
    "/completion": lambda body: (body["error"]["code"], body["error"]["type"]),
    "/v1/messages": lambda body: (body["error"]["code"], body["type"]),
    "/api/chat": lambda body: (body["code"], type(body["error"]).__name__),
    "/v1/rerank": lambda body: (body["error"]["code"], type(body["message"]).__name__),
    "/embed": lambda body: (body["code"], type(body["error"]).__name__),
}
"""How to find the code, and something that only this form has."""

MARKS = {
    "/v1/chat/completions": "llmux_error", "/v1/responses": "llmux_error",
    "/completion": "llmux_error", "/v1/messages": "error", "/api/chat": "str",
    "/v1/rerank": "str", "/embed": "str",
}  # fmt: skip


def read(path: str, body: bytes) -> Any:
    code, mark = FAMILIES[path](json.loads(body))
    assert mark == MARKS[path], body
    return code


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", FAMILIES)
async def test_refusals(lane: str, path: str, tmp_path: Path) -> None:
    hooks = FakeHooks(failing={("a", "wake"): 1})
    async with running_lane(lane, tmp_path, hooks=hooks) as site, site.client() as client:
        for prefix, name, status, code in (
            ("", "none", 404, "model_not_found"),
            ("/upstream/none", "none", 404, "model_not_found"),
            ("", "a", 500, "hook_failed"),
        ):
            answer = await client.post(prefix + path, json=chat(name))
            assert (answer.status_code, read(path, answer.content)) == (status, code)
            assert answer.headers["content-type"] == "application/json"
        refused = await client.post(path, content=b'{"model": "a", "model": "b"}')
        assert (refused.status_code, read(path, refused.content)) == (400, "bad_request")


@pytest.mark.parametrize("lane", LANES)
async def test_heads_that_cannot_be_read(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, api_keys=["k"], limits={"header_fields": 8}) as site:
        for path in FAMILIES:
            for bad in (b"X\r\n", b"A: b\r\n" * 9, b"A: " + b"b" * 70_000 + b"\r\n"):
                head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), bad)
                received = await site.exchange(head)
                assert received.startswith(b"HTTP/1.1 4"), received
                assert read(path, received.partition(b"\r\n\r\n")[2]) == "bad_request"
            framed = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Api-Key: k\r\nTransfer-Encoding: chunked\r\n\r\nzz"
            received = await site.exchange(framed % path.encode() + b"\r\n")
            assert read(path, received.partition(b"\r\n\r\n")[2]) == "bad_request"
        async with site.client() as client:
            for path in FAMILIES:
                answer = await client.post(path, json=chat("a"))
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert read(path, answer.content) == "invalid_api_key"
            own = await client.get("/v1/models/x", headers={"anthropic-version": "2023-06-01"})
            assert own.json()["error"]["type"] == "authentication_error"
            assert (await client.get("/v1/models")).json()["error"]["code"] == "invalid_api_key"


SSE, NDJSON, JSON = b"text/event-stream", b"application/x-ndjson", b"application/json"

STREAMS = {
    "openai": ("/v1/chat/completions", SSE, b"data: 1\n\n", b'data: {"error":{"message":'),
    "anthropic": ("/v1/messages", SSE, b"event: ping\r\ndata: {}\r\n\r\n", b"event: error\ndata: "),
    "responses": (
        "/v1/responses", SSE, b'data: {"sequence_number":3}\n\n',
        b'event: error\ndata: {"type":"error","sequence_number":4,',
    ),
    "ollama": ("/api/chat", NDJSON, b'{"done": false}\n', b'\n{"error":"'),
    "ollama as JSON": ("/api/chat", JSON, b'{"done": false}\n', b'\n{"error":"'),
    "lines": ("/v1/x", b"application/json-seq", b"\x1e{}\n", b'\n\x1e{"error":{'),
    "cohere": ("/v2/chat", SSE, b"data: 1\n\n", b"event: message-end\n"),
    "nothing yet": ("/v1/messages", SSE, b"", b"event: error\ndata: "),
}  # fmt: skip


def stream_of(kind: bytes, first: bytes, framing: str) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % kind
    if framing == "close":
        return head + b"\r\n" + first
    chunk = b"%x\r\n%b\r\n" % (len(first), first) if first else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk


async def ask(
    site: Site, path: str, end: Callable[[], Awaitable[None]], passed_on: bytes = b"\r\n\r\n"
) -> bytes:
    """The answer to a request that `end` ends, after `passed_on` has come."""
    body = json.dumps(chat("a", stream=True)).encode()
    async with await site.connect() as stream:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        await stream.send_all(head % (path.encode(), len(body)) + body)
        received = b""
        with trio.fail_after(20):
            while passed_on not in received:
                received += await stream.receive_some()
            await settled()
            await end()
            try:
                while more := await stream.receive_some():
                    received += more
            except trio.BrokenResourceError:
                pass
    return received


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_that_is_cut(lane: str, framing: str, name: str, tmp_path: Path) -> None:
    path, kind, first, wanted = STREAMS[name]
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(stream_of(kind, first, framing))

        async def cut() -> None:
            site.service.board.models["a"].in_flight.cut()

        received = await ask(site, path, cut)
    # Chunks of one message each: the line's end in front is that of the framing, or of a line.
    assert wanted.lstrip(b"\n") in received
    assert received.count(b"not_ready") >= 1
    assert not received.endswith(b"0\r\n\r\n"), "no false end"


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", ["openai", "responses", "anthropic", "ollama"])
async def test_a_stream_that_outlasts_the_grace(lane: str, name: str, tmp_path: Path) -> None:
    path, kind, first, wanted = STREAMS[name]
    async with running_lane(lane, tmp_path, shutdown_grace_secs=0.01) as site:
        site.backend.play = play(stream_of(kind, first, "chunked"))

        async def end() -> None:
            site.service.lifecycle.stop_admitting()
            await site.service.lifecycle.cut_at_last()

        received = await ask(site, path, end)
    assert wanted.lstrip(b"\n") in received
    assert b"shutting_down" in received
    assert not received.endswith(b"0\r\n\r\n"), "no false end"


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", STREAMS)
async def test_a_backend_that_breaks_between_two(lane: str, name: str, tmp_path: Path) -> None:
    path, kind, first, wanted = STREAMS[name]
    breaks = trio.Event()
    async with running_lane(lane, tmp_path) as site:

        async def answer(stream: trio.SocketStream, request: bytes) -> None:
            await stream.send_all(stream_of(kind, first, "chunked"))
            await breaks.wait()
            await stream.aclose()

        async def end() -> None:
            breaks.set()

        site.backend.play = answer
        received = await ask(site, path, end)
    assert wanted.lstrip(b"\n") in received
    assert b"backend_error" in received
    assert not received.endswith(b"0\r\n\r\n"), "no false end"


SILENT = {
    "in mid event": (SSE, b"data: 1\n", b""),
    "in mid line": (NDJSON, b'{"done"', b""),
    "compressed": (SSE, b"\x1f\x8b\n\n", b"Content-Encoding: gzip\r\n"),
    "of a length": (SSE, b"data: 1\n\n", b"Content-Length: 100\r\n"),
    "no stream": (b"audio/mpeg", b"\n\n", b""),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", SILENT)
async def test_where_nothing_can_be_said(lane: str, name: str, tmp_path: Path) -> None:
    kind, first, more = SILENT[name]
    async with running_lane(lane, tmp_path) as site:
        said = stream_of(kind, first, "close" if b"Length" in more else "chunked")
        site.backend.play = play(said.replace(b"\r\n", b"\r\n" + more, 1))

        async def cut() -> None:
            site.service.board.models["a"].in_flight.cut()

        received = await ask(site, "/v1/chat/completions", cut)
    assert b"not_ready" not in received


async def test_nothing_is_said_in_a_chunk_whose_rest_is_framed_wrongly(tmp_path: Path) -> None:
    """The rest is not passed on, so that it does not matter how it ends."""
    begun = b"20\r\ndata: 1\n\n"
    async with running_lane("fast", tmp_path) as site:
        goes_on = trio.Event()

        async def answer(stream: trio.SocketStream, request: bytes) -> None:
            await stream.send_all(stream_of(SSE, b"", "chunked") + begun)
            await goes_on.wait()
            await stream.send_all(bytes(0x20) + b"\n\n\r\n")

        async def end() -> None:
            goes_on.set()

        site.backend.play = answer
        received = await ask(site, "/v1/chat/completions", end)
    assert received.endswith(begun)


async def test_nothing_is_said_behind_the_size_of_a_chunk(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site:
        site.backend.play = play(stream_of(SSE, b"", "chunked") + b"1c\r\n")

        async def cut() -> None:
            site.service.board.models["a"].in_flight.cut()

        received = await ask(site, "/v1/chat/completions", cut)
    assert received.endswith(b"\r\n\r\n1c\r\n")


@pytest.mark.parametrize("ending", [b"\n\n\r\n", b"\r\n\r\n"])
async def test_nothing_is_said_amid_a_chunk_that_looks_like_its_end(
    ending: bytes, tmp_path: Path
) -> None:
    begun = b"20\r\ndata: 1" + ending
    async with running_lane("fast", tmp_path) as site:
        site.backend.play = play(stream_of(SSE, b"", "chunked") + begun)

        async def cut() -> None:
            site.service.board.models["a"].in_flight.cut()

        received = await ask(site, "/v1/chat/completions", cut, begun)
    assert received.endswith(b"\r\n\r\n" + begun)


@pytest.mark.parametrize("lane", LANES)
async def test_events_that_come_in_pieces(lane: str, tmp_path: Path) -> None:
    all_sent = trio.Event()
    async with running_lane(lane, tmp_path) as site:

        async def answer(stream: trio.SocketStream, request: bytes) -> None:
            await stream.send_all(stream_of(SSE, b"data: 1\n", "chunked"))
            await trio.sleep(0.02)
            await stream.send_all(b"1\r\n\n")
            await trio.sleep(0.02)
            await stream.send_all(b"\r\n")
            all_sent.set()
            await trio.sleep_forever()

        async def cut() -> None:
            await all_sent.wait()
            await settled()
            site.service.board.models["a"].in_flight.cut()

        site.backend.play = answer
        assert b"not_ready" in await ask(site, "/v1/chat/completions", cut)


@pytest.mark.parametrize("lane", LANES)
async def test_a_stream_behind_comments_that_is_cut(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 0.1})
    policy = {"waiting_keepalive_secs": 0.03}
    async with running_lane(lane, tmp_path, hooks=hooks, policy=policy) as site:
        site.backend.play = play(stream_of(SSE, b"data: 1\n\n", "chunked"))

        async def cut() -> None:
            site.service.board.models["a"].in_flight.cut()

        received = await ask(site, "/v1/messages", cut, passed_on=b"data: 1")
        assert b": waiting" in received
        assert received.count(b"event: error\ndata: ") == 1
        assert not received.endswith(b"0\r\n\r\n"), "no false end"


# ---- WebSockets ----


class Socket:
    """A client of a WebSocket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = WSConnection(ConnectionType.CLIENT)
        self.events: list[Any] = []

    async def next(self) -> Any:
        with trio.fail_after(20):
            while not self.events:
                data = await self.stream.receive_some()
                self.connection.receive_data(bytes(data) or None)
                self.events += self.connection.events()
        return self.events.pop(0)


async def websocket(site: Site, target: str) -> Socket:
    socket = Socket(await site.connect())
    await socket.stream.send_all(socket.connection.send(Request(host="x", target=target)))
    return socket


async def talk(stream: trio.SocketStream, request: bytes) -> None:
    """Accept, say something, and wait."""
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(request)
    list(server.events())
    await stream.send_all(server.send(AcceptConnection()))
    await stream.send_all(server.send(TextMessage(data="hello")))
    await trio.sleep_forever()


async def talk_and_break(stream: trio.SocketStream, request: bytes) -> None:
    with trio.move_on_after(0.1):
        await talk(stream, request)
    await stream.aclose()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", ["/v1/realtime", "/ws"])
async def test_a_websocket_that_is_cut(lane: str, path: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = talk
        socket = await websocket(site, f"{path}?model=a")
        async with socket.stream:
            assert isinstance(await socket.next(), AcceptConnection)
            assert (await socket.next()).data == "hello"
            site.service.board.models["a"].in_flight.cut()
            if path == "/v1/realtime":
                said = json.loads((await socket.next()).data)
                assert (said["type"], said["error"]["code"]) == ("error", "not_ready")
            closed = await socket.next()
            assert isinstance(closed, CloseConnection)
            assert (closed.code, closed.reason) == (1013, "not_ready: Model not ready: a")


@pytest.mark.parametrize("lane", LANES)
async def test_a_websocket_whose_backend_breaks(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = talk_and_break
        socket = await websocket(site, "/v1/realtime?model=a")
        async with socket.stream:
            assert isinstance(await socket.next(), AcceptConnection)
            assert (await socket.next()).data == "hello"
            closed = await socket.next()
            assert (closed.code, closed.reason) == (
                1011, "backend_error: Backend error: closed the connection",
            )  # fmt: skip


@pytest.mark.parametrize("lane", LANES)
async def test_an_answer_to_a_handshake_gets_no_frames(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        refusal = b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        site.backend.play = play(refusal, close=True)
        handshake = (
            b"GET /v1/realtime?model=a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        received = await site.exchange(handshake)
        assert b"closed the connection" not in received or received.startswith(b"HTTP/1.1 502")
        assert not received.endswith(b"0\r\n\r\n") or b"502" in received


@pytest.mark.parametrize("lane", LANES)
async def test_a_websocket_that_is_refused(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        socket = await websocket(site, "/v1/realtime?model=none")
        async with socket.stream:
            assert (await socket.next()).status_code == 404
            data = await socket.next()
            assert isinstance(data, RejectData)
            assert json.loads(data.data)["error"]["code"] == "model_not_found"


# ---- All forms, with real processes ----


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_all_forms(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        policy = {"request_timeout_secs": 0.3, "drain_timeout_secs": 0.2, "min_active_secs": 0}
        config = rack.write_config(policy=policy, models={"b": {"wake": "sleep 1"}})
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            for path in FAMILIES:
                answer = await client.post(path, json=chat("none"))
                assert (answer.status_code, read(path, answer.content)) == (404, "model_not_found")
            for path in ("/v1/messages", "/api/chat"):
                answer = await client.post(path, json=chat("b"))
                assert (answer.status_code, read(path, answer.content)) == (504, "switch_timeout")


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_drain_that_cuts_in_all_forms(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        config = rack.write_config(policy={"drain_timeout_secs": 0.3, "name": "fifo"})
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            received = b""

            async def stream() -> None:
                nonlocal received
                body = chat("a", stream=True, chunks=1000, interval=0.2)
                try:
                    async with client.stream("POST", "/v1/messages", json=body) as answer:
                        async for data in answer.aiter_raw():
                            received += data
                except Exception:
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream)
                with trio.fail_after(10):
                    while not received:
                        await trio.sleep(0.01)
                assert (await client.post("/v1/messages", json=chat("b"))).status_code == 200
            last = received.rpartition(b"event: error\ndata: ")[2]
            assert read("/v1/messages", last) == "not_ready"
