"""Several hosts, each with an llmux of its own: which of them should get a request.

Pure functions of what the hosts say of themselves, for `llmux pick` and for simulated fleets.
"""

from llmux.fleet.choice import HostView, choose
from llmux.fleet.homes import Demand, homes

__all__ = ["Demand", "HostView", "choose", "homes"]
