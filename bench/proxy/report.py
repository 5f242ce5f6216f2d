"""The report: the table, the targets, and notes on what limited the figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.counters import why_not_counted
from bench.machine import machine
from bench.proxy.figures import BASE, Figures
from bench.proxy.measure import DIRECT
from bench.proxy.samples import Round, Sample
from bench.proxy.targets import TARGETS
from bench.proxy.workloads import ROWS
from bench.table import number, render


def report(figures: Figures, rounds: Sequence[Round]) -> str:
    """The table, the targets, the notes, and the machine that was measured on."""
    targets = [
        ("target", "measured", "min to max", ""),
        *(target.line(figures) for target in TARGETS),
    ]
    notes = [
        why_no_instructions(rounds),
        headroom(figures),
        core_shares(rounds),
        wrong_answers(rounds),
        machine(),
    ]
    parts = [render(table(figures)), render(targets), *notes]
    return "\n\n".join(part for part in parts if part)


def table(figures: Figures) -> list[list[str]]:
    """A line for each row: medians and their ratios to nginx; below it, the rounds' spread."""
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    base = f"median (ratio to {BASE})" if BASE in names else f"median ({BASE} took no part)"
    titles = {row.key: row.title for row in ROWS}
    lines = [[base, *names]]
    for key, row in figures.items():
        if all(figure.value is None for figure in row.values()):
            continue
        title = titles.get(key, f"resident MiB, {key.removeprefix('memory_')} idle streams")
        lines.append([title, *(str(row.get(name, "-")) for name in names)])
        spreads = [row[name].spread() if name in row else "" for name in names]
        if any(spreads):
            lines.append(["  min to max", *spreads])
    return lines


def why_no_instructions(rounds: Sequence[Round]) -> str:
    """Say that instructions were not counted, if so."""
    reason = why_not_counted() if rounds else None
    return f"Instructions were not counted ({reason})." if reason else ""


def headroom(figures: Figures) -> str:
    """How far load and backend are from being the limit."""
    lines = []
    for key, what in (
        ("requests", "requests/s"),
        ("chunks", "chunks/s"),
        ("bulk", "chunks/s, 16 a send()"),
    ):
        row = figures.get(key, {})
        values = {name: figure.value for name, figure in row.items() if figure.value is not None}
        direct = values.pop(DIRECT, None)
        if direct is None or not values:
            continue
        best = max(values, key=lambda name: values[name])
        lines.append(
            f"Without a proxy, load and backend on one core reach {number(direct)} {what}: "
            f"{number(direct / values[best])} x the best proxy ({best})."
        )
    return "\n".join(lines)


def core_shares(rounds: Sequence[Round]) -> str:
    """Report the limiting process where contestants run at full speed."""
    lines = [
        f"  {key}: {', '.join(f'{name} {share:.2f}' for name, share in busy(rounds, key).items())}"
        for key in (rounds[0] if rounds else {})
        if key in {"posts", "saturated", "bulk"}
    ]
    if not lines:
        return ""
    title = (
        "Share of its core that each used. About 1: it was the limit; "
        "less: load and backend were, or others used the machine."
    )
    return "\n".join([title, *lines])


def busy(rounds: Sequence[Round], workload: str) -> dict[str, float]:
    """The median share of one core, by contestant."""
    return {
        name: statistics.median(_busy(one[workload][name]) for one in rounds)
        for name in rounds[0][workload]
        if name != DIRECT
    }


def _busy(sample: Sample) -> float:
    return sample.cpu_us / sample.load.seconds / 1e6


def wrong_answers(rounds: Sequence[Round]) -> str:
    wrong = sum(
        sample.load.errors for one in rounds for row in one.values() for sample in row.values()
    )
    return f"{wrong} answers were wrong: see above." if wrong else ""
