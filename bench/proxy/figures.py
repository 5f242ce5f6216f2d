"""Figures: the medians over all rounds, their ratios to nginx, and the spread of both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.proxy.measure import DIRECT
from bench.proxy.samples import Round
from bench.proxy.workloads import ROWS, Row, ratio
from bench.table import number

BASE = "nginx"
"""The contestant that all ratios in the table are to."""

NOT_OF_DIRECT = ("added", "delivered", "cpu", "instructions")
"""Rows that compare with the direct load, or measure a process: it has no figure in them."""


@dataclass(frozen=True)
class Figure:
    """One cell: the median over the rounds, and the median of its ratio to nginx.

    Attributes:
        values: The figure of each round that has one.
        ratios: Each round's ratio.
    """

    value: float | None
    ratio: float | None
    values: Sequence[float] = field(default=(), compare=False)
    ratios: Sequence[float] = field(default=(), compare=False)

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return number(self.value) + ("" if self.ratio is None else f" ({number(self.ratio)})")

    def spread(self) -> str:
        """The lowest and the highest round; empty where it was measured once."""
        return span(self.values)


Figures = Mapping[str, Mapping[str, Figure]]
"""By row, by contestant."""


def span(values: Sequence[float]) -> str:
    """The lowest and the highest of several values; empty if there are fewer than two."""
    return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""


def summarize(rounds: Sequence[Round]) -> Figures:
    """Medians of all rows that were measured."""
    return {
        row.key: {
            name: _summary(row, rounds, name)
            for name in rounds[0][row.workload]
            if not (name == DIRECT and row.key.endswith(("added", "delivered")))
        }
        for row in ROWS
        if rounds and row.workload in rounds[0]
    }


def _summary(row: Row, rounds: Sequence[Round], name: str) -> Figure:
    values, ratios = [], []
    for one in rounds:
        samples = one[row.workload]
        if name == DIRECT and row.key.endswith(NOT_OF_DIRECT):
            continue
        value = row.value(samples[name], samples[DIRECT])
        if value is None:
            continue
        values.append(value)
        if BASE in samples:
            to_base = ratio(value, row.value(samples[BASE], samples[DIRECT]))
            ratios += [] if to_base is None else [to_base]
    return Figure(
        statistics.median(values) if values else None,
        statistics.median(ratios) if ratios else None,
        values,
        ratios,
    )
