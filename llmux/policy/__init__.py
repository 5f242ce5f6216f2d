"""When to switch: policies decide on a snapshot; they wait for nothing and keep no time.

The same snapshots in the same order get the same decisions: all that one may keep are notes.

A policy of your own is a class with a `decide` method, named in the config by its dotted path::

    policy:
      name: my_package.my_module:MyPolicy
      options: {patience: 3}
"""

from llmux.policy.adaptive import AdaptivePolicy
from llmux.policy.base import (
    Decision,
    LookAgain,
    ModelView,
    Policy,
    Snapshot,
    Stay,
    SwitchTo,
)
from llmux.policy.classic import CostAwarePolicy, TimeSlicePolicy
from llmux.policy.exhaustive import ExhaustivePolicy
from llmux.policy.fifo import FifoPolicy
from llmux.policy.line_first import LineFirst
from llmux.policy.load import POLICIES, load_policy

__all__ = [
    "POLICIES",
    "AdaptivePolicy",
    "CostAwarePolicy",
    "Decision",
    "ExhaustivePolicy",
    "FifoPolicy",
    "LineFirst",
    "LookAgain",
    "ModelView",
    "Policy",
    "Snapshot",
    "Stay",
    "SwitchTo",
    "TimeSlicePolicy",
    "load_policy",
]
