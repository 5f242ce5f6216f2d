"""What is wrong with one HTTP/2 stream ends that stream, and no other."""

from __future__ import annotations

from pathlib import Path

import h2.errors
import pytest
import trio

from tests.server.test_hypercorn_side import Client, http2
from tests.servers import ALL_FORMS, running_backends, running_llmux

PROTOCOL_ERROR = h2.errors.ErrorCodes.PROTOCOL_ERROR
REFUSED_STREAM = h2.errors.ErrorCodes.REFUSED_STREAM

POST = [(":method", "POST"), (":path", "/v1/x"), (":scheme", "http"), (":authority", "h")]
GET = [(":method", "GET"), (":path", "/health"), (":scheme", "http"), (":authority", "h")]


async def until_reset(client: Client, *streams: int) -> None:
    with trio.fail_after(20):
        while not client.reset.keys() >= set(streams):
            assert not client.is_closed
            await client.receive()


LENGTHS = [["zz"], ["-1"], ["+5"], ["5, 5"], ["0" * 5000], ["5", "6"]]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_malformed_requests_end_their_stream_only(tmp_path: Path, form: str) -> None:
    """Lengths that are none, bodies that are longer or shorter, trailers that end nothing."""
    async with (
        running_backends(tmp_path, "a") as rack,
        running_llmux(rack.write_config(http2=True), form) as llmux,
        http2(llmux) as client,
    ):
        client.h2.send_headers(1, POST, end_stream=False)  # goes on to the end
        stream = 3
        for lengths in LENGTHS:
            fields = [("content-length", length) for length in lengths]
            client.h2.send_headers(stream, POST + fields, end_stream=True)
            await client.flush()
            await until_reset(client, stream)
            stream += 2
        for length, is_last in (("2", False), ("2", True), ("9", True)):
            client.h2.send_headers(stream, [*POST, ("content-length", length)])
            client.h2.send_data(stream, b"hello", end_stream=is_last)
            await client.flush()
            await until_reset(client, stream)
            stream += 2
        client.h2.send_headers(stream, POST)
        await client.flush()
        block = client.h2.encoder.encode([("a", "b")])
        frame = len(block).to_bytes(3, "big") + b"\x01\x04" + stream.to_bytes(4, "big")
        await client.stream.send_all(frame + block)  # END_HEADERS alone
        await until_reset(client, stream)
        assert set(client.reset.values()) == {PROTOCOL_ERROR}
        client.h2.send_headers(stream + 2, GET, end_stream=True)
        await client.flush()
        await client.until(stream + 2)
        client.h2.send_data(1, b'{"model":"a"}', end_stream=True)
        await client.flush()
        await client.until(1)
        assert (client.statuses[1], client.statuses[stream + 2]) == (200, 200)
        assert len(rack.backends["a"].received) == 1
        assert not any("Traceback" in line for line in llmux.lines)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_streams_too_many_are_refused_alone(tmp_path: Path, form: str) -> None:
    """A client may send requests before it has read how many there may be."""
    async with (
        running_backends(tmp_path, "a") as rack,
        running_llmux(rack.write_config(http2=True), form) as llmux,
        http2(llmux) as client,
    ):
        for stream in range(1, 221, 2):
            client.h2.send_headers(stream, POST)
        await client.flush()
        with trio.fail_after(20):
            while len(client.reset) < 10:
                await client.receive()
        assert set(client.reset.values()) == {REFUSED_STREAM}
        body = b'{"model":"a"}'
        for stream in set(range(1, 221, 2)) - client.reset.keys():
            client.h2.send_data(stream, body, end_stream=True)
            await client.flush()
            await client.until(stream)
        assert len(client.reset) == 10
        assert set(client.statuses.values()) == {200}
        client.h2.send_headers(221, GET, end_stream=True)
        await client.flush()
        await client.until(221)
        assert not any("Traceback" in line for line in llmux.lines)
