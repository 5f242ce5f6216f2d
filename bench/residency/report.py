"""The tables of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean

from bench.residency.cases import Run, System
from bench.table import render

RATIOS = ("mean", "p99", "longest", "wakes")
NOTHING_S = 1e-3
"""Waits below this are no waits: ratios to them would say nothing."""

Found = Mapping[Run, Mapping[str, float]]


def ratios(
    found: Found, systems: Sequence[System], policy: str, hooks: int, figure: str, to: str = "lru"
) -> list[float]:
    """Return one figure of a policy over that of another, for each system."""

    def of(name: str, system: System) -> float:
        return max(NOTHING_S, found[Run(system, name, hooks)][figure])

    return [of(policy, system) / of(to, system) for system in systems]


def table(found: Found, systems: Sequence[System], policies: Sequence[str], hooks: int) -> str:
    """Return one row for each policy."""
    rows = [["to lru", *RATIOS, "worst mean"]]
    for policy in policies:
        of = {name: ratios(found, systems, policy, hooks, name) for name in RATIOS}
        means = [f"{geometric_mean(of[name]):.3f}" for name in RATIOS]
        rows.append([policy, *means, f"{max(of['mean']):.2f}"])
    return render(rows)
