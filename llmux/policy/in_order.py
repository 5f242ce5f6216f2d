"""Which switch is next where models share memory, for policies that put the models in an order.

A model that fits is woken at once. Others wake once the models that have to leave may do so. Where
the policy says that a model goes first, no other one takes the memory that it is about to get, so
that nobody is overtaken for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from llmux.policy.base import Decision, GroupView, ModelView, Stay
from llmux.policy.choices import (
    COLD,
    RETRY,
    first_come,
    least_stay_s,
    look_again,
    next_retry,
)
from llmux.policy.evictions import Evictions
from llmux.policy.placing import NO_ROOM, Ways
from llmux.policy.scene import Option

FITS = "fits"
"""Rule of switches that evict no model."""

TAKEN = "the memory is kept for a request that goes first"
"""Why a model that might wake does not."""


class InOrder:
    """One decision in a group that shares memory.

    Args:
        group: The view.
        evictions: Remembers sets that were found before.
        min_active_s: Shortest stay of any model.
        max_wait_s: Limits the shortest stay of models that resume frozen requests.

    Attributes:
        scene: The ways to wake the models.
        ready: The models to wake that may be chosen now, the oldest request first.
    """

    def __init__(
        self,
        group: GroupView,
        evictions: Evictions,
        min_active_s: float,
        max_wait_s: float = math.inf,
    ) -> None:
        self.scene = Ways(group, evictions)
        self.ready: Sequence[ModelView] = self.scene.ready()
        self._min_active_s, self._max_wait_s = min_active_s, max_wait_s

    def may_leave_at(self, views: Iterable[ModelView]) -> float:
        """Return when all of these models may be left; see `least_stay_s`."""
        scene = self.scene
        return max(
            (
                scene.since(view)
                + least_stay_s(scene.measures, view, self._min_active_s, self._max_wait_s)
                for view in views
            ),
            default=-math.inf,
        )

    def decide(
        self,
        begins_at: Callable[[Option], float],
        goes_first: Callable[[ModelView], bool],
        *,
        order: Sequence[ModelView],
        rule: Callable[[Option], str],
        why: str,
    ) -> Decision:
        """Return the first switch in the order that may begin now.

        Args:
            begins_at: Returns from when on a way that evicts models may be taken.
            goes_first: Says whether nobody may take the memory that a model waits for.
            order: The models in `ready`.
            rule: Returns the name of the rule by which a way with evictions is taken.
            why: Why models stay, if they may not leave yet.
        """
        scene, now = self.scene, self.scene.now
        if not scene.wanted:
            return Stay()
        soonest, first, are_there_ways, is_taken = math.inf, None, False, False
        for view in order:
            ways = scene.ways(view)
            if not ways and goes_first(view) and scene.is_moving:
                break  # what moves now will make its room, if others leave it alone
            for way in ways:
                at = begins_at(way) if way.evict else -math.inf
                if at > now:
                    soonest = min(soonest, at)
                elif first is None or scene.leaves_room(way, first):
                    return self._switch(way, rule)
                else:
                    is_taken = True
            are_there_ways = are_there_ways or bool(ways)
            if first is None and ways and goes_first(view):
                first = ways[0]
        retry_at = next_retry(scene.wanted, now)
        if not order:
            return look_again(retry_at, RETRY)
        reason = TAKEN if is_taken else why if are_there_ways else NO_ROOM
        return look_again(min(soonest, retry_at), reason)

    def _switch(self, way: Option, rule: Callable[[Option], str]) -> Decision:
        name = rule(way) if way.evict else COLD if self.scene.is_empty else FITS
        decision = first_come(way.target, self.scene.now, name)
        return replace(decision, evict=tuple(view.name for view in way.evict))
