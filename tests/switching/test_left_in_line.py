"""Clients that send one request behind another and leave, or are still there when llmux stops."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.lanes import read_all
from tests.server.test_hypercorn_side import http2, port_of
from tests.servers import ALL_FORMS, LlmuxProcess, chat, running_backends, running_llmux

HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


def request(seconds: float) -> bytes:
    body = json.dumps(chat("a", seconds=seconds)).encode()
    return b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def until_in_flight(llmux: LlmuxProcess, count: int, seconds: float = 30) -> None:
    async with llmux.client() as client:
        with trio.fail_after(seconds):
            while (await client.get("/control/status")).json()["models"]["a"]["in_flight"] != count:
                await trio.sleep(0.02)


async def send(llmux: LlmuxProcess, data: bytes) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(llmux))
    await stream.send_all(data)
    return stream


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_client_that_leaves_with_a_request_in_line_behind_another(
    tmp_path: Path, form: str
) -> None:
    """Nothing is read behind the request that waits, so nothing there says that it left."""
    async with (
        running_backends(tmp_path, "a") as rack,
        running_llmux(rack.write_config(), form) as llmux,
    ):
        for behind in (request(60), HEALTH, request(60)[:-3], request(60) + HEALTH):
            for before in (b"", HEALTH):
                stream = await send(llmux, before + request(60) + behind)
                await until_in_flight(llmux, 1)
                await stream.aclose()
                await until_in_flight(llmux, 0)
        assert not any("Traceback" in line for line in llmux.lines)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_requests_in_line_of_a_client_that_has_closed_its_side(
    tmp_path: Path, form: str
) -> None:
    """It gets what takes no longer than it is waited for."""
    async with (
        running_backends(tmp_path, "a") as rack,
        running_llmux(rack.write_config(), form) as llmux,
    ):
        async with await send(llmux, HEALTH + request(0.3) + request(0) + HEALTH) as stream:
            await stream.send_eof()
            with trio.fail_after(10):
                received = await read_all(stream)
        assert received.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize("form", ["hypercorn -k trio", "hypercorn"])
async def test_hypercorn_stops_without_tracebacks_whatever_is_in_flight(
    tmp_path: Path, form: str
) -> None:
    config_settings = {"http2": True, "shutdown_grace_secs": 1}
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(**config_settings)
        async with running_llmux(config, form) as llmux, http2(llmux) as client:
            plain = await send(llmux, request(60))
            piped = await send(llmux, request(60) + request(60))
            half = await send(llmux, request(60)[:-3])
            await client.begin(1, path="/v1/x", method="POST", end=False)
            client.h2.send_data(1, json.dumps(chat("a", seconds=60)).encode(), end_stream=True)
            await client.flush()
            await until_in_flight(llmux, 3)
            llmux.process.send_signal(signal.SIGTERM)
            with trio.fail_after(40):
                await llmux.process.wait()
            for stream in (plain, piped, half):
                await stream.aclose()
        assert not any("Traceback" in line or "awaited" in line for line in llmux.lines)
