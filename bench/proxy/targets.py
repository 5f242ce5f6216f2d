"""The targets that the figures are judged by."""

from __future__ import annotations

from dataclasses import dataclass

from bench.proxy.figures import Figure, Figures
from bench.proxy.workloads import ratio
from bench.table import number


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
        of_row = figures.get(self.row, {})
        own = of_row.get(self.contestant, Figure(None, None))
        measured = own.value
        if self.versus == "nginx":
            measured = own.ratio
        elif self.versus is not None:
            measured = ratio(own.value, of_row.get(self.versus, Figure(None, None)).value)
        if measured is None:
            return self.text, "-", "not measured"
        is_met = measured <= self.factor if self.at_most else measured >= self.factor
        return self.text, number(measured), "ok" if is_met else "SHORT"


TARGETS = (
    Target("fast lane: requests/s >= 0.25 x nginx", "requests", "llmux", 0.25, "nginx"),
    Target("fast lane: requests/s >= 5 x bare Hypercorn echo", "requests", "llmux", 5, "echo"),
    Target("fast lane: saturated chunks/s >= 1.0 x nginx", "chunks", "llmux", 1.0, "nginx"),
    Target("fast lane: 256 x 50/s delivered >= 0.98", "delivered", "llmux", 0.98),
    Target("fast lane: gap p99 <= 1.5 x nginx", "gap_p99", "llmux", 1.5, "nginx", at_most=True),
    Target("fast lane: added latency <= 3 x nginx", "added", "llmux", 3, "nginx", at_most=True),
    Target("ASGI lane: requests/s >= 0.75 x echo", "requests", "llmux-asgi", 0.75, "echo"),
    Target("ASGI lane: saturated chunks/s >= 0.8 x nginx", "chunks", "llmux-asgi", 0.8, "nginx"),
)
