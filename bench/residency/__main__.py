"""Compare policies for models that share memory: `python -m bench.residency`.

Several models are awake as far as memory allows, and each policy gets the same traffic. Figures are
ratios to `lru`, which evicts the least recently used models, busy ones too, for the oldest request:
the geometric mean over the systems of each run's mean wait, 99th percentile, longest wait and
number of wakes, and the worst ratio of a mean wait. `alone` is llmux with one model awake at a
time. `--systems` chooses the traffic: `usual`, `heavy` (a few requests take very long), `low` (low
loads) or `recorded` (traces: `--traces` names their directory).

Random numbers come from seeds, so that results are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from bench.progress import progress
from bench.residency.baselines import BASELINES
from bench.residency.cases import Run, System, grid, heavy_tails, low_loads, recorded
from bench.residency.report import table

REQUESTS, QUICK_REQUESTS, QUICK_SYSTEMS = 3000, 600, 12
NAMES = ("adaptive", "unbounded", *BASELINES, "alone")
SHOWN = tuple(name for name in NAMES if name != "lru")
KINDS = {"usual": grid, "heavy": heavy_tails, "low": low_loads}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    systems = systems_of(options)
    if options.quick:
        systems = random.Random(0).sample(systems, QUICK_SYSTEMS)
    runs = [
        Run(system, policy, hooks)
        for hooks in options.hooks
        for system in systems
        for policy in ("lru", *options.policies)
    ]
    found = dict(progress(runs, figures_of, options.jobs))
    for hooks in options.hooks:
        print(f"{len(systems)} systems, hooks at a time: {hooks}\n")
        print(table(found, systems, options.policies, hooks), end="\n\n")
    if options.save:
        rows = [{"run": str(run), **figures} for run, figures in found.items()]
        options.save.write_text(json.dumps(rows, indent=1) + "\n")


def systems_of(options: argparse.Namespace) -> list[System]:
    requests = options.requests or (QUICK_REQUESTS if options.quick else REQUESTS)
    if options.systems == "recorded":
        return recorded(requests, options.seed, options.traces)
    return KINDS[options.systems](requests, options.seed)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.residency", description=__doc__)
    parser.add_argument("--policies", nargs="+", choices=SHOWN, default=SHOWN, metavar="NAME",
                        help=f"of {', '.join(SHOWN)}")  # fmt: skip
    parser.add_argument("--hooks", nargs="+", type=int, default=[1, 8], help="hooks at a time")
    parser.add_argument("--systems", choices=(*KINDS, "recorded"), default="usual")
    parser.add_argument("--traces", type=Path, default=Path("traces"), help="their directory")
    parser.add_argument("--requests", type=int, help="of each run")
    parser.add_argument("--quick", action="store_true", help="a few short runs: a first look")
    parser.add_argument("--seed", type=int, default=1, help="the first of all seeds")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every run as JSON")
    return parser.parse_args(arguments)


def figures_of(run: Run) -> tuple[Run, dict[str, float]]:
    return run, run.figures()


if __name__ == "__main__":
    main()
