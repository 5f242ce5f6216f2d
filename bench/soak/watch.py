"""Watches memory, cheap requests, drains and stuck queues during a run."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import trio

from bench.processes import resident_bytes
from bench.soak.record import Sample
from bench.soak.run import BROKEN, Run
from bench.soak.settings import (
    DRAIN_OVER_S,
    KEY,
    OWN_LAG_S,
    OWN_PATH_CLIENTS,
    SAMPLE_S,
    STALL_VIOLATION_S,
    memory_bound_bytes,
)

LOOK_S = 0.3
STUCK_LOOKS = 3
"""Checks in a row that must show a queue despite room: a request may just be on its way in."""

PROBE_S = 0.15
"""Pause between two cheap requests."""

DEATH_S = 0.2
"""Interval between checks that llmux runs."""

PROBE_LIMIT_S = 30.0
PROBE_ADDRESS = "127.0.0.2"

HEALTH = (
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % KEY.encode()
)
UNKNOWN = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
    b'Content-Length: 18\r\n\r\n{"model":"nobody"}' % KEY.encode()
)
PROBES = {"GET /health": (HEALTH, {b"200"}), "404": (UNKNOWN, {b"404", b"429"})}
"""Cheap requests with their expected statuses: 429 while bodies fill queued_bytes."""


def start_watching(run: Run, nursery: trio.Nursery) -> None:
    """Start all watchers; they run until cancelled."""
    nursery.start_soon(sample, run)
    nursery.start_soon(supervise, run)
    nursery.start_soon(look, run)
    nursery.start_soon(look_at_lag, run)
    for kind in PROBES:
        nursery.start_soon(probe, run, kind, False)
        nursery.start_soon(probe, run, kind, True)
    for index in range(OWN_PATH_CLIENTS):
        nursery.start_soon(follow, run, run.rng(f"follower {index}"), index)


async def sample(run: Run) -> None:
    """Measure llmux's process."""
    backend_ports = {member.port for member in run.stage.members}
    record, llmux = run.record, run.llmux
    while True:
        with suppress(OSError, AssertionError):  # llmux is being restarted
            record.samples.append(
                Sample(
                    trio.current_time() - run.began_at,
                    llmux.lives,
                    resident_bytes(llmux.pid),
                    llmux.descriptors,
                    llmux.connections_to(backend_ports),
                    record.done,
                )
            )
            record.peak_bytes = max(record.peak_bytes, llmux.peak_bytes())
        await trio.sleep(SAMPLE_S)


async def supervise(run: Run) -> None:
    """Restart llmux when it has ended by itself, so that the run can go on."""
    while True:
        await trio.sleep(DEATH_S)
        if run.llmux.has_ended and not run.llmux.was_away(time.time(), time.time()):
            log = run.llmux.logs[-1].read_text(errors="replace")
            run.record.violations.append(f"llmux has ended by itself, {clock()}: {log[-2000:]}")
            run.record.new_life()
            await run.llmux.kill_and_restart(0, ended_s=2 * DEATH_S)


def note_bound(run: Run) -> None:
    """Take the baseline: llmux listens and has no clients yet."""
    run.record.bound_bytes = memory_bound_bytes(resident_bytes(run.llmux.pid))


async def look(run: Run) -> None:
    """Check that no request waits for an awake model with room, and that drains end in time."""
    stuck: Counter[str] = Counter()
    reported: set[tuple[str, float]] = set()
    while True:
        await trio.sleep(LOOK_S)
        models: Mapping[str, Any] = {}
        with suppress(*BROKEN, ValueError, KeyError):
            models = (await run.status())["models"]
        stuck = Counter({name: stuck[name] + 1 for name, seen in models.items() if is_stuck(seen)})
        run.record.violations += [
            f"requests wait for {name}, which is awake: {models[name]}"
            for name, looks in stuck.items()
            if looks == STUCK_LOOKS
        ]
        for name, seen in models.items():
            late_s = time.time() - seen["since"] - DRAIN_OVER_S
            # Where models share memory, one that has drained may wait for others' hooks.
            drains = seen["state"] == "draining" and (seen["in_flight"] or not run.stage.resources)
            if drains and late_s > 0 and (name, seen["since"]) not in reported:
                reported.add((name, seen["since"]))
                requests = [each for each in await run.requests() if each["model"] == name]
                run.record.violations.append(
                    f"{name} drains {late_s:.1f} s too long: {seen}, {requests[:5]}"
                )


def is_stuck(seen: Mapping[str, Any]) -> bool:
    """Return whether a model has a queue and room. Waits for a health check are not queued."""
    room = (seen["max_in_flight"] or float("inf")) - seen["in_flight"]
    return bool(seen["awake"] and seen["oldest_wait_secs"] is not None and room > 0)


async def look_at_lag(run: Run) -> None:
    """Measure the delay of the soak's own timers, which llmux is not to blame for."""
    while True:
        before = trio.current_time()
        await trio.sleep(0.05)
        lag_s = trio.current_time() - before - 0.05
        run.record.lag_s = max(run.record.lag_s, lag_s)
        if lag_s > OWN_LAG_S:
            run.record.windows["lag"].append((time.time() - lag_s, time.time()))


# ---- Cheap requests ----


async def probe(run: Run, kind: str, is_kept: bool) -> None:
    """Time a cheap request again and again, on one connection or on a new one each time."""
    request, statuses = PROBES[kind]
    label = f"{kind}, {'kept alive' if is_kept else 'new connection'}"
    stream: trio.SocketStream | None = None
    while True:
        await trio.sleep(PROBE_S)
        begun_at, began_at = time.time(), trio.current_time()
        mistake = f"no answer within {PROBE_LIMIT_S:g} s"
        is_fresh = stream is None
        with trio.move_on_after(PROBE_LIMIT_S):
            try:
                stream = stream or await trio.open_tcp_stream(
                    "127.0.0.1", run.stage.port, local_address=PROBE_ADDRESS
                )
                await stream.send_all(request)
                answer = await read_answer(stream)
                mistake = "" if answer[9:12] in statuses else f"{answer[:200]!r}"
            except BROKEN as error:
                mistake = repr(error)
                await trio.sleep(2 * DEATH_S)  # until it is known whether llmux has ended
        took_s = trio.current_time() - began_at
        if not mistake:
            run.record.latencies_s[label].append(took_s)
        # An idle connection may be closed at this moment.
        elif (is_fresh or took_s > 1) and not explained(run, begun_at, is_refusal(mistake)):
            run.record.violations.append(f"{label}: {mistake} after {took_s:.2f} s")
        lagged = run.record.was("lag", begun_at, time.time())
        was_away = run.llmux.was_away(begun_at, time.time())
        if took_s > STALL_VIOLATION_S[is_kept] and not lagged and not was_away:
            at = (
                f"from {clock(begun_at)}, flooded: {run.record.was('flood', begun_at, time.time())}"
            )
            run.record.violations.append(f"{label}: took {took_s:.1f} s, {at}")
        if stream is not None and (mistake or not is_kept):
            stream.socket.close()
            stream = None


def clock(at: float | None = None) -> str:
    """Format the time as logs do."""
    return datetime.fromtimestamp(time.time() if at is None else at, tz=UTC).isoformat()


def is_refusal(mistake: str) -> bool:
    """Return whether a probe was refused because of too many connections."""
    return "too_many_connections" in mistake or " 503 " in mistake or "reset" in mistake.lower()


def explained(run: Run, begun_at: float, was_refused: bool) -> bool:
    """Return whether the failure of a cheap request was expected."""
    now = time.time()
    return run.llmux.was_away(begun_at, now) or (
        was_refused and run.record.was("flood", begun_at, now)
    )


async def read_answer(stream: trio.SocketStream) -> bytes:
    """Read one response with a Content-Length; raises one of BROKEN."""
    data = b""
    while b"\r\n\r\n" not in data or len(data) < _length(data):
        more = await stream.receive_some(1 << 16)
        if not more:
            raise trio.BrokenResourceError
        data += more
    return data


def _length(data: bytes) -> int:
    head = data.partition(b"\r\n\r\n")[0]
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.partition(b":")[2])
    return 0


# ---- Watchers ----


async def follow(run: Run, rng: random.Random, index: int) -> None:
    """Follow the event feed: read it, read it slowly, or not at all."""
    while True:
        await trio.sleep(rng.expovariate(1))
        path = rng.choice(
            ("/control/events", "/control/events", "/control/logs/model-0?follow=true")
        )
        head = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        ).encode()
        with suppress(*BROKEN), trio.move_on_after(rng.uniform(0.05, 6)):
            async with await trio.open_tcp_stream(
                "127.0.0.1", run.stage.port, local_address=f"127.0.0.{10 + index}"
            ) as stream:
                before = rng.choice((b"", b"", UNKNOWN, HEALTH))  # on the same connection
                await stream.send_all(before + head)
                style = rng.random()
                while style < 0.8 and await stream.receive_some(100 if style < 0.2 else 1 << 16):
                    pass
                await trio.sleep_forever()
