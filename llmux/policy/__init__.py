"""When to switch: policies are pure functions of a snapshot.

A policy of your own is a class with a `decide` method, named in the config by its dotted path::

    policy:
      name: my_package.my_module:MyPolicy
      options: {patience: 3}
"""

from llmux.policy.base import (
    Decision,
    LookAgain,
    ModelView,
    Policy,
    Snapshot,
    Stay,
    SwitchTo,
)
from llmux.policy.fifo import FifoPolicy
from llmux.policy.load import load_policy

__all__ = [
    "Decision",
    "FifoPolicy",
    "LookAgain",
    "ModelView",
    "Policy",
    "Snapshot",
    "Stay",
    "SwitchTo",
    "load_policy",
]
