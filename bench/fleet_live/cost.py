"""What Envoy and a picker add to a small request: `python -m bench.fleet_live.cost`.

One llmux, whose model is awake; the backend and the load are one C program, as in `bench.proxy`.
All proxies are on one core, backend and load on the other. Envoy has one worker. The ways take
turns in each round; figures are medians of the rounds.

- direct: without any proxy
- llmux
- Envoy: it finds the model in the body, and sends it to llmux
- Envoy, picker: as `llmux pick envoy-config` prints it

Then the picker is frozen, and later killed, while one client asks again and again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import yaml

from bench.counters import Meter
from bench.fleet_live.fleet import LLMUX
from bench.fleet_live.gateways import by_homes, picked
from bench.fleet_live.processes import envoy_command
from bench.machine import cpu_model, say
from bench.native import Load, Native, Workload
from bench.processes import PROXY_CORE, START_S, CannotRun, free_ports, running
from bench.proxy.workloads import ratio
from bench.table import number, render
from llmux.pick.config import load_pick_config

ROUNDS = 5

WORKLOADS: Mapping[str, Workload] = {
    "posts": Workload(connections=16, seconds=2),
    "single": Workload(connections=1, seconds=2),
    "paced": Workload(connections=64, seconds=5, chunks=100, interval_us=20_000),
}

ASKED_S = 4.0
"""How long one client asks once the picker is frozen or dead."""


@dataclass(frozen=True)
class Way:
    """A way to the backend.

    Attributes:
        port: Where clients send requests.
        processes: The processes that a request passes, by name.
    """

    port: int
    processes: Mapping[str, int]


@dataclass(frozen=True)
class Turn:
    """One workload on one way.

    Attributes:
        load: What the clients saw.
        cpu_us: CPU time of each process.
    """

    load: Load
    cpu_us: Mapping[str, float]


Found = Mapping[tuple[str, str], Sequence[Turn]]
"""The turns of all rounds, by way and workload."""


@contextmanager
def ways(folder: Path, backend: int) -> Iterator[tuple[Mapping[str, Way], subprocess.Popen[bytes]]]:
    """Start all proxies; yields the ways, and the picker's process."""
    ports = free_ports(5)
    host, web, listen, homes_port, picked_port = ports
    pick_config = folder / "pick.json"
    address = f"127.0.0.1:{host}"
    settings = {
        "listen": f"127.0.0.1:{listen}",
        "web": f"127.0.0.1:{web}",
        "hosts": [address],
        "envoy": {"homes": {"m": [address]}},
    }
    model = {"port": backend, "wake": "true", "sleep": "true", "alive": "true"}
    host_config = folder / "llmux.json"
    host_config.write_text(json.dumps({"port": host, "state_dir": "state", "models": {"m": model}}))
    with ExitStack() as stack:

        def start(name: str, command: Sequence[str], url: str) -> subprocess.Popen[bytes]:
            log = folder / f"{name}.log"
            process = stack.enter_context(running(command, core=PROXY_CORE, log=log))
            wait_answered(process, url, log)
            return process

        llmux = start("llmux", [*LLMUX, "-c", str(host_config)], f"http://{address}/health")
        pick_config.write_text(json.dumps(settings))
        command = [*LLMUX, "pick", "-c", str(pick_config)]
        picker = start("picker", command, f"http://127.0.0.1:{web}/health")
        envoys = {}
        for port, make in ((homes_port, by_homes), (picked_port, picked)):
            envoy = {**settings["envoy"], "listen": f"127.0.0.1:{port}"}  # type: ignore[dict-item]
            pick_config.write_text(json.dumps({**settings, "envoy": envoy}))
            config = folder / f"envoy{port}.yaml"
            config.write_text(yaml.safe_dump(make(load_pick_config(pick_config))))
            url = f"http://127.0.0.1:{port}/health"
            envoys[port] = start(f"envoy{port}", envoy_command(config), url).pid
        yield (
            {
                "direct": Way(backend, {}),
                "llmux": Way(host, {"llmux": llmux.pid}),
                "Envoy": Way(homes_port, {"llmux": llmux.pid, "Envoy": envoys[homes_port]}),
                "Envoy, picker": Way(
                    picked_port,
                    {"llmux": llmux.pid, "Envoy": envoys[picked_port], "picker": picker.pid},
                ),
            },
            picker,
        )


def wait_answered(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a URL answers with 200; raises CannotRun."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise CannotRun(f"{log.stem} does not answer: {log.read_text(errors='replace')[-500:]}")


def take_turn(native: Native, way: Way, work: Workload) -> Turn:
    """Put one way under one load."""
    with ExitStack() as stack:
        meters = {name: stack.enter_context(Meter(pid)) for name, pid in way.processes.items()}
        load = native.load(way.port, work)
    return Turn(load, {name: meter.cost.cpu_us for name, meter in meters.items()})


def measure(native: Native, standing: Mapping[str, Way], rounds: int) -> Found:
    """Play the rounds, every second one backwards."""
    found: dict[tuple[str, str], list[Turn]] = {}
    for way in standing.values():  # wakes the model, and fills all pools
        native.load(way.port, Workload(connections=8, seconds=1))
    for at in range(rounds):
        for key, work in WORKLOADS.items():
            say(f"round {at + 1} of {rounds}: {key}")
            for name in list(standing)[:: -1 if at % 2 else 1]:
                turn = take_turn(native, standing[name], work)
                if turn.load.errors:
                    say(f"{name}: {turn.load.errors} wrong answers")
                found.setdefault((name, key), []).append(turn)
    return found


def report(found: Found) -> str:
    """Return a row for each way; of gaps and latencies also the ratio to direct."""
    rows = [["", "requests/s", "CPU us: llmux", "Envoy", "picker", "latency p50 us", "p99 us",
             "gap p50 ms", "p99 ms", "of direct"]]  # fmt: skip
    for name in dict.fromkeys(way for way, _ in found):
        posts, single, paced = (found[name, key] for key in WORKLOADS)
        base = middle([turn.load.gap_p99_us for turn in found["direct", "paced"]])
        gap = middle([turn.load.gap_p99_us for turn in paced])
        rows.append(
            [
                name,
                number(middle([turn.load.requests / turn.load.seconds for turn in posts])),
                *(number(cpu_of(posts, process)) for process in ("llmux", "Envoy", "picker")),
                number(middle([turn.load.latency_p50_us for turn in single])),
                number(middle([turn.load.latency_p99_us for turn in single])),
                number(ratio(middle([turn.load.gap_p50_us for turn in paced]), 1000)),
                number(ratio(gap, 1000)),
                number(ratio(gap, base or 0)),
            ]
        )
    return render(rows)


def cpu_of(turns: Sequence[Turn], process: str) -> float | None:
    """Return a process's CPU time for a request, in microseconds; None if it is not passed."""
    found = [turn.cpu_us[process] / turn.load.requests for turn in turns if process in turn.cpu_us]
    return middle(found)


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median of those that there are; None if there are none."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


# ---- Without a picker ----


def ask_without(port: int, picker: subprocess.Popen[bytes], number_of: int) -> str:
    """Send the picker a signal, and ask one request after the other; returns a sentence."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    taken_s, errors = [], 0
    with httpx.Client(timeout=30, trust_env=False, verify=False) as client:
        client.post(url, json={"model": "m"})
        picker.send_signal(number_of)
        until = time.monotonic() + ASKED_S
        while (asked_at := time.monotonic()) < until:
            errors += client.post(url, json={"model": "m"}).status_code != 200
            taken_s.append(time.monotonic() - asked_at)
            time.sleep(0.01)
    slow = [each for each in taken_s if each > 0.1]
    return (
        f"{len(taken_s)} requests, {errors} errors; median {median(taken_s) * 1000:.1f} ms, "
        f"longest {max(taken_s) * 1000:.0f} ms, {len(slow)} over 100 ms"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet_live.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        native = Native(folder)
        with native.backend() as backend, ways(folder, backend) as (standing, picker):
            print(report(measure(native, standing, options.rounds)), flush=True)
            port = standing["Envoy, picker"].port
            try:
                print(f"\npicker frozen: {ask_without(port, picker, signal.SIGSTOP)}")
            finally:
                picker.send_signal(signal.SIGCONT)
            time.sleep(3)  # until it is healthy again
            print(f"picker killed: {ask_without(port, picker, signal.SIGKILL)}")
    print(f"\nPython {sys.version.split()[0]}, {cpu_model()}")


if __name__ == "__main__":
    main()
