"""Compare the policies by simulation: `python -m bench.policies`.

Every policy gets the same traffic in `llmux.simulate`; figures are ratios to the FIFO policy of the
original llmux. The parts:

- grid A: long requests in large batches; grid B: short requests, mostly under low load
- traces: recorded traffic
- closed: agents that wait for each response
- starvation: the longest waits beside a model that never idles
- limited: grid A with `max_in_flight`
- frozen: models that sleep with requests inside them
- random: the longest waits in randomly drawn traffic

Random numbers come from seeds, so that results are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.policy_cases.closed import closed
from bench.policy_cases.grids import grid_a, grid_b, limited
from bench.policy_cases.setup import BASELINE, NAMES, UNBOUNDED, Case, Figures
from bench.policy_cases.starvation import starvation
from bench.policy_cases.traces import traces
from bench.policy_frozen import REQUESTS as FROZEN_REQUESTS
from bench.policy_frozen import frozen, report_frozen
from bench.policy_live import live
from bench.policy_live import report as report_live
from bench.policy_random import RandomCase, report_random
from bench.policy_report import (
    ADAPTIVE,
    Report,
    Results,
    WaitTargets,
    report_closed,
    report_starvation,
    report_waits,
)
from bench.table import render
from llmux import __version__
from llmux.policy import POLICIES

REQUESTS, QUICK_REQUESTS = 8000, 1000
"""Requests in each run of a grid."""

RANDOM_CASES, QUICK_CASES = 1600, 12
"""Number of random runs; and with `--quick`, of random runs or of cases of a grid."""

SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Scale:
    """The amount of work to do.

    Attributes:
        requests: Requests in each run of a grid; None for the number behind the documented figures.
        quick: Run a few short cases of each part: a first look, not a basis for conclusions.
        seed: The first seed; later cases count up from it.
        traces: Directory of the recorded traffic.
    """

    requests: int | None = None
    quick: bool = False
    seed: int = 1
    traces: Path = Path("traces")

    def grid(self, make: Callable[[int, int], Sequence[Case]]) -> Sequence[Case]:
        """The whole grid, or the same few cases of it each time."""
        requests = self.requests or (QUICK_REQUESTS if self.quick else REQUESTS)
        cases = make(requests, self.seed)
        if not self.quick:
            return cases
        return [cases[at] for at in sorted(random.Random(0).sample(range(len(cases)), QUICK_CASES))]

    def recorded(self) -> Sequence[Case]:
        """The traces, whole unless `--requests` or `--quick` shortens them."""
        requests = self.requests or (QUICK_REQUESTS if self.quick else None)
        return traces(self.traces, requests)

    def closed(self) -> Sequence[Case]:
        """The closed loops."""
        return closed(1.0 if self.quick else 6.0, self.seeds(2 if self.quick else 5))

    def starvation(self) -> Sequence[Case]:
        """The probes."""
        return starvation(1.0 if self.quick else 12.0, self.seeds(1 if self.quick else 3))

    def frozen(self) -> Sequence[Case]:
        """Models that sleep with their requests."""
        return frozen(QUICK_REQUESTS if self.quick else FROZEN_REQUESTS, self.seed)

    def random(self) -> Sequence[Case]:
        """Cases whose every parameter is drawn at random."""
        count = QUICK_CASES if self.quick else RANDOM_CASES
        return [RandomCase(seed) for seed in self.seeds(count)]

    def seeds(self, count: int) -> range:
        """Seeds that count up from the first."""
        return range(self.seed, self.seed + count)


@dataclass(frozen=True)
class Part:
    """One kind of traffic, with its tables and targets.

    Attributes:
        cases: The traffic.
        report: Tables and targets from all runs.
        more: Policies that only this part runs.
    """

    cases: Callable[[Scale], Sequence[Case]]
    report: Callable[[Results], Report]
    more: tuple[str, ...] = ()


GRID_A_TARGETS = WaitTargets(mean=0.65, p99=0.60, worst=1.10)
GRID_B_TARGETS = WaitTargets(mean=0.75, p99=0.70)
TRACE_TARGETS = WaitTargets(mean=0.65, p99=0.65, worst=1.0)

PARTS: Mapping[str, Part] = {
    "grid_a": Part(
        lambda scale: scale.grid(grid_a),
        partial(report_waits, "grid A", targets=GRID_A_TARGETS),
        (UNBOUNDED,),
    ),
    "grid_b": Part(
        lambda scale: scale.grid(grid_b), partial(report_waits, "grid B", targets=GRID_B_TARGETS)
    ),
    "traces": Part(Scale.recorded, partial(report_waits, "traces", targets=TRACE_TARGETS)),
    "closed": Part(Scale.closed, partial(report_closed, "closed loop")),
    "starvation": Part(Scale.starvation, partial(report_starvation, "starvation")),
    "limited": Part(
        lambda scale: scale.grid(limited),
        partial(report_waits, "grid A, max_in_flight 8", targets=GRID_A_TARGETS),
    ),
    "frozen": Part(Scale.frozen, partial(report_frozen, "frozen requests")),
    "random": Part(Scale.random, partial(report_random, "random traffic")),
}


def main() -> None:
    options = parse_arguments()
    if options.live:
        print(report_live(live()))
        return
    try:
        run_and_print(options)
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, default=[*PARTS],
                        help=f"parts to run: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--policies", type=policy_names, default=[*POLICIES],
                        help=f"separated by commas, of {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--requests", type=at_least(2), help="of each run of a grid or trace")
    parser.add_argument("--quick", action="store_true", help="a few short runs: a first look")
    parser.add_argument("--seed", type=int, default=Scale.seed, help="the first of all seeds")
    parser.add_argument("--jobs", type=at_least(1), default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every run as JSON")
    parser.add_argument("--traces", type=Path, metavar="DIR", default=Scale.traces)
    parser.add_argument("--verbose", action="store_true", help="adaptive, by axis")
    parser.add_argument("--live", action="store_true",
                        help="instead: a real llmux against its simulation (minutes)")  # fmt: skip
    return parser.parse_args()


def at_least(least: int) -> Callable[[str], int]:
    """A whole number from the command line."""

    def number(value: str) -> int:
        if not value.isdecimal() or int(value) < least:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from {least} on")
        return int(value)

    return number


def policy_names(value: str) -> list[str]:
    """From the command line."""
    names = value.split(",")
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(NAMES)}")
    return [name for name in names if name != BASELINE]


def run_and_print(options: argparse.Namespace) -> None:
    scale = Scale(options.requests, options.quick, options.seed, options.traces)
    reports, saved = [], {}
    # Report unusable files before the runs, which take hours.
    try:
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            options.save.open("a").close()
        traffic = {name: PARTS[name].cases(scale) for name in options.only}
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for name, cases in traffic.items():
        part = PARTS[name]
        if not cases:
            print(f"{name}: nothing in {options.traces}: left out\n")
            continue
        policies = list(dict.fromkeys([BASELINE, *options.policies, *part.more]))
        results = run_all(name, cases, policies, options.jobs)
        report = part.report(results)
        reports.append(report)
        saved[name] = {**report.data, "runs": [*run_rows(results)]}
        print(page(report, verbose=options.verbose), end="\n\n", flush=True)
    verdicts = [verdict for report in reports for verdict in report.verdicts]
    if verdicts:
        heads = [f"target of {ADAPTIVE}", "measured", ""]
        print(render([heads, *(verdict.row() for verdict in verdicts)]), end="\n\n")
    print(versions())
    if options.save:
        data = {"versions": versions(), "targets": verdicts, "parts": saved}
        options.save.write_text(json.dumps(data, indent=1, default=plain) + "\n")


def page(report: Report, *, verbose: bool) -> str:
    """Format one part for people."""
    return "\n\n".join([report.title, *report.tables, *(report.details if verbose else [])])


def run_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Every run, in the form that is saved; each case contains its seed."""
    for case, by_policy in results.items():
        for policy, figures in by_policy.items():
            yield {"case": case, "policy": policy, **figures}


def plain(value: Any) -> Any:
    """Convert a value that JSON cannot represent."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def versions() -> str:
    return f"llmux {__version__}, Python {platform.python_version()}; simulated, by seed"


# ---- Running ----

Task = tuple[Case, str]


def run_all(name: str, cases: Sequence[Case], policies: Sequence[str], jobs: int) -> Results:
    """Run every policy on every case, in `jobs` processes."""
    # Ordered by case: neighbouring runs read the same trace, which is cached.
    tasks = [(case, policy) for case in cases for policy in policies]
    found: dict[Case, dict[str, Figures]] = {case: {} for case in cases}
    for (case, policy), figures in progress(name, len(tasks), ran(tasks, jobs)):
        found[case][policy] = figures
    # Runs end in random order.
    return {case: {policy: of[policy] for policy in policies} for case, of in found.items()}


def ran(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Figures]]:
    """Yield results in the order in which runs end."""
    if jobs == 1:
        yield from map(run_one, tasks)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap_unordered(run_one, tasks)


def run_one(task: Task) -> tuple[Task, Figures]:
    case, policy = task
    return task, case.run(policy)


def progress(
    name: str, total: int, ended: Iterator[tuple[Task, Figures]]
) -> Iterator[tuple[Task, Figures]]:
    """Print progress on stderr every few seconds."""
    next_at = time.monotonic() + SAY_EVERY_S
    for count, one in enumerate(ended, 1):
        yield one
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + SAY_EVERY_S
            print(f"{name}: {count} of {total} runs", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
