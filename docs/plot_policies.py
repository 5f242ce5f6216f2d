"""Draws the figures of the pages on policies: `python docs/plot_policies.py` (needs matplotlib)."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

from llmux.config import PolicyConfig
from llmux.policy import POLICIES
from llmux.simulate import Outcome, Setup, Slots, poisson, simulate, zipf
from llmux.simulate.arrivals import exponential
from llmux.simulate.outcome import mean
from llmux.simulate.report import plot

rcParams["svg.hashsalt"] = "llmux"  # the same ids each time,
os.environ["SOURCE_DATE_EPOCH"] = "0"  # and the same date
HERE = Path(__file__).parent
NAMES = ("fifo", "exhaustive", "time_slice", "cost_aware", "adaptive")
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def run(name: str, load: float, requests: int, switch_s: float = 10.0) -> Outcome:
    """Four models, Zipf; 8 slots, 8 s each."""
    setup = Setup(
        models=[str(index) for index in range(4)],
        cost=lambda _source, _target: switch_s,
        server=lambda _model: Slots(8),
        policy=partial(POLICIES[name], PolicyConfig(name=name)),
    )
    arrivals = poisson(zipf(4), load, exponential(8.0), requests, random.Random(1))  # noqa: S311
    return simulate(setup, arrivals)


def main() -> None:
    """Draw both."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for name in NAMES:
        waits = [mean(run(name, load, 20_000).waits()) for load in LOADS]
        axis.plot(LOADS, waits, marker="o", label=name)
    axis.set(xlabel="load", ylabel="mean wait, seconds", title="4 models, switches of 10 s")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(HERE / "policies-load.svg")
    plot({name: run(name, 0.5, 400) for name in ("fifo", "adaptive")}, HERE / "policies-time.svg")


if __name__ == "__main__":
    main()
