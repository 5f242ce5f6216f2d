"""The good clients: their requests, behaviour and protocols."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import trio

from bench.soak.ask import Ask, Seen
from bench.soak.framed import H2Line, talk
from bench.soak.lines import Line, connect, reset
from bench.soak.run import Run
from bench.soak.settings import (
    BODY_BYTES,
    CLIENTS,
    FAVOURITE_S,
    H2_CLIENTS,
    LIE_SHARE,
    LIES,
    LIES_OF_PLAIN,
    LIES_OF_STREAM,
    REQUEST_S,
    THINK_S,
    WEBSOCKET_CLIENTS,
)

OWN_PATHS = ("/health", "/metrics", "/v1/models", "/control/status")
WAITS_AFTER = {"lost", "queue_full", "manual_mode", "pinned", "too_many_connections"}
"""Outcomes after which a client pauses before its next request."""


def start_clients(run: Run, nursery: trio.Nursery) -> None:
    """Start all good clients; each ends with the run."""
    for index in range(CLIENTS):
        nursery.start_soon(client, run, run.rng(f"client {index}"), index)
    for index in range(CLIENTS, CLIENTS + H2_CLIENTS if run.stage.http2 else CLIENTS):
        nursery.start_soon(h2_client, run, run.rng(f"client {index}"), index)
    for index in range(CLIENTS + H2_CLIENTS, CLIENTS + H2_CLIENTS + WEBSOCKET_CLIENTS):
        nursery.start_soon(websocket_client, run, run.rng(f"client {index}"), index)


def address_of(index: int) -> str:
    """Give each client an address of its own, so that limits by address treat each by itself."""
    return f"127.0.1.{1 + index}"


# ---- HTTP/1.x ----


async def client(run: Run, rng: random.Random, index: int) -> None:
    """Open one connection after the other, each for some requests."""
    for turn in range(sys.maxsize):
        await trio.sleep(rng.expovariate(1 / THINK_S))
        count = rng.choice((1, 1, 3, 10))
        asks = [make_ask(run, rng, f"{index}.{turn}.{number}") for number in range(count)]
        if run.is_over:
            return
        if count > 1 and rng.random() < 0.3:
            await pipeline(run, index, [plain(ask) for ask in asks[:3]])
        else:
            await keep_alive(run, index, mixed(rng, asks))


def mixed(rng: random.Random, asks: Sequence[Ask]) -> list[Ask]:
    """Insert, now and then, a request to one of llmux's own paths."""
    if rng.random() < 0.7:
        return list(asks)
    own = Ask("own", "", "", 0, 0, 0, 0, 0, own_path=rng.choice(OWN_PATHS))
    at = rng.randrange(len(asks) + 1)
    return [*asks[:at], own, *asks[at:]]


def plain(ask: Ask) -> Ask:
    """Return a request that can be pipelined: without pauses, early ends or large bodies."""
    small = min(ask.body_bytes, 20_000)
    return replace(
        ask, body_bytes=small, leave_after_s=float("inf"), stalls=False, pace=0, stops_after=-1,
        half_closes=False, is_slow_upload=False, version="1.1", closes=False, extra_crlf=False,
        lie="" if ask.lie in {"stalls", "hangs"} else ask.lie,
        wants="" if ask.wants in {"body_too_large", "bad_request"} else ask.wants,
    )  # fmt: skip


async def keep_alive(run: Run, index: int, asks: Sequence[Ask]) -> None:
    """Send requests one after the other, over one connection if it lasts."""
    line: Line | None = None
    try:
        for ask in asks:
            if run.is_over:
                return
            begun_at = time.time()
            ask.body = ask.make_body()
            seen = Seen("hang", detail=f"no end after {REQUEST_S:g} s")
            with trio.move_on_after(REQUEST_S), trio.move_on_after(ask.leave_after_s) as leave:
                try:
                    line = line or Line(await open_for(run, index, ask))
                    (seen,) = await line.ask([ask])
                except OSError as error:
                    seen = Seen("lost", detail=str(error))
            if leave.cancelled_caught:
                seen = Seen("left")
            seen.ask, seen.begun_at, seen.ended_at = ask, begun_at, time.time()
            if line is not None and (seen.outcome in {"left", "hang"} or not line.can_go_on):
                if ask.leaves_by_reset:
                    reset(line.stream)
                line.stream.socket.close()
                run.record.note(seen, line.opened_at)
                line = None
            else:
                run.record.note(seen, line.opened_at if line else begun_at)
            if seen.outcome in WAITS_AFTER:
                await trio.sleep(1.0)
    finally:
        if line is not None:
            line.stream.socket.close()


async def pipeline(run: Run, index: int, asks: Sequence[Ask]) -> None:
    """Send all requests at once over one connection."""
    begun_at = time.time()
    for ask in asks:
        ask.body = ask.make_body()
    seen = [Seen("hang", detail=f"no end after {REQUEST_S:g} s") for _ in asks]
    stream: trio.SocketStream | None = None
    with trio.move_on_after(REQUEST_S):
        try:
            stream = await open_for(run, index, asks[0])
            seen = await Line(stream).ask(asks)
        except OSError as error:
            seen = [Seen("lost", detail=str(error)) for _ in asks]
    if stream is not None:
        stream.socket.close()
    note_all(run, asks, seen, begun_at)


def note_all(run: Run, asks: Sequence[Ask], seen: Sequence[Seen], begun_at: float) -> None:
    """Judge requests that began together on a new connection."""
    for ask, each in zip(asks, seen, strict=True):
        each.ask, each.begun_at = ask, begun_at
        each.ended_at = each.ended_at or time.time()
        run.record.note(each, begun_at)


async def open_for(run: Run, index: int, ask: Ask) -> trio.SocketStream:
    """Open a connection; clients that do not read have a small receive buffer."""
    small = 16 << 10 if ask.pace or ask.stalls else 0
    return await connect(run.stage.port, address_of(index), receive_buffer=small)


# ---- HTTP/2 and WebSocket ----


async def h2_client(run: Run, rng: random.Random, index: int) -> None:
    """Open one HTTP/2 connection after the other, with several requests at a time."""
    for turn in range(sys.maxsize):
        await trio.sleep(rng.expovariate(1 / THINK_S))
        if run.is_over:
            return
        line: H2Line | None = None
        for group in range(rng.choice((1, 3))):
            asks = [
                make_ask(run, rng, f"{index}.{turn}.{group}.{number}")
                for number in range(rng.choice((1, 2, 5)))
            ]
            # An early answer to a large body must leave the connection's other streams alone.
            asks = [
                replace(plain(ask), leave_after_s=ask.leave_after_s, wants=ask.wants, chunked=False)
                for ask in asks
                if ask.stops_after < 0
            ]
            for ask in asks:
                if ask.wants == "body_too_large":
                    ask.body_bytes = BODY_BYTES + 1000
                ask.body = ask.make_body()
            begun_at = time.time()
            seen = [Seen("hang", detail=f"no end after {REQUEST_S:g} s") for _ in asks]
            with trio.move_on_after(REQUEST_S):
                try:
                    line = line or H2Line(await connect(run.stage.port, address_of(index)))
                    seen = await line.ask(asks)
                except OSError as error:
                    seen = [Seen("lost", detail=str(error)) for _ in asks]
            note_all(run, asks, seen, begun_at)
            ends = {each.outcome for each in seen}
            if line is None or ends & {"lost", "cut", "hang", "too_many_connections"}:
                break
        if line is not None:
            line.stream.socket.close()


async def websocket_client(run: Run, rng: random.Random, index: int) -> None:
    """Open one WebSocket after the other, quiet or chatty."""
    for turn in range(sys.maxsize):
        await trio.sleep(rng.expovariate(1 / THINK_S))
        if run.is_over:
            return
        ask = replace(plain(make_ask(run, rng, f"{index}.{turn}")), lie="", wants="", chunks=0)
        if ask.called == "nobody":
            ask.called = ask.model
        ask.leave_after_s = rng.uniform(0, 3) if rng.random() < 0.2 else float("inf")
        is_quiet = rng.random() < 0.5
        messages, pause_s = (2, rng.uniform(0.5, 4)) if is_quiet else (rng.randrange(5, 60), 0.02)
        begun_at = time.time()
        seen = Seen("hang", detail=f"no end after {REQUEST_S:g} s", kind="WebSocket")
        stream: trio.SocketStream | None = None
        with trio.move_on_after(REQUEST_S), trio.move_on_after(ask.leave_after_s) as leave:
            try:
                stream = await connect(run.stage.port, address_of(index))
                seen = await talk(stream, ask, messages, pause_s, f"/upstream/{ask.called}/ws")
            except OSError as error:
                seen = Seen("lost", detail=str(error), kind="WebSocket")
        if leave.cancelled_caught:
            seen = Seen("left", kind="WebSocket")
        if stream is not None:
            stream.socket.close()
        note_all(run, [ask], [seen], begun_at)
        if seen.outcome in WAITS_AFTER:
            await trio.sleep(1.0)


# ---- Requests ----


def make_ask(run: Run, rng: random.Random, request_id: str) -> Ask:
    """Draw a client's next request."""
    favourite = int((trio.current_time() - run.began_at) / FAVOURITE_S)
    members = run.stage.members
    ranks = [(index + favourite) % len(members) for index in range(len(members))]
    member = rng.choices(members, [1 / (1 + rank) ** 2 for rank in ranks])[0]
    large, lies = rng.random(), rng.random() < LIE_SHARE
    body_bytes = rng.randrange(2000)
    if large > 0.7:
        body_bytes = rng.randrange(200_000 if large < 0.95 else 2_000_000)
    ask = Ask(
        id=request_id,
        model=member.name,
        called=rng.choice((member.name, member.name, member.alias)),
        body_bytes=body_bytes,
        size=rng.randrange(20_000 if rng.random() < 0.9 else 500_000),
        chunks=rng.choice((0, 0, rng.randrange(1, 30))),
        gap_s=rng.choice((0.0, 0.01, 0.05)),
        work_s=rng.choice((0.0, 0.0, 0.05, rng.random())),
        chunked=rng.random() < 0.1,
    )
    if lies:
        ask.lie = rng.choices(list(LIES), list(LIES.values()))[0]
        if ask.lie in LIES_OF_PLAIN:
            ask.chunks = 0
        elif ask.lie in LIES_OF_STREAM:
            ask.chunks = ask.chunks or 5
        elif ask.lie == "stalls":
            ask.leave_after_s = 8.0
        return ask
    behave(ask, rng)
    return ask


def behave(ask: Ask, rng: random.Random) -> None:
    """Make some clients slow, odd, or wrong."""
    style = rng.random()
    if style < 0.12:
        ask.leave_after_s = rng.choice((rng.random() * 0.05, rng.random() * 3))
        ask.leaves_by_reset = rng.random() < 0.5
    elif style < 0.17:
        ask.pace, ask.size, ask.chunks = 4096, rng.randrange(400_000), 0
    elif style < 0.18:
        ask.stalls, ask.size, ask.chunks = True, 4_000_000, 0
    elif style < 0.22:
        ask.is_slow_upload = True
    elif style < 0.25:
        ask.wants = rng.choice(("no_model", "model_not_found", "bad_request", "body_too_large"))
        if ask.wants == "model_not_found":
            ask.called = "nobody"
        elif ask.wants == "body_too_large":
            ask.body_bytes = BODY_BYTES + 1000
    elif style < 0.29:
        ask.version, ask.chunked = "1.0", False
        ask.extra_crlf = rng.random() < 0.5
    elif style < 0.32:
        ask.closes = True
        ask.extra_crlf = rng.random() < 0.5
    elif style < 0.33:
        ask.half_closes = True
    elif style < 0.34 and ask.body_bytes > 100:
        ask.stops_after, ask.wants = rng.randrange(ask.body_bytes // 2), "bad_request"
