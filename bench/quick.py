"""Compare the working tree with another commit, in two minutes: `python -m bench.quick --base REV`.

Both versions serve at the same time, on one core and in front of one backend; the load alternates
between them, and every second round runs in the opposite order. Both run with the packages of this
virtual environment. A figure differs if its ratio lies on one side of 1 in every round: with 8
rounds, noise alone does that once in 128 comparisons. Rates need a quiet machine, CPU time suffers
less, instructions hardly at all.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bench import contestants
from bench.contestants import Contestant, Stage
from bench.counters import why_not_counted
from bench.machine import machine
from bench.native import Native
from bench.processes import CORES, CannotRun, end_on_sigterm, raise_descriptor_limit
from bench.proxy.figures import span
from bench.proxy.measure import play_round, warm_up
from bench.proxy.report import wrong_answers
from bench.proxy.samples import Round, Sample
from bench.proxy.workloads import ROWS, WORKLOADS, Row
from bench.table import number, render

ROOT = Path(__file__).parents[1]
BASE, HEAD = "base", "working tree"
DURATIONS_S = {"paced": 4.0, "posts": 2.0}
ROUNDS = 8
SHOWN = ("paced_cpu", "paced_instructions", "request_cpu", "request_instructions", "requests")
"""The rows that are compared."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    end_on_sigterm()
    try:
        if len(CORES) < 2:
            raise CannotRun("the bench needs two cores: one for llmux, one for load and backend")
        rounds = compare(options.base, options.rounds)
    except CannotRun as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"{BASE}: {describe(options.base)}\n{HEAD}: on {describe('HEAD')}\n")
    print(report(rounds))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quick", description=__doc__)
    parser.add_argument("--base", default="HEAD~1", metavar="REV", help="the other commit")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args(arguments)


def compare(base: str, rounds: int) -> list[Round]:
    """Let both versions take turns; raises CannotRun."""
    workloads = {key: replace(WORKLOADS[key], seconds=s) for key, s in DURATIONS_S.items()}
    with tempfile.TemporaryDirectory(prefix="llmux-quick-") as name, ExitStack() as stack:
        folder = Path(name)
        native = Native(folder)
        backend = stack.enter_context(native.backend())
        descriptors = raise_descriptor_limit()
        sources = {BASE: stack.enter_context(checked_out(base, folder / "source")), HEAD: ROOT}
        standing = []
        for at, (side, source) in enumerate(sources.items()):
            own = folder / str(at)
            own.mkdir()
            stage = Stage(own, backend, descriptors)
            running = stack.enter_context(contestants.llmux(stage, source=source))
            standing.append(Contestant(side, running.port, running.pid))
        for one in standing:
            warm_up(native, one)
        return [play_round(native, standing, workloads, at + 1, rounds) for at in range(rounds)]


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A git worktree of a revision, for as long as the context lasts; raises CannotRun."""
    git("worktree", "add", "--detach", "--quiet", str(folder), revision)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def git(*arguments: str) -> str:
    """Run git in this repository, and return what it prints; raises CannotRun."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotRun(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def describe(revision: str) -> str:
    return git("log", "-1", "--format=%h %s", revision)


def report(rounds: Sequence[Round]) -> str:
    """A line for each figure, and a note where instructions are missing."""
    heads = ("median", BASE, "min to max", HEAD, "min to max", "ratio", "min to max", "")
    lines = [line(row, rounds) for row in ROWS if row.key in SHOWN]
    reason = why_not_counted()
    missing = f"Instructions were not counted ({reason})." if reason else ""
    table = render([heads, *(one for one in lines if one)])
    return "\n\n".join(part for part in (table, missing, wrong_answers(rounds), machine()) if part)


def line(row: Row, rounds: Sequence[Round]) -> list[str]:
    """One figure of both versions, and their ratio; empty if it was not measured."""
    pairs = []
    for one in rounds:
        base, head = (figure(row, one[row.workload][side]) for side in (BASE, HEAD))
        if base and head:
            pairs.append((base, head))
    if not pairs:
        return []
    ratios = [head / base for base, head in pairs]
    cells = [row.title]
    for values in (*zip(*pairs, strict=True), ratios):
        cells += [number(statistics.median(values)), span(values)]
    return [*cells, verdict(ratios)]


def figure(row: Row, sample: Sample) -> float | None:
    return row.value(sample, sample)  # none of the rows shown needs the direct sample


def verdict(ratios: Sequence[float]) -> str:
    """Return whether the working tree's figure is lower or higher in every round, or neither."""
    if max(ratios) < 1:
        return "lower"
    return "higher" if min(ratios) > 1 else "no difference shown"


if __name__ == "__main__":
    main()
