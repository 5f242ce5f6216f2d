"""Whether a group's switcher goes on: if not, its requests would wait for ever.

A switcher waits for as long as it takes: for a hook of minutes, for a drain, for a request. So no
wait counts as standing still by its length. Three things do: a hook that could not be ended at its
time-out, a loop that does not come round when something has changed, and a request that was let in
and neither began nor left, for which the settle barrier would wait.
"""

from __future__ import annotations

from collections.abc import Callable

from llmux.errors import SwitcherDied
from llmux.switching.group import Group
from llmux.switching.waiters import Waiter


class Progress:
    """Looks whether the switcher of a group goes on.

    Args:
        group: The group.
        is_overdue: Returns whether a hook is running that could not be ended at its time-out.
    """

    def __init__(self, group: Group, is_overdue: Callable[[], bool]) -> None:
        self._group = group
        self._is_overdue = is_overdue
        self._has_begun = False
        self._is_asked = False  # the loop, to come round
        self._settling: frozenset[Waiter] = frozenset()

    def came_round(self) -> None:
        """Note that the switcher's loop decides now."""
        self._has_begun, self._is_asked = True, False

    def look(self) -> str:
        """Return what has stood still since the last look, for people; empty: nothing has.

        The next look judges what this one asks for: the tasks of the group need a turn in between.
        """
        before, was_asked = self._settling, self._is_asked
        models = self._group.models.values()
        self._settling = frozenset(each for model in models for each in model.waiters.unsettled)
        if self._group.closed_with is not None:
            return "it has died" if isinstance(self._group.closed_with, SwitcherDied) else ""
        if self._is_overdue():
            return "a hook cannot be ended"
        if was_asked:
            return "its loop does not come round"
        if before & self._settling:
            return "a request that was let in does not begin"
        if self._has_begun:  # else it looks for models that an earlier llmux has left awake
            self._is_asked = True
            self._group.changed.set()
        return ""
