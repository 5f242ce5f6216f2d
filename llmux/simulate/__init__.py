"""Simulation of llmux's policies on synthetic or recorded traffic, faster than real time."""

from llmux.simulate.arrivals import Arrival, Closed, bursty, one_hot, poisson, zipf
from llmux.simulate.backends import Sharing, Slots
from llmux.simulate.engine import Setup, simulate
from llmux.simulate.outcome import Outcome

__all__ = [
    "Arrival",
    "Closed",
    "Outcome",
    "Setup",
    "Sharing",
    "Slots",
    "bursty",
    "one_hot",
    "poisson",
    "simulate",
    "zipf",
]
