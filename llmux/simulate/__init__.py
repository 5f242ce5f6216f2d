"""What would have happened: llmux's policies on simulated models, faster than time."""

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
