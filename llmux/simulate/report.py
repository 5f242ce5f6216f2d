"""Reports on simulations and recordings: a table, and a plot of the timeline."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmux.errors import LlmuxError
from llmux.simulate.outcome import Outcome, mean, percentile

HEADS = (
    "policy", "mean wait", "p50", "p99", "max", "switches", "serving", "draining", "switching",
    "idle", "fairness",
)  # fmt: skip


class NoPlots(LlmuxError):
    """Matplotlib is not installed."""


def row(name: str, waits: Sequence[float], outcome: Outcome) -> list[str]:
    """Return a row of the table: waits in seconds, shares of the time in percent."""
    total = sum(outcome.seconds.values()) or 1.0
    shares = [
        f"{100 * outcome.seconds[part] / total:.0f} %"
        for part in ("serving", "draining", "switching", "idle")
    ]
    fairness = f"{outcome.fairness():.2f}"
    return [name, *figures(waits), str(outcome.switches), *shares, fairness]


def figures(waits: Sequence[float]) -> list[str]:
    """Format mean, median, 99th percentile and maximum of waits in seconds."""
    values = (mean(waits), percentile(waits, 0.5), percentile(waits, 0.99), max(waits, default=0))
    return [f"{value:.2f}" for value in values]


def render(rows: Sequence[Sequence[str]], *, first: str = HEADS[0]) -> str:
    """Format rows as aligned columns under `HEADS`, of which the first may be another."""
    lines = [(first, *HEADS[1:]), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )


def plot_formats() -> Collection[str]:
    """Return the file extensions that `plot` can write, without dots.

    Raises:
        NoPlots: Matplotlib is not installed.
    """
    formats: Collection[str] = _figure().canvas.get_supported_filetypes()
    return formats


def plot(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Plot when each model was awake (dark) and draining (light) under each policy.

    Raises:
        NoPlots: Matplotlib is not installed.
    """
    figure = _figure(figsize=(12, 1 + 1.6 * len(outcomes)), layout="constrained")
    axes = figure.subplots(len(outcomes), 1, sharex=True, squeeze=False)
    for (name, outcome), (axis,) in zip(outcomes.items(), axes, strict=True):
        for index in range(len(outcome.names)):
            for spans, colour in ((outcome.spans, "C0"), (outcome.drains, "#a8c8e8")):
                bars = [(start, end - start) for at, start, end in spans if at == index]
                axis.broken_barh(bars, (index - 0.4, 0.8), color=colour)
        axis.set_yticks(range(len(outcome.names)), outcome.names)
        axis.set_title(f"{name}: mean wait {mean(outcome.waits()):.1f} s", loc="left")
    axes[-1][0].set_xlabel("seconds")
    figure.savefig(path)


def _figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        raise NoPlots("--plot needs matplotlib: pip install 'llmux-proxy[plot]'") from None
    return Figure(**options)
