"""Figures: the medians over all rounds, and of the ratios to nginx."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.proxy.measure import DIRECT
from bench.proxy.samples import Round
from bench.proxy.workloads import ROWS, Row, ratio
from bench.table import number


@dataclass(frozen=True)
class Figure:
    """One cell: the median over the rounds, and the median of its ratio to nginx."""

    value: float | None
    ratio: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return number(self.value) + ("" if self.ratio is None else f" ({number(self.ratio)})")


Figures = Mapping[str, Mapping[str, Figure]]
"""By row, by contestant."""


def summarize(rounds: Sequence[Round]) -> Figures:
    """Medians of all rows that were measured."""
    return {
        row.key: {
            name: _summary(row, rounds, name)
            for name in rounds[0][row.workload]
            if not (name == DIRECT and row.key in {"added", "delivered"})
        }
        for row in ROWS
        if rounds and row.workload in rounds[0]
    }


def _summary(row: Row, rounds: Sequence[Round], name: str) -> Figure:
    values, ratios = [], []
    for one in rounds:
        samples = one[row.workload]
        if name == DIRECT and row.key.endswith("cpu"):
            continue
        value = row.value(samples[name], samples[DIRECT])
        if value is None:
            continue
        values.append(value)
        if "nginx" in samples:
            to_nginx = ratio(value, row.value(samples["nginx"], samples[DIRECT]))
            ratios += [] if to_nginx is None else [to_nginx]
    return Figure(
        statistics.median(values) if values else None,
        statistics.median(ratios) if ratios else None,
    )
