"""Injects faults into hooks, model servers and llmux itself, and gives orders at random."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import trio

from bench.soak.reloads import Reloads
from bench.soak.run import BROKEN, Run
from bench.soak.settings import (
    MOST_KILLS,
    REQUEST_S,
    SLEEP_FAULTS,
    SLEEP_FAULTS_VERIFIED,
    WAKE_FAULTS,
)
from bench.soak.stage import Member
from bench.soak.watch import DEATH_S

REFUSALS = {
    "switch": {"hook_failed", "not_ready", "pinned", "pin_lost", "model_not_found", "no_room"},
    "pin": {"hook_failed", "not_ready", "pin_lost", "pinned", "model_not_found", "no_room"},
    "sleep": {"hook_failed", "not_ready", "pinned", "model_not_found", "no_room"},
}
"""The documented errors of an order."""


def start_faults(run: Run, nursery: trio.Nursery, reloads: Reloads) -> None:
    """Start all faults; they run until cancelled."""
    nursery.start_soon(tickets, run)
    nursery.start_soon(servers, run)
    nursery.start_soon(operators, run)
    nursery.start_soon(kills, run)
    nursery.start_soon(run.now_and_then, "reload", reloads.act)


async def tickets(run: Run) -> None:
    """Leave tickets for hooks: one that finds a ticket fails, and notes it."""

    def put(hook: str, kinds: Sequence[str], rng: random.Random, member: Member) -> None:
        path = run.stage.tickets / f"{hook}-{member.slug}"
        new = path.with_suffix(".new")
        new.write_text(rng.choice(kinds))
        new.replace(path)

    async def wake(rng: random.Random) -> None:
        put("wake", WAKE_FAULTS, rng, rng.choice(run.stage.members))

    async def sleep(rng: random.Random) -> None:
        member = rng.choice(run.stage.members)
        put("sleep", SLEEP_FAULTS_VERIFIED if member.is_verified else SLEEP_FAULTS, rng, member)

    async def stop(rng: random.Random) -> None:
        sleepers = [each for each in run.stage.members if each.share and each.share.is_sleeper]
        if sleepers:
            put("stop", SLEEP_FAULTS, rng, rng.choice(sleepers))

    async def verify(rng: random.Random) -> None:
        verified = [member for member in run.stage.members if member.is_verified]
        put("verify_asleep", ["says no"], rng, rng.choice(verified))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.now_and_then, "wake hook", wake)
        nursery.start_soon(run.now_and_then, "sleep hook", sleep)
        nursery.start_soon(run.now_and_then, "stop hook", stop)
        nursery.start_soon(run.now_and_then, "verify_asleep hook", verify)


async def servers(run: Run) -> None:
    """Crash and hang model servers at random, at any time."""

    def hit(rng: random.Random, kind: str, number: signal.Signals) -> None:
        running = [member for member in run.stage.members if run.stage.server_of(member)]
        if not running:
            return
        member = rng.choice(running)
        if (pid := run.stage.server_of(member)) is not None:
            with suppress(ProcessLookupError):
                run.stage.note(kind, member.name)
                os.kill(pid, number)

    async def kill(rng: random.Random) -> None:
        hit(rng, "backend killed", signal.SIGKILL)

    async def stop(rng: random.Random) -> None:
        hit(rng, "backend stopped", signal.SIGSTOP)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.now_and_then, "backend killed", kill)
        nursery.start_soon(run.now_and_then, "backend stopped", stop)


# ---- Operators ----


async def operators(run: Run) -> None:
    """Give orders at random moments."""

    def one_of(rng: random.Random) -> str:
        return rng.choice(run.stage.members).name

    async def switch(rng: random.Random) -> None:
        await control(run, "switch", {"model": one_of(rng)})

    async def sleep(rng: random.Random) -> None:
        await control(run, "sleep", {"model": one_of(rng)})

    async def manual(rng: random.Random) -> None:
        # A client that was refused may get its response a little later.
        with run.record.window("manual"):
            try:
                await control(run, "mode", {"mode": "manual"})
                await trio.sleep(rng.uniform(0.5, 3))
            finally:
                await insist(run, "mode", {"mode": "auto"})

    async def pin(rng: random.Random) -> None:
        with run.record.window("pin"), run.record.window("manual"):
            try:
                await control(run, "pin", {"model": one_of(rng), "wait": rng.random() < 0.5})
                await trio.sleep(rng.uniform(0.2, 2))
            finally:
                await insist(run, "unpin", {})

    async def cancel(rng: random.Random) -> None:
        if requests := await run.requests():
            await cancel_request(run, rng.choice(requests))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.now_and_then, "forced switch", switch)
        nursery.start_soon(run.now_and_then, "manual mode", manual)
        nursery.start_soon(run.now_and_then, "pin", pin)
        nursery.start_soon(run.now_and_then, "sleep", sleep)
        nursery.start_soon(run.now_and_then, "cancel", cancel)


async def cancel_request(run: Run, request: Mapping[str, Any]) -> None:
    """Cancel a request; it may just have ended."""
    begun_at = time.time()
    run.stage.note(f"cancelled {request['id']}", request["model"])
    try:
        with trio.fail_after(20):
            status, body = await run.fetch("DELETE", f"/control/requests/{request['id']}")
    except (*BROKEN, trio.TooSlowError) as error:
        if not await excused_later(run, begun_at):
            run.record.violations.append(f"cancel: {error!r}")
        return
    if status == 200:
        run.record.cancelled[request["id"]] = time.time()
    elif status != 404 and not excused(run, begun_at):
        run.record.violations.append(f"cancel: {status} {body!r}")


def excused(run: Run, begun_at: float) -> bool:
    """Return whether a command may go unanswered: llmux was killed, or full."""
    now = time.time()
    return run.llmux.was_away(begun_at, now) or run.record.was("flood", begun_at, now)


async def excused_later(run: Run, begun_at: float) -> bool:
    """Return the same, once it is known whether llmux has ended."""
    await trio.sleep(2 * DEATH_S)
    return excused(run, begun_at)


async def insist(run: Run, path: str, body: Mapping[str, Any]) -> None:
    """Repeat an order until llmux accepts it: when flooded with connections, it refuses orders."""
    with trio.move_on_after(REQUEST_S) as scope:
        scope.shield = True
        while not await control(run, path, body):  # noqa: ASYNC110 - of another process
            await trio.sleep(DEATH_S)


async def control(run: Run, path: str, body: Mapping[str, Any]) -> bool:
    """Call the control API; an order may fail, but only with a documented error.

    Returns:
        True if llmux has answered.
    """
    begun_at = time.time()
    try:
        with trio.fail_after(REQUEST_S):
            status, answer = await run.fetch("POST", f"/control/{path}", json.dumps(body))
    except trio.TooSlowError:
        run.record.violations.append(f"control {path} {body}: no answer")
        return True
    except BROKEN as error:
        if not await excused_later(run, begun_at):
            run.record.violations.append(f"control {path}: {error!r}")
        return False
    code = "" if status == 200 else code_of(answer)
    if code and code not in REFUSALS.get(path, set()) and not excused(run, begun_at):
        run.record.violations.append(f"control {path} {body}: {status} {answer!r}")
    run.stage.note(f"control {path}" + (f": {status}" if code else ""), body.get("model", ""))
    return code != "too_many_connections"


def code_of(answer: bytes) -> str:
    """Return the code of an error of llmux; "none" for anything else."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(answer)["error"]["code"])
    return "none"


# ---- llmux itself ----


async def kills(run: Run) -> None:
    """Kill llmux (SIGKILL) a few times in the first half, mostly while a hook runs."""
    rng = run.rng("kills")
    count = max(1, min(MOST_KILLS, round(run.seconds / 30)))
    for instant in sorted(rng.uniform(0.15, 0.5) for _ in range(count)):
        await trio.sleep_until(run.began_at + instant * run.seconds)
        if rng.random() < 0.75:
            with trio.move_on_after(3):
                while not run.stage.hook_runs():  # noqa: ASYNC110 - of another process
                    await trio.sleep(0.005)
            await trio.sleep(rng.random() * 0.15)
        with trio.CancelScope(shield=True):
            async with run.file_is_bad:
                pass
            run.record.new_life()
            run.stage.note("llmux killed", "")
            await run.llmux.kill_and_restart(rng.random())
