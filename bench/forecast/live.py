"""The same, live: what `GET /control/events` says just before each request, and its real wait.

A real llmux with real hooks (`sleep`) serves in front of backends that process all requests at
once, each the slower. A reader follows the events, as `llmux pick` does; each request notes the
latest outlook of its model. The same traffic without a reader shows what the outlooks cost.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import trio

from bench.forecast.asking import Asked, Asking
from bench.forecast.cases import journals
from bench.policy_live import CONFIG, KINDS, MODEL, backends
from bench.processes import PROXY_CORE, running, wait_logged
from llmux.observe.schemas import Outlook
from llmux.simulate import Arrival, poisson, zipf
from llmux.simulate.arrivals import exponential

RATE = 4.0
MODELS = 5
SERVICE_S = 0.5
HOOK_S = 0.6
"""Of each of the two hooks of a switch, in seconds."""

WARM_S = 30.0
"""Requests before it are not judged: nothing is measured yet."""

KEEP_ALIVE_S = 60.0


@dataclass
class Live:
    """One run.

    Attributes:
        asked: The requests that had to wait.
        at_once: Number of requests that were admitted at once.
        replayed: The requests that had to wait when the run's journal was replayed.
        ages_s: Age of the outlook that a request met, in seconds.
        cpu_share: CPU time of llmux per second, once warm.
    """

    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    replayed: list[Asked] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    cpu_share: float = 0.0


class Follower:
    """Keeps the latest outlook."""

    def __init__(self) -> None:
        self.latest: Outlook | None = None
        self.seen_at = 0.0

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Read the events until cancelled."""
        async with client.stream("GET", "/control/events") as answer:
            kind = ""
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "outlook":
                    self.latest = msgspec.json.decode(value, type=Outlook)
                    self.seen_at = trio.current_time()


async def _ask(client: httpx.AsyncClient, arrival: Arrival, known: Follower, found: Live) -> None:
    latest, age_s = known.latest, trio.current_time() - known.seen_at
    expected_s = None if latest is None else latest.models[arrival.model].wait_secs
    body = {"model": arrival.model, "work_s": arrival.work_s}
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    waited_s = float(response.headers["x-llmux-wait-ms"]) / 1000
    if arrival.at < WARM_S:
        return
    if latest is not None:
        found.ages_s.append(age_s)
    if waited_s or expected_s:
        found.asked.append(Asked(expected_s, waited_s))
    else:
        found.at_once += 1


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def arrivals_of(secs: float, rate: float, models: int) -> list[Arrival]:
    """Return the traffic of a run, the same each time."""
    shares, rng = zipf(models), random.Random(5)
    service = exponential(SERVICE_S)
    return list(poisson(shares, rate, service, int(rate * secs), rng))


@asynccontextmanager
async def serving(policy: str, models: int, directory: Path) -> AsyncIterator[tuple[str, int]]:
    """Serve from a folder; yields the URL and the process id."""
    async with backends(KINDS[1], models) as ports:
        told = "".join(
            MODEL.format(name=index, port=port, hook_s=HOOK_S) for index, port in enumerate(ports)
        )
        config = directory / "llmux.yaml"
        config.write_text(CONFIG.format(directory=directory, policy=policy, models=told))
        log = directory / "llmux.log"
        command = [sys.executable, "-m", "llmux", "-c", str(config)]
        with running(command, core=PROXY_CORE, log=log) as process:
            yield wait_logged(process, r"listening.*url=(http://\S+)", log), process.pid


async def run_live(
    policy: str, arrivals: Sequence[Arrival], *, models: int = MODELS, readers: int = 1
) -> Live:
    """Send the arrivals at their times, with as many readers of events; then replay the journal."""
    found = Live()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        await _send(policy, arrivals, found, directory=directory, models=models, readers=readers)
        for case in journals([directory / "state" / "journal.jsonl"]):
            found.replayed += case.run(Asking(share=1.0, since=WARM_S))
    return found


async def _send(
    policy: str,
    arrivals: Sequence[Arrival],
    found: Live,
    *,
    directory: Path,
    models: int,
    readers: int,
) -> None:
    known = Follower()
    limits = httpx.Limits(max_connections=None)
    async with (
        serving(policy, models, directory) as (url, pid),
        httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client,
        trio.open_nursery() as beside,
    ):
        for _ in range(readers):
            beside.start_soon(known.follow, client)
        begun_at = trio.current_time()
        warm_cpu_s = 0.0
        async with trio.open_nursery() as requests:
            for arrival in arrivals:
                if arrival.at >= WARM_S and not warm_cpu_s:
                    warm_cpu_s, warm_at = cpu_s(pid), trio.current_time()
                await trio.sleep_until(begun_at + arrival.at)
                requests.start_soon(_ask, client, arrival, known, found)
            found.cpu_share = (cpu_s(pid) - warm_cpu_s) / (trio.current_time() - warm_at)
        beside.cancel_scope.cancel()


async def idle_share(models: int, readers: int, secs: float = 20.0) -> float:
    """Return the CPU time per second of a server without requests."""
    known = Follower()
    with tempfile.TemporaryDirectory() as name:
        return await _idle(models, readers, secs, known, Path(name))


async def _idle(models: int, readers: int, secs: float, known: Follower, directory: Path) -> float:
    async with (
        serving("adaptive", models, directory) as (url, pid),
        httpx.AsyncClient(base_url=url, timeout=None) as client,
        trio.open_nursery() as beside,
    ):
        for model in range(models):  # so that each has costs, and forecasts
            body = {"model": str(model), "work_s": 0.0}
            (await client.post("/v1/chat/completions", json=body)).raise_for_status()
        for _ in range(readers):
            beside.start_soon(known.follow, client)
        await trio.sleep(2)
        began_s, began_at = cpu_s(pid), trio.current_time()
        await trio.sleep(secs)
        share = (cpu_s(pid) - began_s) / (trio.current_time() - began_at)
        beside.cancel_scope.cancel()
    return share
