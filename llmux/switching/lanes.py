"""Hook lanes: hooks of models that touch the same resource run one at a time.

vLLM, for one, aborts its start if the free memory of its GPU grows while it measures it. On
different resources hooks overlap.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from trio_util import RepeatedEvent


@dataclass(order=True)
class Turn:
    """A hook that waits, or runs.

    Attributes:
        order: Number of the command that it belongs to: earlier commands go first.
        touches: Returns the resources that no other hook may touch meanwhile. A reload may change
            that as long as the hook waits.
        is_ready: Returns whether it could start now, if no other hook ran.
    """

    order: int
    touches: Callable[[], frozenset[str]] = field(compare=False)
    is_ready: Callable[[], bool] = field(compare=False)


class Lanes:
    """Lets hooks start in the order of their commands.

    A hook that is ready and waits for its lanes blocks them for later ones, so none waits for ever.
    A hook holds all its lanes or none, so there is no deadlock.

    Args:
        changed: Set whenever a hook may have become ready.
    """

    def __init__(self, changed: RepeatedEvent) -> None:
        self._changed = changed
        self._waiting: list[Turn] = []
        self._running: list[Turn] = []

    @asynccontextmanager
    async def turn(
        self,
        order: int,
        touches: Callable[[], frozenset[str]],
        is_ready: Callable[[], bool],
        is_in_vain: Callable[[], bool],
    ) -> AsyncIterator[bool]:
        """Wait until a hook may start; the context holds its lanes.

        Args:
            order: See `Turn`.
            touches: See `Turn`.
            is_ready: See `Turn`.
            is_in_vain: Returns whether to wait no longer.

        Yields:
            True, without a checkpoint since `is_ready()` was true; or False: `is_in_vain()`.
        """
        turn = Turn(order, touches, is_ready)
        insort(self._waiting, turn)
        try:
            # In vain first: a hook may become ready just when it is not wanted any more.
            while not (is_over := is_in_vain()) and not self._may_go(turn):
                await self._changed.wait()
        finally:
            self._waiting = [each for each in self._waiting if each is not turn]
            self._changed.set()
        if is_over:
            yield False
            return
        touched = touches()
        turn.touches = lambda: touched
        self._running.append(turn)
        try:
            yield True
        finally:
            self._running = [each for each in self._running if each is not turn]
            self._changed.set()

    def _may_go(self, turn: Turn) -> bool:
        """Return whether it is a hook's turn, whatever the order in which tasks ask."""
        taken = frozenset[str]().union(*(each.touches() for each in self._running))
        for each in self._waiting:
            if each.is_ready():
                if each is turn:
                    return not each.touches() & taken
                taken |= each.touches()
        return False
