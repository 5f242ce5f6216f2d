"""The good clients of the soak test: what they take for whose fault."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from wsproto.utilities import generate_accept_token

from bench.soak.ask import Seen, judge
from bench.soak.faults import insist
from bench.soak.framed import H2Line, talk
from bench.soak.lines import Line
from bench.soak.run import Run
from tests.bench.test_soak import ASK, SEEN, run  # noqa: F401 - a fixture

Serve = Callable[[trio.SocketStream, bytes], Awaitable[None]]

REFUSAL = (
    b'{"error":{"message":"llmux has 400 connections, its limit","type":"llmux_error",'
    b'"param":null,"code":"too_many_connections"}}'
)
ANSWER = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
REFUSED = ANSWER % (b"503 Service Unavailable", len(REFUSAL), REFUSAL)


@asynccontextmanager
async def connected_to(serve: Serve) -> AsyncIterator[trio.SocketStream]:
    """A connection to a server that does this once it has received something."""

    async def accept(stream: trio.SocketStream) -> None:
        async with stream:
            await serve(stream, bytes(await stream.receive_some()))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, accept, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(20):
                yield stream
        nursery.cancel_scope.cancel()


async def refuse(stream: trio.SocketStream, _received: bytes) -> None:
    await stream.send_all(REFUSED)


async def test_a_connection_that_is_refused_is_not_lost() -> None:
    async with connected_to(refuse) as stream:
        (seen,) = await H2Line(stream).ask([replace(ASK)])
    assert (seen.outcome, seen.kind) == ("too_many_connections", "HTTP/2")
    own = replace(ASK, own_path="/health")
    for ask in (own, ASK):
        assert judge(ask, 503, lambda _: "", REFUSAL).outcome == "too_many_connections"
    assert judge(own, 503, lambda _: "", b"{}").outcome == "wrong"
    full = REFUSAL.replace(b"too_many_connections", b"queue_full")
    assert [judge(own, n, lambda _: "", full).outcome for n in (429, 503)] == [
        "queue_full",
        "wrong",
    ]


async def test_a_quiet_websocket_client_hears_that_it_is_cut() -> None:
    async def accept_and_leave(stream: trio.SocketStream, received: bytes) -> None:
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", received)
        upgrade = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        token = generate_accept_token(key)
        await stream.send_all(upgrade + b"Sec-WebSocket-Accept: %b\r\n\r\n" % token)

    async with connected_to(accept_and_leave) as stream:
        seen = await talk(stream, ASK, messages=2, pause_s=60, target="/ws")
    assert seen.outcome == "cut"


async def test_a_client_that_has_closed_its_side_asks_nothing_more_there() -> None:
    async def answer(stream: trio.SocketStream, _received: bytes) -> None:
        await stream.send_all(ANSWER % (b"200 OK", 2, b"{}"))
        await stream.receive_some()

    own = replace(ASK, own_path="/health")
    for ask, can_go_on in ((own, True), (replace(own, half_closes=True), False)):
        async with connected_to(answer) as stream:
            line = Line(stream)
            (seen,) = await line.ask([ask])
        assert (seen.outcome, line.can_go_on) == ("ok", can_go_on)


def test_a_request_may_be_cancelled_before_it_is_known_to_be_wrong(run: Run) -> None:  # noqa: F811
    ask = replace(ASK, wants="bad_request")
    for outcome, is_right in (("cancelled", True), ("bad_request", True), ("hook_failed", False)):
        run.record.violations.clear()
        run.record.note(Seen(outcome, 503, ask=ask, begun_at=100.0, ended_at=101.0), since=100.0)
        assert (not run.record.violations) == is_right


def test_a_late_408_is_not_held_against_a_machine_that_was_busy(run: Run) -> None:  # noqa: F811
    late = replace(SEEN, outcome="bad_request", status=408, ended_at=120.0)
    late.ask = replace(ASK, stops_after=5, wants="bad_request")
    run.record.note(late, since=100.0)
    assert len(run.record.violations) == 1
    run.record.windows["lag"].append((105.0, 106.0))
    run.record.note(late, since=100.0)
    assert len(run.record.violations) == 1


async def test_an_order_that_must_be_heard_is_repeated(run: Run) -> None:  # noqa: F811
    answers = [REFUSED, ANSWER % (b"200 OK", 2, b"{}")]
    asked: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            asked.append(bytes(await stream.receive_some()))
            await stream.send_all(answers.pop(0))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        run.stage.port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(20), run.record.window("flood"):
            await insist(run, "unpin", {})
        nursery.cancel_scope.cancel()
    assert [request.startswith(b"POST /control/unpin ") for request in asked] == [True, True]
    assert run.record.violations == []


def test_an_llmux_that_was_killed_starts_with_all_models(run: Run) -> None:  # noqa: F811
    config = run.stage.base_config()
    guest = run.stage.members[-1].name
    del config["models"][guest]
    config["access_log"] = True
    run.stage.write(config)
    run.stage.restore_members()
    restored = json.loads(run.stage.config.read_text())
    assert restored == {**run.stage.base_config(), "access_log": True}
    run.stage.write("{")
    run.stage.restore_members()  # which nothing can be made of
