"""The access log: one line for each request, on both lanes and for llmux's own paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from llmux.config import parse_config
from llmux.observe.summary import RequestSummary
from llmux.proxy.access_log import log_request
from tests.fakes import FakeHooks
from tests.lanes import LANES, OK, Site, play, running_lane

CHAT = json.dumps({"model": "a"}).encode()
POST = b"POST /v1/chat/completions?key=SECRET HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
CLOSE = b"Connection: close\r\n\r\n"


def requests(entries: list[Any]) -> list[dict[str, Any]]:
    """The lines of the access log; `capture_logs` has taken them."""
    return [
        {key: value for key, value in entry.items() if key not in {"event", "log_level"}}
        for entry in entries
        if entry["event"] == "request"
    ]


async def ask(site: Site, body: bytes = CHAT) -> bytes:
    return await site.exchange(POST % len(body) + CLOSE + body)


@pytest.mark.parametrize("lane", LANES)
async def test_a_request_is_one_line(tmp_path: Path, lane: str) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            assert (await ask(site)).endswith(b"ok")
    (line,) = requests(entries)
    assert 0 <= line.pop("wait_ms") <= line.pop("first_byte_ms") <= line.pop("duration_ms")
    assert line == {
        "method": "POST",
        "path": "/v1/chat/completions",  # the query may hold a key
        "model": "a",
        "status": 200,
        "outcome": "done",
        "bytes_in": len(CHAT),
        "bytes_out": 2,
        "tokens_in": None,  # it has told of none
        "tokens_out": None,
        "client": "127.0.0.1",
    }


@pytest.mark.parametrize("lane", LANES)
async def test_nothing_is_written_unless_it_is_switched_on(tmp_path: Path, lane: str) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path) as site:
            await ask(site)
            async with site.client() as client:
                await client.get("/health")
    assert not requests(entries)


@pytest.mark.parametrize("lane", LANES)
async def test_each_way_to_end_has_its_outcome(tmp_path: Path, lane: str) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            unknown = json.dumps({"model": "nobody"}).encode()
            await ask(site, unknown)

            head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
            site.backend.play = play(head, b"abc", close=True)
            await ask(site)

            site.backend.play = play(close=True)
            await ask(site)
    refused, cut, broken = requests(entries)
    assert (refused["outcome"], refused["status"], refused["model"]) == ("model_not_found", 404, "")
    assert refused["bytes_out"] > 50  # the error's body
    assert (cut["outcome"], cut["status"], cut["bytes_out"]) == ("cut", 200, 3)
    assert (broken["outcome"], broken["status"]) == ("backend_error", 502)


@pytest.mark.parametrize("lane", LANES)
async def test_a_client_that_leaves(tmp_path: Path, lane: str) -> None:
    hooks = FakeHooks(gates={("a", "wake"): trio.Event()})
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, hooks=hooks, access_log=True) as site:
            stream = await site.connect()
            await stream.send_all(POST % len(CHAT) + b"\r\n" + CHAT)
            with trio.fail_after(20):
                while not site.service.board.queue_depths["a"]:
                    await trio.sleep(0.001)
                await stream.aclose()
                while not requests(entries):
                    await trio.sleep(0.001)
            hooks.gates["a", "wake"].set()
    (line,) = requests(entries)
    assert (line["outcome"], line["status"], line["first_byte_ms"]) == ("client_left", 499, None)
    assert line["wait_ms"] > 0
    assert line["bytes_out"] == 0


@pytest.mark.parametrize("lane", LANES)
async def test_chunks_and_following_requests_are_counted_one_by_one(
    tmp_path: Path, lane: str
) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            site.backend.play = play(chunked)
            async with site.client() as client:
                await client.post("/v1/completions", content=CHAT)
                site.backend.play = play(OK)
                await client.post("/v1/completions", content=CHAT)
    streamed, counted = requests(entries)
    # On the fast lane a chunk goes out framed, as it came in.
    assert streamed["bytes_out"] == {"fast": len(b"5\r\nhello\r\n0\r\n\r\n"), "asgi": 5}[lane]
    assert counted["bytes_out"] == 2


@pytest.mark.parametrize("lane", LANES)
async def test_own_paths_are_logged_too(tmp_path: Path, lane: str) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            async with site.client() as client:
                health = await client.get("/health?token=SECRET")
                await client.post("/control/switch", json={"model": "nobody"})
    read, refused = requests(entries)
    assert (read["method"], read["path"], read["model"]) == ("GET", "/health", "")
    assert (read["status"], read["outcome"], read["client"]) == (200, "done", "127.0.0.1")
    assert (read["bytes_in"], read["bytes_out"]) == (0, len(health.content))
    assert (refused["status"], refused["bytes_in"]) == (404, len('{"model":"nobody"}'))


async def test_a_reload_switches_it(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as entries:
        async with running_lane("fast", tmp_path) as site:
            await ask(site)
            old = site.service.reloader.config
            site.service.reloader.apply(
                parse_config(
                    {
                        "models": {"a": {"port": site.backend.port, "wake": "up", "sleep": "down",
                                         "alive": "ping"}},
                        "state_dir": str(tmp_path),
                        "access_log": True,
                    },
                    directory=old.directory,
                )
            )  # fmt: skip
            await ask(site)
    assert len(requests(entries)) == 1


def test_what_a_client_writes_cannot_steer_a_terminal() -> None:
    path = b"/\x1b[2J\xff"
    ended = RequestSummary("", b"GET", path, "", None, 404, "no_model", 0, 0, 0, 0, 0, 0)
    with structlog.testing.capture_logs() as entries:
        log_request(ended)
    assert requests(entries)[0]["path"] == "/\\x1b[2J\\xff"


async def test_a_websocket_is_one_request(tmp_path: Path) -> None:
    handshake = (
        b"GET /ws?model=a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    switching = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    with structlog.testing.capture_logs() as entries:
        async with running_lane("fast", tmp_path, access_log=True) as site:
            site.backend.play = play(switching + b"frame", close=True)
            assert (await site.exchange(handshake)).endswith(b"frame")
    (line,) = requests(entries)
    assert (line["path"], line["status"], line["outcome"]) == ("/ws", 101, "done")
    assert line["bytes_out"] == len(b"frame")
