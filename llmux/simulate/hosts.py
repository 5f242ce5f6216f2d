"""The models of a simulation in which several are awake, and what it is set up with."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from llmux.config import PolicyConfig
from llmux.policy import ModelView, Policy
from llmux.policy.room import Memory
from llmux.simulate.backends import Job, Server
from llmux.switching.core import NO_TRAITS, ModelState, Phase, Traits
from llmux.switching.lines import Line, Occupancy


@dataclass(frozen=True, kw_only=True)
class CoresidentSetup:
    """The models, their costs and the policy of a simulation.

    Attributes:
        memory: The memory that the models share, and what each of them needs.
        wake_s: Returns the time of a wake, in seconds; called once for each.
        sleep_s: Returns the time of putting a model to sleep, in seconds; called once for each.
        server: Creates a model's server.
        policy: Creates the policy.
        hooks_at_once: Number of hooks that may run at a time, whatever they touch.
        touches: The resources whose hooks run one at a time, by model: of two models that touch the
            same one, one hook runs at a time.
        overlapping_hooks: True if hooks may overlap whatever they touch.
        traits: Limits on requests in flight, and whether they are frozen, by model.
        keep: The models that are never evicted.
        busy: Number of models that may be at work at once on a resource that they touch; the
            requests for others wait (`llmux.switching.turns`).
        failing_wakes: Share of wakes that fail. After `policy.wake_failures` in a row (its default)
            a model's requests are refused while another one is served, as by the server.
    """

    memory: Memory
    wake_s: Callable[[str], float]
    sleep_s: Callable[[str], float]
    server: Callable[[str], Server]
    policy: Callable[[], Policy]
    hooks_at_once: float = 1
    touches: Mapping[str, frozenset[str]] = field(default_factory=dict)
    overlapping_hooks: bool = False
    traits: Mapping[str, Traits] = field(default_factory=dict)
    keep: Collection[str] = ()
    busy: float = math.inf
    failing_wakes: float = 0.0


class Host(ModelState):
    """A model with a simulated server.

    Attributes:
        index: Its position among the models.
        server: Serves its requests.
        is_kept: True if it is never evicted.
        leaves_since: When a switch claimed it that lets in its line first; None without one.
        to_drain: Number of requests in flight and in line at that time, or when it closed.
        closed_at: When it last began to drain.
    """

    waiters: Line[Job]

    def __init__(
        self,
        index: int,
        name: str,
        server: Server,
        traits: Traits = NO_TRAITS,
        *,
        is_kept: bool = False,
    ) -> None:
        super().__init__(name, Line[Job](), Occupancy(), traits)
        self.index = index
        self.server = server
        self.is_kept = is_kept
        self.leaves_since: float | None = None
        self.to_drain = 0
        self.closed_at = 0.0
        self.failing_after = PolicyConfig().wake_failures or math.inf

    @property
    def may_be_put_to_sleep(self) -> bool:
        """True if it drains, and has no more to do."""
        return self.phase is Phase.DRAINING and not (self.in_flight.in_use and self.is_drained)

    @property
    def has_let_in_its_line(self) -> bool:
        """True if those who were in line when a switch claimed it have been let in."""
        assert self.leaves_since is not None
        oldest = self.waiters.oldest
        return oldest is None or oldest > self.leaves_since

    def shown(self) -> ModelView:
        """Return its view in a group that shares memory, but for `is_moving`."""
        return replace(
            self.view(),
            awake_since=self.awake_since if self.is_awake else None,
            used_at=self.used_at,
            is_kept=self.is_kept,
        )
