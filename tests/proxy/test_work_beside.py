"""What is small and takes long all the same is read beside the event loop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from llmux.openai.fields import read_fields
from llmux.openai.scanning import PauseBudget, TooLong
from llmux.proxy import reading as proxy
from llmux.proxy.opening import FirstMessage
from tests.lanes import LANES, read_all, running_lane
from tests.proxy.test_held_messages import HANDSHAKE

MULTIPART = [(b"content-type", b"multipart/form-data; boundary=b")]
FORM = [(b"content-type", b"application/x-www-form-urlencoded")]

# Each of these took 50 to 200 ms.
MANY_SMALL_THINGS = {
    "parts": (MULTIPART, b"--b" + b"\r\n\r\n\r\n--b" * 9_900 + b"--"),
    "fields": (FORM, b"&model=a" * 9_900),
    "keys": ([], b'{"x":[' + b'{"model":"a"},' * 18_000 + b"1]}"),
}


@pytest.mark.parametrize(
    ("headers", "body"), MANY_SMALL_THINGS.values(), ids=MANY_SMALL_THINGS.keys()
)
def test_many_small_things_are_not_looked_at_on_the_loop(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    with pytest.raises(TooLong):
        read_fields(headers, body, PauseBudget().begin())
    read_fields(headers, body)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("length", [200, 100_000])
async def test_a_large_first_message_is_read_beside_the_loop(
    lane: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    class Noted(FirstMessage):
        def __init__(self, *args: object) -> None:
            threads.append(threading.current_thread())
            super().__init__(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(proxy, "FirstMessage", Noted)
    message = b'{"model":"no such","x":"%b"}' % (b"x" * length)
    many = b"\xff" + len(message).to_bytes(8, "big")
    head = b"\x81" + (many if length > 65535 else b"\xfe" + len(message).to_bytes(2, "big"))
    async with running_lane(lane, tmp_path) as site:
        async with await site.connect() as stream:
            with trio.fail_after(10):
                await stream.send_all(HANDSHAKE % b"/v1/realtime")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
                await stream.send_all(head + b"\0\0\0\0" + message)
                assert b"no such" in await read_all(stream)
    is_on_loop = [thread is threading.current_thread() for thread in threads]
    assert is_on_loop == [length == 200]
