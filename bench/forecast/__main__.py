"""`python -m bench.forecast`: how far off expected waits are, and what they cost."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import trio

from bench.forecast.asking import Asked, Asking
from bench.forecast.cases import ASKED, Case, journals, synthetic, traces
from bench.forecast.live import MODELS, RATE, Live, arrivals_of, idle_share, run_live
from bench.machine import say
from bench.table import number, render

POLICIES = ("adaptive", "fifo", "exhaustive")
WITHIN = 0.3
"""Largest accepted median of the relative errors."""

FEWEST = 20
"""With fewer requests that waited, a case is not judged."""


def shares(found: Sequence[Asked]) -> tuple[float, float]:
    """Return the median error, and the share of the errors that are within `WITHIN`."""
    errors = [asked.error for asked in found]
    return median(errors), sum(error <= WITHIN for error in errors) / len(errors)


def simulated(cases: Iterable[Case], asked: int) -> tuple[str, list[float]]:
    """Run cases; returns their table, and the median error of each."""
    rows = [("traffic", "policy", "waited", "median wait s", "median error", "within", "CPU ms")]
    medians = []
    for case in cases:
        asking = Asking(share=min(1.0, asked / 1000))
        found = case.run(asking)
        if len(found) < FEWEST:
            continue
        error, within = shares(found)
        medians.append(error)
        rows.append(
            (
                case.label,
                case.policy,
                str(len(found)),
                number(median(each.waited_s for each in found)),
                f"{error:.0%}",
                f"{within:.0%}",
                number(1000 * median(asking.took_s)),
            )
        )
        say(" ".join(rows[-1]))
    return render(rows), medians


def live(policies: Sequence[str], secs: float) -> Iterator[str]:
    """Run live; yields lines to print."""
    arrivals = arrivals_of(secs, RATE, MODELS)
    for policy in policies:
        read = trio.run(partial(run_live, policy, arrivals))
        alone = trio.run(partial(run_live, policy, arrivals, readers=0))
        yield _live_line(policy, read, alone)
    for models in (MODELS, 16):
        without, with_one = (trio.run(idle_share, models, readers) for readers in (0, 1))
        yield f"idle, {models} models: CPU {without:.2%}, with a reader {with_one:.2%}"


def _live_line(policy: str, read: Live, alone: Live) -> str:
    error, within = shares(read.asked)
    return (
        f"live, {policy}: {len(read.asked)} waited (median "
        f"{median(each.waited_s for each in read.asked):.2f} s), {read.at_once} did not; "
        f"median error {error:.0%}, {within:.0%} within {WITHIN:.0%}; its journal replayed: "
        f"median error {shares(read.replayed)[0]:.0%} of {len(read.replayed)}; outlook's age "
        f"{median(read.ages_s):.2f} s; "
        f"CPU {alone.cpu_share:.1%}, with a reader {read.cpu_share:.1%}"
    )


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.forecast", description=__doc__)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--traces", type=Path, help="the folder with the traces")
    parser.add_argument("--requests", type=int, default=1500, help="of each trace")
    parser.add_argument("--journal", nargs="+", type=Path, default=[], help="replay these")
    parser.add_argument("--live", action="store_true", help="run live instead; some minutes")
    parser.add_argument("--secs", type=float, default=150.0, help="of each live run")
    chosen = parser.parse_args()
    if chosen.live:
        for line in live(chosen.policies, chosen.secs):
            print(line, flush=True)
        return
    cases: Iterable[Case] = (
        journals(chosen.journal) if chosen.journal else synthetic(chosen.policies)
    )
    if chosen.traces is not None:
        cases = chain(cases, traces(chosen.traces, chosen.policies, chosen.requests))
    table, medians = simulated(cases, ASKED)
    print(table)
    met = sum(each <= WITHIN for each in medians)
    print(f"median error within {WITHIN:.0%} in {met} of {len(medians)} cases, "
          f"median of the cases {median(medians):.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
