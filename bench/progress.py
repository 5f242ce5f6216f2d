"""Carry out the runs of a comparison in several processes, and say how far they are."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

RunT = TypeVar("RunT")
Figures = Mapping[str, float]
FiguresT = TypeVar("FiguresT", bound=Figures)

SAY_EVERY_S = 5.0


def progress(
    runs: Sequence[RunT],
    carry_out: Callable[[RunT], tuple[RunT, FiguresT]],
    jobs: int,
    *,
    part: str = "",
) -> Iterator[tuple[RunT, FiguresT]]:
    """Yield each run with its figures, and print progress on stderr every few seconds.

    Args:
        runs: What to carry out.
        carry_out: A function of a module, which other processes can import.
        jobs: Number of processes.
        part: Printed before the numbers.
    """
    about = f"{part}: " if part else ""
    next_at = time.monotonic() + SAY_EVERY_S
    for count, one in enumerate(_carried_out(runs, carry_out, jobs), 1):
        yield one
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + SAY_EVERY_S
            print(f"{about}{count} of {len(runs)} runs", file=sys.stderr, flush=True)


def _carried_out(
    runs: Sequence[RunT], carry_out: Callable[[RunT], tuple[RunT, FiguresT]], jobs: int
) -> Iterator[tuple[RunT, FiguresT]]:
    if jobs == 1:
        yield from map(carry_out, runs)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap_unordered(carry_out, runs)
