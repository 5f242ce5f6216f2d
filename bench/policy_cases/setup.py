"""The policies to compare, with the FIFO of the original llmux, and the simulated fleet."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from llmux.config import PolicyConfig
from llmux.policy import POLICIES, Decision, GroupView, Policy, Stay, SwitchTo
from llmux.simulate import Setup, Slots

BASELINE = "original"
"""The baseline of all ratios."""

UNBOUNDED = "unbounded"
"""The adaptive policy without its bound."""

SWITCHES_S = (2.0, 10.0, 60.0)
SLOTS = 8
SERVICE_S = 8.0
"""Slots of a backend and mean service time, except in grid B and traces."""

Figures = Mapping[str, float]
"""Figures of a run, in seconds unless the name says otherwise."""


class OriginalFifo:
    """FIFO as the original llmux (2.4, Rust) does it; only for comparison.

    Each request that finds its model inactive starts a switch attempt of its own, and the attempts
    queue for one lock. An attempt that gets the lock ends without a switch if its model is active,
    or if no request waits for the model.
    """

    def __init__(self) -> None:
        self._tries: deque[str] = deque()

    def note_queued(self, model: str) -> None:
        """Note a request that has joined a queue; see `Setup.on_queued`."""
        self._tries.append(model)

    def decide(self, view: GroupView, /) -> Decision:
        while self._tries:
            model = self._tries.popleft()
            if model != view.active and view.models[model].queued:
                return SwitchTo(model)
        return Stay()


NAMES = (BASELINE, UNBOUNDED, *POLICIES)
BOUND_S = PolicyConfig().max_wait_secs
"""Bound on waits, unless a case sets another."""


def make_policy(name: str, bound_s: float = BOUND_S) -> Policy:
    """Make a policy of llmux by name, or one of the two that exist only here."""
    if name == BASELINE:
        return OriginalFifo()
    if name == UNBOUNDED:
        return POLICIES["adaptive"](PolicyConfig(max_wait_secs=1e9))
    return POLICIES[name](PolicyConfig(name=name, max_wait_secs=bound_s))


def under(setup: Setup, name: str, bound_s: float = BOUND_S) -> Setup:
    """Return the same setup for one run under another policy."""
    policy = make_policy(name, bound_s)
    on_queued = policy.note_queued if isinstance(policy, OriginalFifo) else None
    return replace(setup, policy=lambda: policy, on_queued=on_queued)


def fleet(
    models: Sequence[str], switch_s: float, slots: int, policy: str, *, limited: bool = False
) -> Setup:
    """Models with one switch cost.

    With `limited`, `max_in_flight` is the number of slots; the original has no such limit.
    """
    setup = Setup(
        models=models,
        cost=lambda _source, _target: switch_s,
        server=lambda _model: Slots(slots),
        policy=OriginalFifo,
        max_in_flight=slots if limited and policy != BASELINE else None,
    )
    return under(setup, policy)


class Case(Protocol):
    """Traffic that is the same for every policy: a frozen dataclass, whose fields are the axes."""

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        ...

    def axes(self) -> dict[str, Any]:
        """Return the labels of this case in a table's breakdown."""
        ...
