"""Backends on Unix sockets, on both lanes, and what the config says of them."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmux.config import ModelConfig, config_schema, parse_config
from llmux.errors import BackendRefused, ConfigError
from llmux.hooks.environment import backend_port
from llmux.upstream import Backend
from tests.fakes import FakeHooks
from tests.lanes import LANES, OK, Site, play, running_lane

HOOKS = {"wake": "up", "sleep": "down", "alive": "ping"}
BODY = b'{"model": "a"}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: llmux\r\nContent-Length: %d\r\n" % len(BODY)
CLOSING = POST + b"Connection: close\r\n\r\n" + BODY


def base_url(url: str) -> str:
    return parse_config({"models": {"m": {"url": url, **HOOKS}}}).models["m"].base_url


@pytest.mark.parametrize(
    "url", ["unix:/run/x.sock", "unix:///run/x.sock", "UNIX:/run/x.sock", "unix:////run/x.sock"]
)
def test_each_spelling_is_one_place(url: str) -> None:
    assert base_url(url) == "unix:/run/x.sock"


def test_a_path_is_taken_as_it_is_written() -> None:
    assert base_url("unix:/run/a b/%2F?ü#.sock") == "unix:/run/a b/%2F?ü#.sock"


LONGEST = "/" + 106 * "s"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("unix:", "needs the path of a socket, as in unix:/run/x.sock"),
        ("unix:///", "needs the path of a socket, as in unix:/run/x.sock"),
        ("unix:x.sock", "the socket's path must be absolute, did you mean 'unix:/x.sock'?"),
        (
            "unix://run/x.sock",
            "the socket's path must be absolute, did you mean 'unix:/run/x.sock'?",
        ),
        ("unix:@x", "the socket's path must be absolute, did you mean 'unix:/@x'?"),
        ("unix:/run/x.sock:/v1", "a path on the server cannot follow the socket's"),
        ("unix:/run/x/", "the socket's path must not end with a slash"),
        ("unix:/run/x\n", "the socket's path must hold printable characters only"),
        (f"unix:{LONGEST}s", "the socket's path has 108 bytes; at most 107 are possible"),
        ("unix:/" + 54 * "ü", "the socket's path has 109 bytes; at most 107 are possible"),
        ("/run/x.sock", "a Unix socket is written as 'unix:/run/x.sock'"),
        ("http://unix:/run/x.sock:/v1", "a Unix socket is written as 'unix:/run/x.sock'"),
        ("http+unix://%2Frun%2fx.sock/v1", "a Unix socket is written as 'unix:/run/x.sock'"),
        ("http+unix:///run", "a Unix socket is written as 'unix:/run'"),
        ("run/x.sock", "must start with http:// or https://, or be unix:/path/of.sock"),
    ],
)
@pytest.mark.parametrize("key", ["url", "fallback"])
def test_mistakes_are_named(url: str, message: str, key: str) -> None:
    model = {"port": 1, **HOOKS} if key == "fallback" else {"url": url, **HOOKS}
    data: dict[str, Any] = {"models": {"m": model}}
    if key == "fallback":
        data["fallback"] = url
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    path = "fallback" if key == "fallback" else "models.m.url"
    assert caught.value.mistakes == [f"{path}: {message}"]


def test_the_longest_path_is_one_that_the_system_takes(tmp_path: Path) -> None:
    assert base_url(f"unix:{LONGEST}") == f"unix:{LONGEST}"
    with socket.socket(socket.AF_UNIX) as one:
        with pytest.raises(FileNotFoundError):
            one.connect(LONGEST)
        with pytest.raises(OSError, match="too long"):
            one.connect(LONGEST + "s")


def test_the_schema_knows_them() -> None:
    shapes = config_schema()["$defs"]["ModelConfig"]["properties"]["url"]["anyOf"]
    (pattern,) = [shape["pattern"] for shape in shapes if "pattern" in shape]
    for good in ("unix:/run/x.sock", "unix:///run/x.sock", "unix:/x", "http://a", "https://a"):
        assert re.search(pattern, good), good
    for bad in ("unix:x", "unix://run/x.sock", "unix:/", "unix:///", "unix:/run/", "/run/x.sock"):
        assert not re.search(pattern, bad), bad


def test_hooks_get_the_socket_in_place_of_a_port() -> None:
    assert backend_port(ModelConfig(url="unix:/run/x.sock", **HOOKS)) == ""  # type: ignore[arg-type]


# ---- On the wire ----


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A socket's path, short enough wherever the tests run."""
    return tmp_path / "x.sock"


async def ask(site: Site) -> bytes:
    return await site.exchange(CLOSING)


@pytest.mark.parametrize("lane", LANES)
async def test_requests_and_answers(tmp_path: Path, path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path, socket_path=path) as site:
        for _ in range(3):
            assert (await ask(site)).endswith(b"\r\n\r\nok")
        assert len(site.backend.received) == 3
        assert site.backend.open == 1  # one connection, used again
        head = site.backend.received[0].lower()
        assert b"\r\nhost: localhost\r\n" in head
        assert b"\r\nx-forwarded-host: llmux\r\n" in head
        assert head.startswith(b"post /v1/chat/completions http/1.1\r\n")
        async with site.client() as client:
            status = (await client.get("/control/status")).json()
        assert status["models"]["a"]["backend"] == f"unix:{path}"
        assert site.service.board.model_port("a") is None


@pytest.mark.parametrize("lane", LANES)
async def test_streams(tmp_path: Path, path: Path, lane: str) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with running_lane(lane, tmp_path, socket_path=path) as site:
        site.backend.play = play(
            head, b"9\r\ndata: 1\n\n\r\n", b"9\r\ndata: 2\n\n\r\n", b"0\r\n\r\n"
        )
        answer = await ask(site)
        assert answer.count(b"data: ") == 2


@pytest.mark.parametrize("lane", LANES)
async def test_the_fallback_may_be_one(tmp_path: Path, path: Path, lane: str) -> None:
    fallback = f"unix://{path}"
    async with running_lane(
        lane, tmp_path, socket_path=path, fallback=fallback, fallback_models=["b"]
    ) as site:
        unknown = b'{"model": "b"}'
        head = POST + b"Connection: close\r\n\r\n"
        assert (await site.exchange(head + unknown)).endswith(b"ok")
        assert site.backend.received[0].endswith(unknown)


def _missing(_path: Path) -> None:
    pass


def _dead(path: Path) -> None:
    """Its server has ended and left its socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _plain(path: Path) -> None:
    path.write_text("no socket")


def _datagrams(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        other.detach()


REASONS = [
    (_missing, "No such file or directory"),
    (_dead, "Connection refused"),
    (_plain, "Connection refused"),
    (_datagrams, "Protocol wrong type for socket"),
]


@pytest.mark.parametrize(("prepare", "reason"), REASONS)
async def test_a_socket_that_cannot_be_connected_to_is_a_refusal(
    path: Path, prepare: Any, reason: str
) -> None:
    prepare(path)
    with pytest.raises(BackendRefused) as caught:
        async with Backend(f"unix:{path}").exchange(b"GET", b"/", [], b""):
            pass
    assert caught.value.message == f"Backend error: no connection to unix:{path}: {reason}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
async def test_no_permission(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0)  # noqa: ASYNC240
        with pytest.raises(BackendRefused, match=f"unix:{path}: Permission denied"):
            async with Backend(f"unix:{path}").exchange(b"GET", b"/", [], b""):
                pass


async def test_permission_denied_is_a_refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def denied(_path: str) -> trio.SocketStream:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("llmux.http.wire.connect_unix", denied)
    with pytest.raises(BackendRefused, match=f"unix:{path}: Permission denied"):
        async with Backend(f"unix:{path}").exchange(b"GET", b"/", [], b""):
            pass


@pytest.mark.parametrize("lane", LANES)
async def test_clients_hear_the_reason(tmp_path: Path, path: Path, lane: str) -> None:
    hooks = FakeHooks(timeouts={("a", "wake"): 0.1})  # so long it may refuse after its wake
    async with running_lane(lane, tmp_path, socket_path=path, hooks=hooks) as site:
        await trio.Path(path).unlink()
        answer = await ask(site)
        assert answer.startswith(b"HTTP/1.1 502 ")
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "backend_error"
        assert f"no connection to unix:{path}: No such file or directory" in error["message"]


async def test_a_full_backlog_is_waited_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        listener.setblocking(False)
        waiting: list[socket.socket] = []
        while True:  # as many as the kernel takes
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            waiting.append(one)
            if one.connect_ex(str(path)):
                break
        backend = Backend(f"unix:{path}")

        async def use() -> None:
            async with backend.exchange(b"GET", b"/", [], b"") as answer:
                assert await answer.read() == b"ok"

        async def accept() -> None:
            while True:
                await trio.lowlevel.wait_readable(listener)
                peer, _ = listener.accept()
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(peer))
                async with stream:
                    if await stream.receive_some():
                        await stream.send_all(OK)
                        return

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)
                await wait_all_tasks_blocked(0.01)
                for one in waiting:
                    one.close()
                nursery.start_soon(accept)
        backend.close()


async def test_a_backlog_that_stays_full_is_a_refusal(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        streams = [await trio.open_unix_socket(path)]
        with pytest.raises(BackendRefused, match=f"no connection to unix:{path} within 0.05 s"):
            async with Backend(f"unix:{path}", connect_timeout_s=0.05).exchange(
                b"GET", b"/", [], b""
            ):
                pass
        for stream in streams:
            await stream.aclose()


# ---- Health ----


@pytest.mark.parametrize("lane", LANES)
async def test_a_stream_that_flows_is_heard(tmp_path: Path, path: Path, lane: str) -> None:
    """The time of the last byte: the kernel keeps none for such sockets."""
    flowing, ended = trio.Event(), trio.Event()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def stream_on(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(head)
        await flowing.wait()
        await stream.send_all(b"1\r\nx\r\n")
        await ended.wait()
        await stream.send_all(b"0\r\n\r\n")

    async with running_lane(lane, tmp_path, socket_path=path) as site:
        proxy = site.service.proxy
        site.backend.play = stream_on
        client = await site.connect()
        async with client:
            await client.send_all(CLOSING)
            assert await client.receive_some()
            before = trio.current_time()
            assert not proxy.upstreams.heard_since("a", before)
            flowing.set()
            with trio.fail_after(20):
                while not proxy.upstreams.heard_since("a", before):
                    await trio.sleep(0.001)
            after = trio.current_time()
            assert not proxy.upstreams.heard_since("a", after)
            ended.set()
            while await client.receive_some():
                pass
            assert proxy.upstreams.heard_since("a", after)  # its end came


@pytest.mark.parametrize("lane", LANES)
async def test_a_busy_server_is_not_taken_for_dead(tmp_path: Path, path: Path, lane: str) -> None:
    """Its alive hook fails; as long as bytes come that does not count, and then it does."""
    hooks = FakeHooks()
    ended = trio.Event()

    async def stream_on(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not ended.is_set():
            await stream.send_all(b"1\r\nx\r\n")
            await trio.sleep(0.005)
        await trio.sleep_forever()

    policy = {"alive_interval_secs": 0.05, "alive_failures": 1}
    async with running_lane(lane, tmp_path, socket_path=path, hooks=hooks, policy=policy) as site:
        site.backend.play = stream_on
        client = await site.connect()
        async with client:
            await client.send_all(CLOSING)
            assert await client.receive_some()
            hooks.failing["a", "alive"] = -1
            looks = hooks.calls.count(("a", "alive"))
            with trio.fail_after(20):
                while hooks.calls.count(("a", "alive")) < looks + 3:
                    await trio.sleep(0.005)
            assert site.service.board.active_model == "a"
            ended.set()
            with trio.fail_after(20):
                while site.service.board.active_model == "a":
                    await trio.sleep(0.005)
