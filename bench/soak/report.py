"""Prints the tables of a run."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from bench.soak.ask import describe
from bench.soak.checks import growth_bytes
from bench.soak.record import Sample
from bench.soak.run import Run
from bench.soak.settings import ROWS
from bench.table import number, render

SHOWN = 3
"""Most violations of a kind to print."""


def report(run: Run) -> str:
    """Return all tables of a run."""
    record = run.record
    kinds = Counter(
        "cancelled" if fault.kind.startswith("cancelled") else fault.kind
        for fault in run.stage.faults()
    )
    outcomes = [(label, f"{count:,}") for label, count in sorted(record.outcomes.items())]
    acts = [(name, f"{count:,}") for name, count in sorted(record.hostile.items())]
    parts = [
        render([("requests by outcome", "count"), *outcomes, ("all", f"{record.done:,}")]),
        f"longest request: {describe(record.longest)}" if record.longest else "no request",
        render([("acts of hostile clients", "count"), *acts]),
        render([("faults by kind", "count"), *((k, str(n)) for k, n in sorted(kinds.items()))]),
        latencies(run),
        f"the soak itself woke up late by {number(record.lag_s)} s at most",
        render([
            ("llmux over time", "life", "RSS MB", "descriptors", "to backends", "requests"),
            *(
                (
                    f"{sample.at_s:.0f} s",
                    str(sample.life),
                    f"{sample.rss_bytes / 1e6:.1f}",
                    str(sample.descriptors),
                    str(sample.to_backends),
                    f"{sample.requests:,}",
                )
                for sample in spread(record.samples, ROWS)
            ),
        ]),
        f"RSS, second half of the last life: {growth_bytes(run) / 1e6:+.1f} MB",
        f"RSS at most: {record.peak_bytes / 1e6:.0f} MB",
        f"RSS bound by the config: {record.bound_bytes / 1e6:.0f} MB",
        f"lost: {run.lost}",
        f"violations: {len(record.violations)}",
        *examples(record.violations),
    ]  # fmt: skip
    return "\n\n".join(parts)


def examples(violations: Sequence[str]) -> Iterator[str]:
    """Group violations that differ only in numbers and names, the most frequent kind first."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for violation in violations:
        kinds[re.sub(r"[\d.]+|'.*?'", "#", violation.partition(") ")[0][:60])].append(violation)
    for some in sorted(kinds.values(), key=len, reverse=True):
        yield f"{len(some)} x:\n" + "\n".join(f"  {each}" for each in some[:SHOWN])


def latencies(run: Run) -> str:
    """Return the latencies of cheap requests under the load of all others."""
    rows = [("cheap requests", "count", "p50 ms", "p99 ms", "longest ms")]
    for kind, taken_s in sorted(run.record.latencies_s.items()):
        ordered = sorted(taken_s)
        rows.append((
            kind,
            f"{len(ordered):,}",
            *(f"{1000 * percentile(ordered, share):.1f}" for share in (0.5, 0.99, 1)),
        ))  # type: ignore[arg-type]  # fmt: skip
    return render(rows)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return a number of evenly spaced items, the first and the last included."""
    if len(samples) <= count:
        return list(samples)
    return [samples[index * (len(samples) - 1) // (count - 1)] for index in range(count)]
