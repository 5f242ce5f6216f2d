"""Compare live figures of models that share memory with the simulator's.

`python -m bench.residency.live`: a real llmux serves six stand-in models that share two resources;
their hooks take a second or so. The simulator then gets the same arrivals, and draws the times of
hooks from those that llmux has measured. One run is a matter of luck: a hook that takes some
milliseconds more changes what is evicted. So the simulator runs many times.

Hooks keep a log, from which books are kept: what the models hold together may never be more than
there is, and hooks that touch the same resource may not overlap.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

import trio

from bench.policy_live import KINDS, SERVICE_S, SLOTS, WITHIN, backends, run_live
from bench.processes import PROXY_CORE, running, wait_logged
from bench.table import number, render
from llmux.config import Config, PolicyConfig, parse_config
from llmux.observe.journal import Phase, Switch, read_journal
from llmux.policy import AdaptivePolicy
from llmux.simulate import (
    Arrival,
    CoresidentSetup,
    Outcome,
    Slots,
    poisson,
    simulate_coresident,
    zipf,
)
from llmux.simulate.arrivals import exponential
from llmux.simulate.outcome import mean, percentile
from llmux.switching.memory import GroupMemory, memory_of

REQUESTS = 400
LOAD = 0.8
"""Share of one model's slots that all models together would keep busy."""

RESOURCES = {"gpu0": "80GiB", "gpu1": "80GiB"}


@dataclass(frozen=True)
class Kind:
    """A stand-in model.

    Attributes:
        gpu0, gpu1: What it needs of each, in GiB.
        wake_s, sleep_s: Time of its hooks, in seconds.
    """

    gpu0: int
    gpu1: int
    wake_s: float
    sleep_s: float


MODELS = {
    "chat": Kind(50, 0, 2.0, 0.5),
    "code": Kind(0, 50, 2.0, 0.5),
    "draft": Kind(25, 0, 1.0, 0.4),
    "vision": Kind(40, 0, 1.5, 0.5),
    "speech": Kind(0, 35, 1.2, 0.4),
    "large": Kind(60, 70, 3.0, 1.0),
}
"""The most popular first."""

HOOK = 'note() {{ echo "$LLMUX_MODEL $1" >> hooks.log; }}; note {begun}; sleep {s:g}; note {ended}'

SIMULATIONS = 20
"""Simulated runs for each live one."""

Figures = Mapping[str, float]
NAMES = ("mean", "p99", "wakes")
WAYS = ("one hook at a time", "one on each resource", "all hooks overlap")


@dataclass(frozen=True)
class Live:
    """What a real llmux did.

    Attributes:
        waits: Of each request, in seconds.
        wakes: Number of successful ones.
        wake_s, sleep_s: Times of hooks by model, in seconds.
        violations: Broken promises.
    """

    waits: Sequence[float]
    wakes: int
    wake_s: Mapping[str, Sequence[float]]
    sleep_s: Mapping[str, Sequence[float]]
    violations: Sequence[str]


def config_of(way: str, ports: Sequence[int]) -> dict[str, object]:
    """Return the config of a way."""
    models = {}
    for (name, kind), port in zip(MODELS.items(), ports, strict=True):
        needs = {"gpu0": kind.gpu0 << 30, "gpu1": kind.gpu1 << 30}
        models[name] = {
            "port": port,
            "wake": HOOK.format(begun="wakes", s=kind.wake_s, ended="awake"),
            "sleep": HOOK.format(begun="sleeps", s=kind.sleep_s, ended="asleep"),
            "alive": "true",
            # Hooks also touch what a model needs nothing of, if it says so.
            "needs": {r: n for r, n in needs.items() if n or way == "one hook at a time"},
        }
    return {
        "port": 0,
        "state_dir": "state",
        "resources": RESOURCES,
        "overlapping_hooks": way == "all hooks overlap",
        "models": models,
    }


def traffic(seed: int, requests: int) -> list[Arrival]:
    """Return the arrivals, the same live and simulated."""
    draws = poisson(
        zipf(len(MODELS)),
        LOAD * SLOTS / SERVICE_S,
        exponential(SERVICE_S),
        requests,
        random.Random(seed),
    )
    names = list(MODELS)
    return [Arrival(each.at, names[int(each.model)], each.work_s) for each in draws]


# ---- Live ----


async def run_llmux(folder: Path, way: str, arrivals: Sequence[Arrival]) -> tuple[Live, Config]:
    """Send the arrivals to a real llmux with real hooks."""
    async with backends(KINDS[0], len(MODELS)) as ports:
        plain = config_of(way, ports)
        path = folder / "llmux.json"
        path.write_text(json.dumps(plain))
        log = folder / "llmux.log"
        command = [sys.executable, "-m", "llmux", "-c", str(path)]
        with running(command, core=PROXY_CORE, log=log) as process:
            url = wait_logged(process, r"listening.*url=(http://\S+)", log)
            waits = await run_live(url, arrivals)
    config = parse_config(plain, directory=folder)
    memory = memory_of(config, "default")
    assert memory is not None
    events = [line.split() for line in (folder / "hooks.log").read_text().splitlines()]
    violations = list(broken([(name, event) for name, event in events], memory))
    entries = list(read_journal(folder / "state" / "journal.jsonl"))
    switches = [each for each in entries if isinstance(each, Switch)]
    phases = [each for each in entries if isinstance(each, Phase)]
    found = Live(
        waits,
        sum(each.result == "success" for each in switches),
        times_in(phases, "waking"),
        times_in(phases, "sleeping"),
        violations,
    )
    return found, config


def times_in(phases: Sequence[Phase], state: str) -> Mapping[str, Sequence[float]]:
    """Return how long each stay in a state lasted, by model, in seconds."""
    since: dict[str, float] = {}
    seen: defaultdict[str, list[float]] = defaultdict(list)
    for phase in phases:
        if phase.state == state:
            since[phase.model] = phase.at
        elif phase.left == state and phase.model in since:
            seen[phase.model].append(phase.at - since.pop(phase.model))
    return seen


def broken(events: Sequence[tuple[str, str]], memory: GroupMemory) -> Iterator[str]:
    """Keep books by the hooks' own log; yield what breaks a promise.

    A hook that wakes notes so when it begins, and one that puts to sleep when it has ended.
    """
    room, held, hooks = memory.memory, set[str](), dict[str, str]()
    for model, event in events:
        if event in {"awake", "asleep"}:
            hooks.pop(model, None)
            if event == "asleep":
                held.discard(model)
            continue
        for other, running_one in hooks.items():
            both = memory.touches[model] & memory.touches[other]
            if other == model or (both and not memory.overlapping_hooks):
                yield f"{model} {event} while {other} {running_one}"
        hooks[model] = event
        held.add(model)
        for index, amount in enumerate(room.amounts):
            needs = {name: room.needs[name].awake[index] for name in held}
            if sum(needs.values()) > amount:
                yield f"{model} {event}: {needs} is more than {amount} of {room.resources[index]}"


# ---- Simulated ----


def run_simulated(
    config: Config, live: Live, arrivals: Sequence[Arrival], rng: random.Random
) -> Outcome:
    """Simulate the same, with times of hooks that were measured."""
    memory = memory_of(config, "default")
    assert memory is not None

    def wake_s(model: str) -> float:
        return rng.choice(live.wake_s.get(model, [MODELS[model].wake_s]))

    def sleep_s(model: str) -> float:
        return rng.choice(live.sleep_s.get(model, [MODELS[model].sleep_s]))

    setup = CoresidentSetup(
        memory=memory.memory,
        wake_s=wake_s,
        sleep_s=sleep_s,
        server=lambda _model: Slots(SLOTS),
        policy=lambda: AdaptivePolicy(PolicyConfig()),
        hooks_at_once=math.inf,
        touches=memory.touches,
        overlapping_hooks=memory.overlapping_hooks,
    )
    return simulate_coresident(setup, arrivals)


@dataclass(frozen=True)
class Comparison:
    """One run, live and simulated.

    Attributes:
        live, simulated: mean, p99 and wakes; of the simulator's, the mean over its runs.
    """

    way: str
    seed: int
    live: Figures
    simulated: Figures
    violations: Sequence[str]


def figures_of(waits: Sequence[float], wakes: int) -> Figures:
    """Return the figures of one run."""
    return {"mean": mean(waits), "p99": percentile(waits, 0.99), "wakes": float(wakes)}


def compare(way: str, seed: int, requests: int) -> Comparison:
    """Run one way live, then simulate it."""
    arrivals = traffic(seed, requests)
    with tempfile.TemporaryDirectory() as name:
        live, config = trio.run(run_llmux, Path(name), way, arrivals)
    rng = random.Random(seed)
    outcomes = [run_simulated(config, live, arrivals, rng) for _ in range(SIMULATIONS)]
    runs = [figures_of(each.waits(), each.switches) for each in outcomes]
    simulated = {name: mean([run[name] for run in runs]) for name in runs[0]}
    return Comparison(way, seed, figures_of(live.waits, live.wakes), simulated, live.violations)


def report(found: Sequence[Comparison]) -> str:
    """Return a table, and whether live figures are near the simulated ones."""
    rows = [["", *(head for name in NAMES for head in (name, "simulated", ""))]]
    for one in found:
        cells = [f"{one.way}, seed {one.seed}"]
        for name in NAMES:
            live, simulated = one.live[name], one.simulated[name]
            cells += [number(live), number(simulated), f"{live / simulated - 1:+.1%}"]
        rows.append(cells)
    lines = [render(rows), ""]
    for name in NAMES:
        ratio = geometric_mean([one.live[name] / one.simulated[name] for one in found])
        verdict = "" if name == "p99" else f": within {WITHIN:.0%}: {judge(ratio)}"
        lines.append(f"{name}: live {ratio - 1:+.1%} of simulated over all runs{verdict}")
    violations = [each for one in found for each in one.violations]
    lines += [f"violations: {len(violations)}", *violations[:10]]
    return "\n".join(lines)


def judge(ratio: float) -> str:
    """Return whether a ratio is near enough to 1."""
    return "met" if abs(ratio - 1) <= WITHIN else "SHORT"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.residency.live", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY",
                        help=f"of: {'; '.join(WAYS)}")  # fmt: skip
    options = parser.parse_args(arguments)
    found = []
    for way in options.ways:
        for seed in options.seeds:
            print(f"live: {way}, seed {seed}", file=sys.stderr, flush=True)
            found.append(compare(way, seed, options.requests))
    print(report(found))
    sys.exit(any(one.violations for one in found))


if __name__ == "__main__":
    main()
