"""Compare live and simulated waits of the same traffic: `python -m bench.policies --live`.

A real llmux, with `sleep` for hooks, serves in front of backends that behave as the simulator's do:
with a number of slots, or all requests at once and each the slower. The simulator then gets the
same arrivals, and the hook times that llmux has measured. The waits to compare are in llmux's queue
and inside the backend: the time to the response, less the request's own work.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httptools
import httpx
import trio
from trio_util import RepeatedEvent

from bench.processes import PROXY_CORE, running, wait_logged
from bench.table import number, render
from llmux.config import PolicyConfig
from llmux.observe.journal import Switch, read_journal
from llmux.policy import POLICIES
from llmux.simulate import Arrival, Outcome, Setup, Sharing, Slots, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.backends import Server
from llmux.simulate.outcome import mean, percentile

MODELS = 3
HOOK_S = 1.0
"""Duration of each of the two hooks of a switch."""

SLOTS = 4
SERVICE_S = 1.0
LOAD = 0.5
REQUESTS = 300
POLICIES_LIVE = ("fifo", "adaptive")
WITHIN = 0.15
"""Largest accepted relative difference of live and simulated means."""

CONFIG = """
port: 0
state_dir: {directory}/state
policy: {{name: {policy}}}
models:
{models}
"""
MODEL = '  "{name}": {{port: {port}, wake: sleep {hook_s}, sleep: sleep {hook_s}, alive: "true"}}\n'


class Gate:
    """A backend that processes some requests at a time.

    Args:
        slots: Their number.
    """

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = trio.CapacityLimiter(slots)

    async def work(self, seconds: float) -> None:
        """Take a request's time."""
        async with self._slots:
            await trio.sleep(seconds)


class Shared:
    """A backend that processes all requests at once, each the slower the more there are."""

    def __init__(self) -> None:
        self._busy = 0
        self._changed = RepeatedEvent()

    async def work(self, seconds: float) -> None:
        """Take a request's time."""
        self._count(1)
        try:
            left_s = seconds
            while left_s > 0:
                speed, since = sharing_speed(self._busy), trio.current_time()
                with trio.move_on_after(left_s / speed):
                    await self._changed.wait()
                left_s -= speed * (trio.current_time() - since)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._busy += change
        self._changed.set()


def sharing_speed(busy: int) -> float:
    """Total speed, in requests that run alone: that of SLOTS slots."""
    return min(1.0, SLOTS / busy)


@dataclass(frozen=True)
class Kind:
    """One kind of backend, live and simulated."""

    name: str
    live: Callable[[], Gate | Shared]
    simulated: Callable[[str], Server]


KINDS = (
    Kind("slots", Gate, lambda _model: Slots(SLOTS)),
    Kind("sharing", Shared, lambda _model: Sharing(sharing_speed)),
)


class Body:
    """Reads requests, and tells when a body is complete."""

    def __init__(self) -> None:
        self.data = b""
        self.is_done = False

    def on_body(self, data: bytes) -> None:
        """A piece of it."""
        self.data += data

    def on_message_complete(self) -> None:
        """Its end."""
        self.is_done = True


async def answer(backend: Gate | Shared, stream: trio.SocketStream) -> None:
    """Answer the requests of one connection, each after the work it asks for."""
    async with stream:
        while True:
            body = Body()
            parser = httptools.HttpRequestParser(body)
            while not body.is_done:
                data = await stream.receive_some()
                if not data:
                    return
                parser.feed_data(data)
            await backend.work(json.loads(body.data)["work_s"])
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@asynccontextmanager
async def backends(kind: Kind, models: int = MODELS) -> AsyncIterator[list[int]]:
    """A backend for each model; yields their ports."""
    async with trio.open_nursery() as nursery:
        ports = []
        for _ in range(models):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ports.append(listener.socket.getsockname()[1])
            serve = partial(trio.serve_listeners, partial(answer, kind.live()), [listener])
            nursery.start_soon(serve)
        yield ports
        nursery.cancel_scope.cancel()


def traffic(seed: int, requests: int) -> list[Arrival]:
    """The arrivals, the same for each policy and backend."""
    rate = LOAD * SLOTS / SERVICE_S
    rng = random.Random(seed)
    return list(poisson(zipf(MODELS), rate, exponential(SERVICE_S), requests, rng))


async def ask(client: httpx.AsyncClient, arrival: Arrival, waits: list[float]) -> None:
    """Send one request, and note its wait."""
    asked_at = trio.current_time()
    body = {"model": arrival.model, "work_s": arrival.work_s}
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    waits.append(trio.current_time() - asked_at - arrival.work_s)


async def run_live(url: str, arrivals: Sequence[Arrival]) -> list[float]:
    """Send the arrivals at their times; returns the wait of each, in seconds."""
    waits: list[float] = []
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client,
        trio.open_nursery() as nursery,
    ):
        begun_at = trio.current_time()
        for arrival in arrivals:
            await trio.sleep_until(begun_at + arrival.at)
            nursery.start_soon(ask, client, arrival, waits)
    return waits


@dataclass(frozen=True)
class Comparison:
    """One policy on one kind of backend."""

    kind: str
    policy: str
    live_waits: Sequence[float]
    live_switches: int
    simulated: Outcome

    @property
    def ratio(self) -> float:
        """Live mean wait over simulated."""
        return mean(self.live_waits) / mean(self.simulated.waits())


async def compare(kind: Kind, policy: str, arrivals: Sequence[Arrival]) -> Comparison:
    """Run a policy live, then simulate it with the hook times that were measured."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with backends(kind) as ports:
            models = "".join(
                MODEL.format(name=index, port=port, hook_s=HOOK_S)
                for index, port in enumerate(ports)
            )
            config = directory / "llmux.yaml"
            config.write_text(CONFIG.format(directory=directory, policy=policy, models=models))
            log = directory / "llmux.log"
            command = [sys.executable, "-m", "llmux", "-c", str(config)]
            with running(command, core=PROXY_CORE, log=log) as process:
                url = wait_logged(process, r"listening.*url=(http://\S+)", log)
                waits = await run_live(url, arrivals)
        entries = list(read_journal(directory / "state" / "journal.jsonl"))
    switches = [entry for entry in entries if isinstance(entry, Switch)]
    costs = hook_times(switches)
    setup = Setup(
        models=[str(index) for index in range(MODELS)],
        cost=lambda source, target: costs.get((source, target), 2 * HOOK_S),
        server=kind.simulated,
        policy=lambda: POLICIES[policy](PolicyConfig(name=policy)),
    )
    return Comparison(kind.name, policy, waits, len(switches), simulate(setup, arrivals))


def hook_times(switches: Sequence[Switch]) -> Mapping[tuple[str | None, str], float]:
    """Mean hook time of each pair."""
    seen: dict[tuple[str | None, str], list[float]] = {}
    for switch in switches:
        seen.setdefault((switch.source, switch.target), []).append(switch.hooks_s)
    return {pair: mean(times) for pair, times in seen.items()}


def live(*, requests: int = REQUESTS, seed: int = 1) -> list[Comparison]:
    """Run all kinds and policies, one after the other; some minutes."""
    arrivals = traffic(seed, requests)
    found = []
    for kind in KINDS:
        for policy in POLICIES_LIVE:
            print(f"live: {kind.name}, {policy}", file=sys.stderr, flush=True)
            found.append(trio.run(compare, kind, policy, arrivals))
    return found


def report(found: Sequence[Comparison]) -> str:
    """Report live and simulated waits, and the lead of adaptive over FIFO in both."""
    rows = [
        (
            "backends, policy",
            "mean wait",
            "simulated",
            "ratio",
            "p99",
            "simulated",
            "switches",
            "simulated",
        )
    ]
    for one in found:
        simulated = one.simulated.waits()
        rows.append(
            (
                f"{one.kind}, {one.policy}",
                number(mean(one.live_waits)),
                number(mean(simulated)),
                f"{one.ratio:.3f}",
                number(percentile(one.live_waits, 0.99)),
                number(percentile(simulated, 0.99)),
                str(one.live_switches),
                str(one.simulated.switches),
            )
        )
    lines = [render(rows), ""]
    for kind in KINDS:
        fifo, adaptive = (one for one in found if one.kind == kind.name)
        ahead = mean(adaptive.live_waits) / mean(fifo.live_waits)
        predicted = mean(adaptive.simulated.waits()) / mean(fifo.simulated.waits())
        lines.append(f"{kind.name}: adaptive / fifo {ahead:.3f} live, {predicted:.3f} simulated")
    worst = max(abs(one.ratio - 1) for one in found)
    met = "met" if worst <= WITHIN else "SHORT"
    lines.append(f"live within {WITHIN:.0%} of simulated: at most {worst:.1%} apart: {met}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(live()))
