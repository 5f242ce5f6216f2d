"""Compare ways to choose among hosts: `python -m bench.fleet`.

Each way gets the same traffic on the same simulated hosts, which run llmux's own policy. The parts:

- live: what the tests with a real proxy run, over three seeds: switches / mean wait in seconds
- steady: 72 fleets with steady shares, as ratios to round robin: the geometric mean over the fleets
  of each run's mean wait, 99th percentile and switches, and the worst ratio of a mean wait
- turning: 24 fleets whose shares turn half way; `fixed-homes` knows the first half

Waits are those in llmux's line. Random numbers come from seeds, so that results are the same on
every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.fleet.systems import BASELINE, ROUTERS, Run, System, as_live, grid, ratio, turning
from bench.progress import progress
from bench.table import number, render
from llmux.simulate.outcome import mean

REQUESTS, QUICK_REQUESTS, QUICK_SYSTEMS = 600, 150, 6
SEEDS = 3
KINDS = {"steady": grid, "turning": turning}

Found = Mapping[Run, Mapping[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    names = list(dict.fromkeys((BASELINE, *options.routers)))
    saved = {}
    for part in options.only:
        systems = systems_of(part, options)
        runs = [Run(system, name) for system in systems for name in names]
        found = dict(progress(runs, figures_of, options.jobs, part=part))
        table = live_table if part == "live" else ratio_table
        print(f"{part}\n\n{table(found, systems, names)}", end="\n\n", flush=True)
        saved[part] = [
            {"system": run.system.name, "seed": run.system.seed, "router": run.router, **figures}
            for run, figures in found.items()
        ]
    if options.save:
        options.save.write_text(json.dumps(saved, indent=1) + "\n")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=("live", *KINDS), metavar="PART",
                        default=["live", *KINDS], help="of live, steady, turning")  # fmt: skip
    parser.add_argument("--routers", nargs="+", choices=tuple(ROUTERS), metavar="NAME",
                        default=list(ROUTERS), help=f"of {', '.join(ROUTERS)}")  # fmt: skip
    parser.add_argument("--requests", type=int, help="of each run of steady and turning")
    parser.add_argument("--quick", action="store_true", help="a few short runs: a first look")
    parser.add_argument("--seed", type=int, default=1, help="the first of all seeds")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every run as JSON")
    return parser.parse_args(arguments)


def systems_of(part: str, options: argparse.Namespace) -> list[System]:
    if part == "live":
        seeds = range(options.seed, options.seed + (1 if options.quick else SEEDS))
        return [system for seed in seeds for system in as_live(seed)]
    requests = options.requests or (QUICK_REQUESTS if options.quick else REQUESTS)
    systems = KINDS[part](requests, options.seed)
    return random.Random(0).sample(systems, QUICK_SYSTEMS) if options.quick else systems


def figures_of(run: Run) -> tuple[Run, Mapping[str, float]]:
    return run, run.figures()


def live_table(found: Found, systems: Sequence[System], names: Sequence[str]) -> str:
    """Return switches / mean wait, over all seeds."""
    titles = list(dict.fromkeys(system.name for system in systems))
    rows = [["router", *titles]]
    for name in names:
        cells = []
        for title in titles:
            runs = [found[Run(s, name)] for s in systems if s.name == title]
            switches = mean([run["switches"] for run in runs])
            cells.append(f"{switches:.0f} / {mean([run['mean'] for run in runs]):.2f}")
        rows.append([name, *cells])
    return render(rows)


def ratio_table(found: Found, systems: Sequence[System], names: Sequence[str]) -> str:
    """Return ratios to round robin, and the mean of all mean waits in seconds."""
    rows = [["router", "mean", "p99", "switches", "worst", "seconds"]]
    for name in names:
        runs = [found[Run(system, name)] for system in systems]
        bases = [found[Run(system, BASELINE)] for system in systems]
        cells = [
            ratio([run[key] for run in runs], [base[key] for base in bases])
            for key in ("mean", "p99", "switches")
        ]
        worst = max(ratio([r["mean"]], [b["mean"]]) for r, b in zip(runs, bases, strict=True))
        seconds = mean([run["mean"] for run in runs])
        rows.append([name, *map(number, [*cells, worst, seconds])])
    return render(rows)


if __name__ == "__main__":
    main()
