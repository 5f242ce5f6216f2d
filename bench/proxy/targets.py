"""The targets that the figures are judged by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.proxy.figures import BASE, Figure, Figures, span
from bench.proxy.workloads import ratio
from bench.table import number

NONE = Figure(None, None)
"""The figure of a contestant that did not take part."""


@dataclass(frozen=True)
class Target:
    """A bound on a figure, or on its ratio to another contestant's figure."""

    text: str
    row: str
    contestant: str
    factor: float
    versus: str | None = None
    at_most: bool = False

    def judge(self, figures: Figures) -> tuple[str, str, str]:
        """Return the text, the measured value, and `ok`, `SHORT` or `not measured`."""
        measured, _ = self._measured(figures)
        if measured is None:
            return self.text, "-", "not measured"
        is_met = measured <= self.factor if self.at_most else measured >= self.factor
        return self.text, number(measured), "ok" if is_met else "SHORT"

    def line(self, figures: Figures) -> tuple[str, str, str, str]:
        """Return the same with the lowest and the highest round, as a line of the table."""
        text, measured, verdict = self.judge(figures)
        return text, measured, span(self._measured(figures)[1]), verdict

    def _measured(self, figures: Figures) -> tuple[float | None, Sequence[float]]:
        """Return the median, and each round's value."""
        of_row = figures.get(self.row, {})
        own = of_row.get(self.contestant, NONE)
        if self.versus is None:
            return own.value, own.values
        if self.versus == BASE:
            return own.ratio, own.ratios
        other = of_row.get(self.versus, NONE)
        if own.values and len(own.values) == len(other.values):
            ratios = [one / base for one, base in zip(own.values, other.values, strict=True)]
            return statistics.median(ratios), ratios
        return ratio(own.value, other.value), ()


TARGETS = (
    Target("requests/s >= 0.35 x nginx", "requests", "llmux", 0.35, BASE),
    Target("requests/s >= 5 x bare Hypercorn echo", "requests", "llmux", 5, "echo"),
    Target("saturated chunks/s >= 1.8 x nginx", "chunks", "llmux", 1.8, BASE),
    Target("saturated chunks/s, 16 a send(), >= 0.9 x nginx", "bulk", "llmux", 0.9, BASE),
    Target("CPU a small request <= 3 x nginx", "request_cpu", "llmux", 3, BASE, at_most=True),
    Target("CPU a small request <= 2.2 x rust", "request_cpu", "llmux", 2.2, "rust", at_most=True),
    Target("CPU a small request <= 0.3 x llama-swap", "request_cpu", "llmux", 0.3, "llama-swap",
           at_most=True),
    Target("CPU a chunk, 256 x 50/s, <= 1.0 x nginx", "paced_cpu", "llmux", 1.0, BASE,
           at_most=True),
    Target("CPU a chunk, 256 x 50/s, <= 0.75 x rust", "paced_cpu", "llmux", 0.75, "rust",
           at_most=True),
    Target("CPU a chunk, 256 x 50/s, <= 0.4 x llama-swap", "paced_cpu", "llmux", 0.4,
           "llama-swap", at_most=True),
    Target("256 x 50/s delivered >= 0.99", "delivered", "llmux", 0.99),
    Target("1,000 x 25/s delivered >= 0.99", "crowd_delivered", "llmux", 0.99),
    Target("gap p99, 256 x 50/s, <= 1.1 x nginx", "gap_p99", "llmux", 1.1, BASE, at_most=True),
    Target("gap p99, 1,000 x 25/s, <= 1.1 x nginx", "crowd_gap_p99", "llmux", 1.1, BASE,
           at_most=True),
    Target("time to first chunk p99 <= 1.5 x nginx", "first_p99", "llmux", 1.5, BASE,
           at_most=True),
    Target("added latency <= 1.3 x nginx", "added", "llmux", 1.3, BASE, at_most=True),
    Target("ASGI lane: requests/s >= 0.75 x echo", "requests", "llmux-asgi", 0.75, "echo"),
    Target("ASGI lane: saturated chunks/s >= 0.8 x nginx", "chunks", "llmux-asgi", 0.8, BASE),
    Target("ASGI lane: 256 x 50/s delivered >= 0.97", "delivered", "llmux-asgi", 0.97),
)  # fmt: skip
"""Of the fast lane, where the text does not name the ASGI lane."""
