"""Measure llmux against nginx, HAProxy and Hypercorn: `python -m bench.proxy`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench import proxy
from bench.contestants import Stage, starters
from bench.native import Native
from bench.processes import CORES, CannotRun, end_on_sigterm, raise_descriptor_limit
from bench.proxy.figures import Figures, summarize
from bench.proxy.measure import measure
from bench.proxy.memory import measure_memory
from bench.proxy.report import report
from bench.proxy.storage import save
from bench.proxy.workloads import WORKLOADS

QUICK_SHARE = 0.4
"""Share of each workload's duration with `--quick`."""

QUICK_ROUNDS = 2


def main() -> None:
    options = parse_arguments()
    end_on_sigterm()
    try:
        measure_and_print(options)
    except CannotRun as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=proxy.__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds: a first look")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[*WORKLOADS, "memory"],
                        default=[*WORKLOADS, "memory"], help="workloads to measure")  # fmt: skip
    parser.add_argument("--rust", type=Path, metavar="FILE",
                        help="binary of llmux 2.x in Rust, to take part as rust")  # fmt: skip
    parser.add_argument("--llama-swap", type=Path, metavar="FILE",
                        help="binary of llama-swap, to take part")  # fmt: skip
    options = parser.parse_args()
    if options.quick:
        options.rounds = QUICK_ROUNDS
    return options


def measure_and_print(options: argparse.Namespace) -> None:
    if len(CORES) < 2:
        raise CannotRun("the bench needs two cores: one for the proxies, one for load and backend")
    share = QUICK_SHARE if options.quick else 1
    workloads = {
        key: replace(work, seconds=work.seconds * share)
        for key, work in WORKLOADS.items()
        if key in options.only
    }
    with tempfile.TemporaryDirectory(prefix="llmux-bench-") as name:
        native = Native(Path(name))
        with native.backend() as backend:
            stage = Stage(Path(name), backend, raise_descriptor_limit())
            contestants = starters(options.rust, options.llama_swap)
            rounds = measure(native, stage, contestants, workloads, options.rounds)
            memory: Figures = {}
            if "memory" in options.only:
                memory = measure_memory(native, stage, contestants)
    figures = {**summarize(rounds), **memory}
    print(report(figures, rounds))
    if options.save:
        save(options.save, rounds, figures)


if __name__ == "__main__":
    main()
