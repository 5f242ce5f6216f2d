"""WebSockets that name their model in the first message, in every lane."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import generate_accept_token

from llmux.base.wildcards import Names
from llmux.downstream import asgi_websocket, early_messages
from llmux.openai.jsonbody import LARGE_BYTES
from llmux.proxy.opening import FirstMessage
from tests.fakes import FakeHooks
from tests.lanes import LANES, ScriptedBackend, Site, play, running_lane
from tests.proxy.test_own_site import PAGE
from tests.servers import ALL_FORMS, running_llmux

UPDATE = '{"type": "session.update", "session": {"model": "a"}}'
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


class Speaker:
    """A WebSocket server that says what it hears."""

    def __init__(self, *greetings: str, protocol: bytes = b"") -> None:
        self.heard: list[str | bytes] = []
        self.greetings = greetings
        self.protocol = protocol

    async def __call__(self, stream: trio.SocketStream, request: bytes) -> None:
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
        accept = b"Sec-WebSocket-Accept: %b\r\n" % generate_accept_token(key)
        if self.protocol:
            accept += b"Sec-WebSocket-Protocol: %b\r\n" % self.protocol
        frames = Connection(ConnectionType.SERVER)
        early = b"".join(frames.send(TextMessage(data=text)) for text in self.greetings)
        await stream.send_all(SWITCHING + accept + b"\r\n" + early)
        whole = b""
        while data := await stream.receive_some():
            frames.receive_data(bytes(data))
            for event in frames.events():
                if isinstance(event, TextMessage | BytesMessage):
                    whole += event.data.encode() if isinstance(event.data, str) else event.data
                    if event.message_finished:
                        is_text = isinstance(event, TextMessage)
                        self.heard.append(whole.decode() if is_text else whole)
                        echo = TextMessage(data=whole.decode()) if is_text else BytesMessage(whole)
                        await stream.send_all(frames.send(echo))
                        whole = b""
                elif isinstance(event, CloseConnection):
                    await stream.send_all(frames.send(event.response()))
                    return


class Client:
    """A WebSocket client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.frames = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def open(self, target: str, protocols: list[str], headers: Any = ()) -> Event:
        extra = [(name.encode(), value.encode()) for name, value in headers]
        request = Request(
            host="localhost", target=target, subprotocols=protocols, extra_headers=extra
        )
        await self.stream.send_all(self.frames.send(request))
        return await self.event()

    async def say(self, event: Event) -> None:
        await self.stream.send_all(self.frames.send(event))

    async def event(self) -> Event:
        with trio.fail_after(10):
            while not self._events:
                data = bytes(await self.stream.receive_some())
                self.frames.receive_data(data or None)
                self._events.extend(self.frames.events())
        return self._events.pop(0)

    async def text(self) -> str:
        event = await self.event()
        assert isinstance(event, TextMessage), event
        return event.data

    async def error(self) -> tuple[str, str, int]:
        """An error's code and message, and the code of the close behind it."""
        told = json.loads(await self.text())
        assert (told["type"], told["error"]["type"]) == ("error", "llmux_error")
        closed = await self.event()
        assert isinstance(closed, CloseConnection)
        return told["error"]["code"], told["error"]["message"], closed.code


@asynccontextmanager
async def opened(
    site: Site | int, target: str = "/v1/realtime", protocols: Any = (), headers: Any = ()
) -> AsyncIterator[Client]:
    """A client whose handshake has been accepted."""
    port = site if isinstance(site, int) else site.port
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = Client(stream)
        accepted = await client.open(target, list(protocols), headers)
        assert isinstance(accepted, AcceptConnection), accepted
        client.subprotocol = accepted.subprotocol  # type: ignore[attr-defined]
        yield client


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, models=["a", "b"]) as site:
        site.backend.play = site.speaker = Speaker()  # type: ignore[attr-defined]
        yield site


def speaker(site: Site) -> Speaker:
    play = site.backend.play
    assert isinstance(play, Speaker)
    return play


@pytest.mark.parametrize("target", ["/v1/realtime", "/v1/realtime?intent=x", "/ws/live"])
@pytest.mark.parametrize("message", [UPDATE, '{"model":"a"}', ' {"setup": {"model": "models/a"}}'])
async def test_the_first_message_names_the_model(site: Site, target: str, message: str) -> None:
    async with opened(site, target) as client:
        assert site.in_flight == 0
        await client.say(TextMessage(data=message))
        assert await client.text() == message
        assert site.in_flight == 1
        await client.say(BytesMessage(data=b"\0\1"))
        answer = await client.event()
        assert isinstance(answer, BytesMessage)
        await client.say(CloseConnection(code=1000))
        assert isinstance(await client.event(), CloseConnection)
    await site.until_idle()
    assert speaker(site).heard == [message, b"\0\1"]
    [asked] = site.backend.received
    assert asked.startswith(b"GET %b HTTP/1.1\r\n" % target.encode())
    assert b"sec-websocket-extensions" not in asked.lower()


async def test_a_binary_first_message_in_pieces_between_pings(site: Site) -> None:
    data = UPDATE.encode()
    async with opened(site) as client:
        await client.say(Ping(payload=b"1"))
        await client.say(BytesMessage(data=data[:9], message_finished=False))
        await client.say(Ping(payload=b"2"))
        await client.say(BytesMessage(data=data[9:]))
        for payload in (b"1", b"2"):
            pong = await client.event()
            assert isinstance(pong, Pong)
            assert pong.payload == payload
        answer = await client.event()
        assert isinstance(answer, BytesMessage)
        assert bytes(answer.data) == data
    await site.until_idle()


@pytest.mark.parametrize("lane", LANES)
async def test_pings_are_answered_and_messages_kept_until_the_model_is_awake(
    lane: str, tmp_path: Path
) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 0.3})
    async with running_lane(lane, tmp_path, hooks=hooks) as site:
        site.backend.play = Speaker("hello")
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            while not site.service.board.queue_depths["a"]:
                await trio.sleep(0.001)
            for number in range(50):
                await client.say(TextMessage(data=str(number)))
            await client.say(Ping(payload=b"?"))
            assert isinstance(await client.event(), Pong)
            assert site.backend.received == []
            assert await client.text() == "hello"
            heard = [await client.text() for _ in range(51)]
            assert heard == [UPDATE, *map(str, range(50))]


@pytest.mark.parametrize("how", ["closes", "is gone"])
@pytest.mark.parametrize("lane", LANES)
async def test_who_leaves_before_the_model_is_awake(lane: str, how: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 0.3})
    async with running_lane(lane, tmp_path, hooks=hooks) as site:
        site.backend.play = Speaker()
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            while not site.service.board.queue_depths["a"]:
                await trio.sleep(0.001)
            if how == "closes":
                await client.say(CloseConnection(code=1000))
                assert isinstance(await client.event(), CloseConnection)
        await site.until_idle()
        assert site.backend.received == []


async def test_a_query_that_names_the_model_changes_nothing(site: Site) -> None:
    site.backend.play = Speaker("first", protocol=b"x")
    async with opened(site, "/v1/realtime?model=a", ["x", "y"]) as client:
        assert client.subprotocol == "x"  # type: ignore[attr-defined]
        assert await client.text() == "first"
    assert b"sec-websocket-protocol: x, y\r\n" in site.backend.received[0].lower()
    async with await site.connect() as stream:
        assert isinstance(await Client(stream).open("/v1/realtime?model=z", []), RejectConnection)


@pytest.mark.parametrize(
    ("message", "code", "text", "closed"),
    [
        ('{"type": "x"}', "no_model", "No model", 1008),
        ("hello", "no_model", "No model", 1008),
        ('{"model": "none"}', "model_not_found", "Model not found: none", 1008),
        ('{"model": ', "bad_request", "not JSON", 1008),
        ('{"model": "a", "session": {"model": "b"}}', "bad_request", "two models", 1008),
        ('{"model": "a", "model": "b"}', "bad_request", "two models", 1008),
        ('{"session":{"model":"a"},"session":{"model":"b"}}', "bad_request", "two models", 1008),
        ('{"session":{"model":"a"},"s\\u0065ssion":{}}', "bad_request", "two models", 1008),
        (f'{{"x": "{"x" * (1 << 20)}"}}', "body_too_large", "1048576 bytes", 1009),
    ],
)
async def test_errors_are_told_in_a_message(
    site: Site, message: str, code: str, text: str, closed: int
) -> None:
    async with opened(site) as client:
        await client.say(TextMessage(data=message))
        told = await client.error()
        assert (told[0], told[2]) == (code, closed)
        assert text in told[1]
    assert site.backend.received == []


async def test_a_backend_that_refuses_the_handshake(site: Site) -> None:
    site.backend.play = play(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    async with opened(site) as client:
        await client.say(TextMessage(data=UPDATE))
        code, text, closed = await client.error()
    assert (code, closed) == ("backend_error", 1011)
    assert "answered 403: no" in text
    await site.until_idle()


@pytest.mark.parametrize("lane", LANES)
async def test_a_wake_that_fails(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, hooks=FakeHooks(failing={("a", "wake"): -1})) as site:
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            assert (await client.error())[::2] == ("hook_failed", 1011)


@pytest.mark.parametrize("lane", LANES)
async def test_a_wait_that_is_too_long_may_be_tried_again(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 5})
    policy = {"request_timeout_secs": 0.2}
    async with running_lane(lane, tmp_path, hooks=hooks, policy=policy) as site:
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            assert (await client.error())[::2] == ("switch_timeout", 1013)
        site.service.board.stop()


@pytest.mark.parametrize("lane", LANES)
async def test_who_says_nothing_is_not_waited_for_long(lane: str, tmp_path: Path) -> None:
    limits = {"client_stall_secs": 0.2}
    async with running_lane(lane, tmp_path, limits=limits) as site:
        for beginning in (b"", b"\x01\x81\0\0\0\0{"):
            async with opened(site, "/ws") as client:
                await client.stream.send_all(beginning)
                assert (await client.error())[::2] == ("bad_request", 1008)


@pytest.mark.parametrize("lane", LANES)
async def test_a_stop_waits_for_no_first_message(lane: str, tmp_path: Path) -> None:
    async with (
        running_lane(lane, tmp_path) as site,
        opened(site) as client,
        opened(site) as other,
    ):
        await other.say(TextMessage(data="begun", message_finished=False))
        site.service.lifecycle.stop_admitting()
        assert (await client.error())[::2] == ("shutting_down", 1013)
        assert (await other.error())[::2] == ("shutting_down", 1013)
        assert site.backend.received == []


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_held_is_counted(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 5})
    limits = {"body_bytes": 100_000}
    async with running_lane(lane, tmp_path, hooks=hooks, limits=limits) as site:
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            for _ in range(4):
                await client.say(TextMessage(data="x" * 30_000))
            assert (await client.error())[::2] == ("body_too_large", 1009)
        with trio.fail_after(20):
            while site.service.proxy.bodies.held_bytes:
                await trio.sleep(0.001)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("target", ["/v1/realtime", "/v1/realtime/?intent=transcription"])
async def test_who_waits_for_the_server_to_speak_first(
    lane: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's clients name the model once they have heard session.created."""
    for module in (early_messages, asgi_websocket):
        monkeypatch.setattr(module, "SILENCE_S", 0.05)
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = Speaker()
        async with opened(site, target) as client:
            assert json.loads(await client.text())["type"] == "session.created"
            message = '{"type": "session.update", "model": "a"}'
            await client.say(TextMessage(data=message))
            assert await client.text() == message


@pytest.mark.parametrize("lane", LANES)
async def test_the_name_that_the_backend_knows(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.service.proxy.upstreams["a"].upstream_model = "org/A"
        site.backend.play = Speaker()
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            await client.say(TextMessage(data="more"))
            assert json.loads(await client.text())["session"] == {"model": "org/A"}
            assert await client.text() == "more"


@pytest.mark.parametrize("lane", LANES)
async def test_a_pattern_that_has_what_google_puts_before_names(lane: str, tmp_path: Path) -> None:
    message = '{"setup": {"model": "models/gemini-live"}}'
    aliases = {"aliases": ["models/*"]}
    async with running_lane(lane, tmp_path, model_settings=aliases) as site:
        site.backend.play = Speaker()
        async with opened(site) as client:
            await client.say(TextMessage(data=message))
            assert await client.text() == message


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("upstream_model", ["org/A", "name"])
async def test_a_first_message_without_a_name_goes_on_as_it_came(
    lane: str, upstream_model: str, tmp_path: Path
) -> None:
    """It goes to the default model, or where the handshake's path says; there is none to replace."""
    settings = {"upstream_model": upstream_model}
    messages: list[str | bytes] = [
        b"\0\1 audio",
        b"",
        "",
        "hello",
        "[1.50]",
        '{"x": 1e999,"y":1.50}',
    ]
    async with running_lane(lane, tmp_path, model_settings=settings, default_model="a") as site:
        site.backend.play = heard = Speaker()
        for message in messages:
            async with opened(site) as client:
                if isinstance(message, str):
                    await client.say(TextMessage(data=message))
                else:
                    await client.say(BytesMessage(data=message))
                answer = await client.event()
                assert isinstance(answer, TextMessage | BytesMessage)
                assert answer.data == message
        assert heard.heard == messages


@pytest.mark.parametrize("lane", LANES)
async def test_a_first_message_may_hold_numbers_of_any_size(lane: str, tmp_path: Path) -> None:
    message = f'{{"model": "a", "x": -{"1" * 5000}}}'
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = Speaker()
        async with opened(site) as client:
            await client.say(TextMessage(data=message))
            assert await client.text() == message


@pytest.mark.parametrize("size", [1000, LARGE_BYTES])
async def test_a_large_first_message_is_read_beside_the_event_loop(
    site: Site, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of small objects takes a quarter of a second."""
    threads = []

    class Noting(FirstMessage):
        def __init__(self, data: bytes, names: Names) -> None:
            threads.append(threading.get_ident())
            super().__init__(data, names)

    monkeypatch.setattr("llmux.proxy.reading.FirstMessage", Noting)
    message = f'{{"model": "a", "x": "{"y" * size}"}}'
    async with opened(site) as client:
        await client.say(TextMessage(data=message))
        event = await client.event()
        assert isinstance(event, TextMessage), event
    async with opened(site) as client:
        await client.say(TextMessage(data=message.replace("model", "mode|")))
        assert (await client.error())[0] == "no_model"
    is_beside = [each != threading.get_ident() for each in threads]
    assert is_beside == [size == LARGE_BYTES] * 2


@pytest.mark.parametrize("lane", LANES)
async def test_the_fallback(lane: str, tmp_path: Path) -> None:
    """It gets what was read and names no model that is here."""
    other = ScriptedBackend()
    async with trio.open_nursery() as nursery:
        await nursery.start(other.serve)
        other.play = Speaker()
        fallback = f"http://127.0.0.1:{other.port}"
        async with running_lane(lane, tmp_path, fallback=fallback, fallback_models=["gpt"]) as site:
            site.backend.play = Speaker()
            for message in ('{"model": "gpt"}', "hello"):
                async with opened(site) as client:
                    await client.say(TextMessage(data=message))
                    assert await client.text() == message
            for message in ('{"model": "a",}', '{"config": {"model": "a"}}'):
                async with opened(site) as client:
                    await client.say(TextMessage(data=message))
                    assert (await client.error())[0] == "bad_request"
            async with opened(site) as client:
                await client.say(TextMessage(data=UPDATE))
                assert await client.text() == UPDATE
        assert len(other.received) == 2
        nursery.cancel_scope.cancel()


async def test_what_is_no_handshake_is_not_accepted(site: Site) -> None:
    head = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    async with await site.connect() as stream:
        await stream.send_all(head + b"Sec-WebSocket-Version: 13\r\n\r\n")
        with trio.fail_after(20):
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("target", ["/health", "/v1/models", "/metrics"])
async def test_own_paths_are_no_websockets(site: Site, target: str) -> None:
    async with await site.connect() as stream:
        assert isinstance(await Client(stream).open(target, []), RejectConnection)


# ---- Keys ----

SECRET = "sk-5ecret"
IN_PROTOCOL = f"openai-insecure-api-key.{SECRET}"
OFFERED = ["realtime", IN_PROTOCOL, "openai-beta.realtime-v1"]


@pytest.mark.parametrize("target", ["/v1/realtime", "/v1/realtime?model=a"])
@pytest.mark.parametrize("forwards", [False, True])
@pytest.mark.parametrize("lane", LANES)
async def test_a_browsers_key(lane: str, forwards: bool, target: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_keys": [SECRET], "forward_api_keys": forwards}
    async with running_lane(lane, tmp_path, **settings) as site:
        site.backend.play = Speaker()  # it knows no subprotocols, as most model servers
        async with opened(site, target, OFFERED) as client:
            assert client.subprotocol == "realtime"  # type: ignore[attr-defined]
            await client.say(TextMessage(data=UPDATE))
            assert await client.text() == UPDATE
        [asked] = site.backend.received
        assert (SECRET.encode() in asked) == forwards
        expected = OFFERED if forwards else [OFFERED[0], OFFERED[2]]
        line = f"sec-websocket-protocol: {', '.join(expected)}\r\n"
        assert line.encode() in asked.lower().replace(b"protocol:  ", b"protocol: ")


@pytest.mark.parametrize("target", ["/v1/realtime", "/v1/realtime?model=a"])
async def test_without_keys_of_llmux_s_own_it_is_the_backends(site: Site, target: str) -> None:
    async with opened(site, target, OFFERED) as client:
        assert client.subprotocol == "realtime"  # type: ignore[attr-defined]
        await client.say(TextMessage(data=UPDATE))
        await client.text()
    assert IN_PROTOCOL.encode() in site.backend.received[0]


@pytest.mark.parametrize(
    ("protocols", "headers"),
    [
        ([], []),
        (["realtime"], []),
        (["realtime", "openai-insecure-api-key.wrong"], []),
        (["realtime", SECRET], []),
        ([], [("api-key", "wrong")]),
    ],
)
@pytest.mark.parametrize("lane", LANES)
async def test_no_key_no_websocket(
    lane: str, protocols: list[str], headers: Any, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, api_keys=[SECRET]) as site:
        async with await site.connect() as stream:
            client = Client(stream)
            refused = await client.open("/v1/realtime", protocols, headers)
            assert isinstance(refused, RejectConnection)
            assert refused.status_code == 401
            body = await client.event()
            assert isinstance(body, RejectData)
            assert SECRET.encode() not in bytes(body.data)


@pytest.mark.parametrize("name", ["api-key", "x-api-key", "x-goog-api-key", "Authorization"])
@pytest.mark.parametrize("lane", LANES)
async def test_keys_of_other_apis(lane: str, name: str, tmp_path: Path) -> None:
    value = f"Bearer {SECRET}" if name == "Authorization" else SECRET
    async with running_lane(lane, tmp_path, api_keys=[SECRET]) as site:
        async with site.client() as client:
            body = {"model": "a"}
            assert (await client.post("/x", json=body, headers={name: "no"})).status_code == 401
            assert (await client.post("/x", json=body, headers={name: value})).status_code == 200
            assert (await client.get("/v1/models", headers={name: value})).status_code == 200
        site.backend.play = Speaker()
        async with opened(site, headers=[(name, value)]) as socket:
            await socket.say(TextMessage(data=UPDATE))
            await socket.text()
        assert all(SECRET.encode() not in each for each in site.backend.received)


@pytest.mark.parametrize("lane", LANES)
async def test_a_foreign_page_opens_no_websocket(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE]) as site:
        site.backend.play = Speaker()
        async with await site.connect() as stream:
            page = [("Origin", "https://evil.example")]
            refused = await Client(stream).open("/v1/realtime", [], page)
            assert isinstance(refused, RejectConnection)
            assert refused.status_code == 403
        async with opened(site, headers=[("Origin", PAGE)]) as client:
            await client.say(TextMessage(data=UPDATE))
            await client.text()
        assert b"\r\norigin:" not in site.backend.received[0].lower()


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_under_each_server(form: str, tmp_path: Path) -> None:
    backend = ScriptedBackend()
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        backend.play = Speaker("hello")
        hooks = {"wake": "sleep 0.5", "sleep": "true", "alive": "true"}
        config = tmp_path / "llmux.json"
        settings = {"port": 0, "state_dir": "state", "api_keys": [SECRET], "access_log": True}
        models = {"a": {"port": backend.port, **hooks}}
        config.write_text(json.dumps({**settings, "models": models}))
        async with running_llmux(config, form) as llmux:
            port = int(llmux.url.rpartition(":")[2])
            async with opened(port, "/v1/realtime", OFFERED) as client:
                await client.say(TextMessage(data=UPDATE))
                await client.say(TextMessage(data="two"))
                assert [await client.text() for _ in range(3)] == ["hello", UPDATE, "two"]
            async with opened(port, "/v1/realtime", OFFERED) as client:
                await client.say(TextMessage(data='{"model": "none"}'))
                assert (await client.error())[0] == "model_not_found"
        assert not any(SECRET in line for line in llmux.lines)
        nursery.cancel_scope.cancel()
