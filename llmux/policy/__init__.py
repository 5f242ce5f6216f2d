"""When to switch: policies map a view of their group to a decision, without waiting or clocks.

The same views in the same order must give the same decisions; a policy may keep state, but depends
on nothing else.

To use your own policy, write a class with a `decide` method and name it in the config::

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
