"""Answers that are given up while Hypercorn sends their head."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from llmux.server.hypercorn_side.http1 import StrictH11Protocol
from llmux.server.hypercorn_side.inbox import InboxTrioGroup, ending_quietly

GET = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


@pytest.mark.parametrize("kind", [GET, GET.replace(b"1.1", b"1.0")])
async def test_an_answer_given_up_with_its_head_ends_its_connection_only(kind: bytes) -> None:
    sent: list[Event] = []
    sending = trio.Event()

    async def send(event: Event) -> None:
        sent.append(event)
        if isinstance(event, RawData) and b" 200 " in event.data:
            sending.set()
            await trio.sleep_forever()

    async def app(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, START)
            await sending.wait()
            nursery.cancel_scope.cancel()

    with trio.fail_after(20):
        async with InboxTrioGroup() as group:
            protocol = StrictH11Protocol(
                app,
                Config(),
                WorkerContext(None),
                group,
                ConnectionState({}),
                False,
                ("127.0.0.1", 1),
                ("127.0.0.1", 2),
                send,
            )
            await protocol.handle(RawData(data=kind))
    assert any(isinstance(event, Closed) for event in sent)
    heads = [event.data for event in sent if isinstance(event, RawData)]
    assert len(heads) == 1


async def test_what_hypercorn_does_behind_an_app_ends_no_server() -> None:
    async def broken(message: object) -> None:
        raise KeyError(message)

    send = ending_quietly(broken)
    await send(None)
    with pytest.raises(KeyError):
        await send(START)  # type: ignore[arg-type]
