"""When to switch: policies decide on a view of their group; they never wait and keep no time.

The same views in the same order get the same decisions: notes are all that a policy may keep.

A policy of your own is a class with a `decide` method, named in the config by its dotted path::

    policy:
      name: my_package.my_module:MyPolicy
      options: {patience: 3}
"""

from llmux.policy.adaptive import AdaptivePolicy
from llmux.policy.ages import Ages
from llmux.policy.base import (
    Decision,
    GroupView,
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
    "Ages",
    "CostAwarePolicy",
    "Decision",
    "ExhaustivePolicy",
    "FifoPolicy",
    "GroupView",
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
