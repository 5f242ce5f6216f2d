"""A fleet of real processes: hosts with stand-in models, Envoy, and pickers beside it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import trio
import yaml

from bench.fleet.systems import SLOTS, WAKE_SHARE, System
from bench.fleet_live.gateways import Json, by_homes, picked, round_robin
from bench.fleet_live.processes import envoy_command, started, until_answered
from bench.policy_live import Gate, answer
from llmux.observe.journal import Request, Switch, read_journal
from llmux.pick.config import load_pick_config
from llmux.simulate.arrivals import Arrival

LLMUX = [sys.executable, "-m", "llmux"]

PICKERS: Mapping[str, int] = {
    "round robin": 0,
    "fixed homes": 0,
    "expected wait": 1,
    "3 pickers": 3,
}
"""The ways to choose, with the number of pickers; each picker has an Envoy of its own."""

SIMULATED: Mapping[str, str] = {
    "round robin": "round-robin",
    "fixed homes": "fixed-homes",
    "expected wait": "expected-wait",
    "3 pickers": "3 pickers",
}
"""Their names in `bench.fleet`."""

PORTS = 12
"""Most ports that a fleet needs, besides those of its models."""


@dataclass(frozen=True)
class Live:
    """What became of the requests.

    Attributes:
        waits: Of each answered request, from its sending to its answer, less its own work, in
            seconds.
        line_waits: Of each admitted request, in the line of its host, in seconds.
        switches: Number of successful switches of all hosts.
        errors: Number of requests without a good answer.
    """

    waits: Sequence[float]
    line_waits: Sequence[float]
    switches: int
    errors: int


async def run_live(
    folder: Path, system: System, way: str, arrivals: Sequence[Arrival], ports: Sequence[int]
) -> Live:
    """Send the arrivals to a new fleet.

    Args:
        folder: For its files; exists.
        system: The fleet.
        way: How to choose; a key of PICKERS.
        arrivals: The requests.
        ports: `PORTS` free ones.
    """
    async with running_fleet(folder, system, way, ports) as urls:
        waits, errors = await send(urls, arrivals, system.seed)
    journals = [
        list(read_journal(folder / f"host{number}" / "state" / "journal.jsonl"))
        for number in range(len(system.hosts))
    ]
    entries = [entry for journal in journals for entry in journal]
    lines = [
        entry.admitted - entry.arrived
        for entry in entries
        if isinstance(entry, Request) and entry.admitted is not None
    ]
    switches = sum(isinstance(each, Switch) and each.result == "success" for each in entries)
    return Live(waits, lines, switches, errors)


@asynccontextmanager
async def running_fleet(
    folder: Path, system: System, way: str, ports: Sequence[int]
) -> AsyncIterator[list[str]]:
    """Start a fleet; yields the URLs of its Envoys."""
    free = iter(ports)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(verify=False))
        models = await stack.enter_async_context(running_models(system))
        hosts = [f"127.0.0.1:{next(free)}" for _ in system.hosts]
        async with trio.open_nursery() as starting:
            for number, address in enumerate(hosts):
                write_host(folder / f"host{number}", system, models[number], address)
                log = folder / f"host{number}.log"
                config = folder / f"host{number}" / "llmux.json"
                process = await stack.enter_async_context(started([*LLMUX, "-c", str(config)], log))
                url = f"http://{address}/health"
                starting.start_soon(until_answered, client, url, process, log)
        urls = []
        for number in range(max(1, PICKERS[way])):
            front, listen, web = (f"127.0.0.1:{next(free)}" for _ in range(3))
            config = folder / f"pick{number}.json"
            settings = {"listen": listen, "web": web, "hosts": hosts}
            envoy = {"listen": front, "homes": homes_of(system, way, hosts)}
            config.write_text(json.dumps({**settings, "envoy": envoy}))
            if PICKERS[way]:
                log = folder / f"pick{number}.log"
                picker = await stack.enter_async_context(
                    started([*LLMUX, "pick", "-c", str(config)], log)
                )
                heard = r"host_ready\{[^}]*\} 1\.0.*" * len(hosts)
                await until_answered(client, f"http://{web}/metrics", picker, log, heard)
            bootstrap = folder / f"envoy{number}.yaml"
            bootstrap.write_text(yaml.safe_dump(bootstrap_of(config, system, way, hosts)))
            log = folder / f"envoy{number}.log"
            process = await stack.enter_async_context(started(envoy_command(bootstrap), log))
            urls.append(f"http://{front}")
            await until_answered(client, f"http://{front}/health", process, log)
        yield urls


@asynccontextmanager
async def running_models(system: System) -> AsyncIterator[list[dict[str, int]]]:
    """Serve stand-in models; yields their ports by name, for each host."""
    async with trio.open_nursery() as nursery:
        found = []
        for models in system.hosts:
            ports = {}
            for model in models:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                ports[str(model)] = listener.socket.getsockname()[1]
                serve = partial(answer, Gate(SLOTS))
                nursery.start_soon(partial(trio.serve_listeners, serve, [listener]))
            found.append(ports)
        yield found
        nursery.cancel_scope.cancel()


def write_host(folder: Path, system: System, ports: Mapping[str, int], address: str) -> None:
    """Write the config of a host, with hooks that take the time of a switch."""
    folder.mkdir()
    wake_s = WAKE_SHARE * system.switch_s
    models = {
        name: {
            "port": port,
            "wake": f"sleep {wake_s:.3f}",
            "sleep": f"sleep {system.switch_s - wake_s:.3f}",
            "alive": "true",
            "max_in_flight": SLOTS,
        }
        for name, port in ports.items()
    }
    config = {"port": int(address.rpartition(":")[2]), "state_dir": "state", "models": models}
    (folder / "llmux.json").write_text(json.dumps(config))


def having(system: System, hosts: Sequence[str]) -> dict[str, list[str]]:
    """Return the hosts of each model."""
    found: dict[str, list[str]] = {}
    for address, models in zip(hosts, system.hosts, strict=True):
        for model in models:
            found.setdefault(str(model), []).append(address)
    return found


def homes_of(system: System, way: str, hosts: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the hosts of each model, its home first."""
    places = having(system, hosts)
    if way == "round robin":
        return places
    homes = {model: hosts[index] for model, index in system.homes().items()}
    return {
        model: [homes[model], *(each for each in addresses if each != homes[model])]
        for model, addresses in places.items()
    }


def bootstrap_of(path: Path, system: System, way: str, hosts: Sequence[str]) -> Json:
    """Return the config of Envoy."""
    config = load_pick_config(path)
    if way == "round robin":
        return round_robin(config, having(system, hosts))
    return picked(config) if PICKERS[way] else by_homes(config)


async def send(
    urls: Sequence[str], arrivals: Sequence[Arrival], seed: int
) -> tuple[list[float], int]:
    """Send the arrivals at their times, each to one Envoy at random.

    Returns:
        The wait of each that was answered, in seconds, and the number of the others.
    """
    waits: list[float] = []
    rng = random.Random(seed)
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(timeout=None, limits=limits, verify=False) as client,
        trio.open_nursery() as nursery,
    ):
        begun_at = trio.current_time()
        for arrival in arrivals:
            await trio.sleep_until(begun_at + arrival.at)
            nursery.start_soon(ask, client, rng.choice(urls), arrival, waits)
    return waits, len(arrivals) - len(waits)


async def ask(client: httpx.AsyncClient, url: str, arrival: Arrival, waits: list[float]) -> None:
    """Send one request, and note its wait if it is answered."""
    asked_at = trio.current_time()
    body = {"model": arrival.model, "work_s": arrival.work_s}
    try:
        response = await client.post(f"{url}/v1/chat/completions", json=body)
    except httpx.HTTPError:
        return
    if response.status_code == 200:
        waits.append(trio.current_time() - asked_at - arrival.work_s)
