"""What a decision weighs: ways to wake a model, and what each costs.

`adaptive` asks a scene, and so need not know how many models may be awake. `OneAwake` has room for
one, and knows the cost of each pair of models. `Shared` (`llmux.policy.shared`) has memory for
several: there a switch evicts a set of models, and costs are known for each model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from llmux.policy.base import GroupView, ModelView
from llmux.policy.choices import drain_ahead_s

SUSPENDED = 2.0
"""Cost, in units of A squared, of freezing a request in flight for an absence of A seconds. On
average it has already been frozen for A/2: (A/2 + A)^2 - (A/2)^2. In simulation, 1 and 4 are
worse."""


class Option(NamedTuple):
    """One way to wake a model.

    Attributes:
        target: The model.
        evict: The models to put to sleep for it.
        cost_s: Hook time, in seconds.
        drain_s: Expected drain, in seconds.
        stake: What the users of the evicted models would suffer, in seconds squared.
    """

    target: ModelView
    evict: Sequence[ModelView]
    cost_s: float
    drain_s: float
    stake: float


class Scene(ABC):
    """One decision's view, with what it needs computed at most once.

    Attributes:
        group: The view.
        now: Its time.
        measures: Its estimates.
        wanted: The models that sleep and that requests wait for, unless a switch wakes them.
    """

    def __init__(self, group: GroupView, wanted: Iterable[ModelView]) -> None:
        self.group = group
        self.now = group.now
        self.measures = group.measures
        self.wanted = list(wanted)
        self._options: dict[str, Sequence[Option]] = {}
        self._rates: dict[str, float] = {}
        self._drains_ahead_s: dict[str, float] = {}

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """True if no model is awake, and none moves."""

    @property
    def unserved(self) -> Iterable[ModelView]:
        """The models that requests wait for, and that no switch wakes."""
        return self.wanted

    @abstractmethod
    def since(self, view: ModelView) -> float:
        """Return when a model woke that is awake."""

    @abstractmethod
    def cost_between_s(self, source: ModelView, target: ModelView) -> float:
        """Return the hook time of putting one model to sleep and waking another, in seconds."""

    @abstractmethod
    def leaves_room(self, first: Option, then: Option) -> bool:
        """Return whether one option leaves the memory that another one needs."""

    @abstractmethod
    def needing(self, name: str) -> AbstractSet[str]:
        """Return the wanted models that cannot wake unless this one leaves."""

    @abstractmethod
    def _find_options(self, target: ModelView) -> Sequence[Option]: ...

    def options(self, target: ModelView) -> Sequence[Option]:
        """Return the ways to wake a model, the one with least at stake first."""
        found = self._options.get(target.name)
        if found is None:
            found = self._options[target.name] = self._find_options(target)
        return found

    def rate(self, name: str) -> float:
        """Return the rate at which requests for a model arrive."""
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates[name] = self._find_rate(name)
        return rate

    def _find_rate(self, name: str) -> float:
        return self.measures.arrivals_per_s(name, self.now)

    def stake(self, view: ModelView, away_s: float) -> float:
        """Return what a model's users suffer while it is away, in seconds squared.

        Suffering is the square of a wait. A request that arrives while the model is away for S
        seconds waits for the rest of S, which adds up to the arrival rate times the integral of t^2
        from 0 to S. Requests frozen in flight wait for the whole absence, in addition to earlier
        ones.
        """
        at_stake = self.rate(view.name) * away_s**3 / 3
        if view.freezes:
            frozen = view.in_flight + view.queued
            absence_s = self.measures.absence_s(view.name) or 0.0
            at_stake += SUSPENDED * frozen * max(away_s, absence_s) ** 2
        return at_stake

    def own_drain_s(self, view: ModelView) -> float:
        """Return the expected drain of a model that is awake; 0 if it serves nobody."""
        return self.measures.drain_s(view.name) if view.in_flight else 0.0

    def drain_ahead_s(self, option: Option) -> float:
        """Return a pessimistic estimate of an option's drain, in seconds."""
        longest_s = 0.0
        for view in option.evict:
            own_s = self._drains_ahead_s.get(view.name)
            if own_s is None:
                own_s = drain_ahead_s(self.measures, view, view.in_flight + view.queued)
                self._drains_ahead_s[view.name] = own_s
            longest_s = max(longest_s, own_s)
        return longest_s


class OneAwake(Scene):
    """A group with room for one model."""

    def __init__(self, group: GroupView) -> None:
        here = group.active
        super().__init__(group, (v for v in group.models.values() if v.queued and v.name != here))
        self._active = None if here is None else group.models[here]
        self._all_wanted = frozenset(view.name for view in self.wanted)

    @property
    def is_empty(self) -> bool:
        return self._active is None

    def since(self, view: ModelView) -> float:  # noqa: ARG002 - the only one that is awake
        assert self.group.active_since is not None
        return self.group.active_since

    def cost_between_s(self, source: ModelView, target: ModelView) -> float:
        return self.measures.cost_s(source.name, target.name)

    def leaves_room(self, first: Option, then: Option) -> bool:  # noqa: ARG002 - never
        return False

    def needing(self, name: str) -> AbstractSet[str]:  # noqa: ARG002 - all need it
        return self._all_wanted

    def _find_options(self, target: ModelView) -> Sequence[Option]:
        active = self._active
        assert active is not None
        cost_s = self.cost_between_s(active, target)
        stake = self.stake(active, cost_s + self.cost_between_s(target, active))
        return (Option(target, (active,), cost_s, self.own_drain_s(active), stake),)
