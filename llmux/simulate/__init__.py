"""Simulation of llmux's policies on synthetic or recorded traffic, faster than real time."""

from llmux.simulate.arrivals import Arrival, Closed, bursty, one_hot, poisson, zipf
from llmux.simulate.backends import Sharing, Slots
from llmux.simulate.coresident import simulate_coresident
from llmux.simulate.engine import Setup, simulate
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import Outcome

__all__ = [
    "Arrival",
    "Closed",
    "CoresidentSetup",
    "Outcome",
    "Setup",
    "Sharing",
    "Slots",
    "bursty",
    "one_hot",
    "poisson",
    "simulate",
    "simulate_coresident",
    "zipf",
]
