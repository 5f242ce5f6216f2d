"""Idle rules: while no request needs a model, put an unused one to sleep, or wake a standby."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llmux.switching.commands import Command, Sleep, Wake
from llmux.switching.model import Model


@dataclass(frozen=True, slots=True)
class IdleRules:
    """The idle rules of one group.

    Attributes:
        standby: The model to wake while the group is idle, or None.
        standby_after_s: Seconds for which the group must have been idle before that.
        preload: The model to wake at the start, or None.
    """

    standby: str | None = None
    standby_after_s: float = 300.0
    preload: str | None = None


NO_IDLE_RULES = IdleRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Idleness:
    """The idle rules of a group at one moment. Times are Trio's, in seconds.

    Its commands do not stand: they are abandoned as soon as a request waits for any model. Where
    several models are awake, a sleep is abandoned only for a request for its own.

    Attributes:
        rules: The group's idle rules.
        began_at: When llmux began to serve the group.
        now: The current time.
        min_active_s: Minimum time for which a model stays awake.
        standby_from: When the standby may be woken at the earliest.
    """

    rules: IdleRules
    began_at: float
    now: float
    min_active_s: float = 0.0
    standby_from: float = -math.inf

    def of_one(
        self, models: Mapping[str, Model], active: Model | None
    ) -> tuple[Command | None, float]:
        """Return the command that the rules call for, or None and when to ask again.

        Call it while no switch runs.

        Args:
            models: The models of a group with room for one.
            active: The one that is awake, if any.
        """
        if any(map(_is_used, models.values())):
            return None, math.inf  # a change of that leads to a new decision
        may_leave_at = -math.inf if active is None else active.awake_since + self.min_active_s
        command, wake_at = self._standby(models, may_leave_at)
        if command is not None or active is None:
            return command, wake_at
        command, sleep_at = self._sleep(active)
        return command, min(wake_at, sleep_at)

    def of_several(
        self, models: Mapping[str, Model], spared: Collection[str]
    ) -> tuple[Command | None, float]:
        """Return the same for a group whose models share memory.

        Args:
            models: The group's models.
            spared: Those that are pinned, or that a running command moves.
        """
        at = math.inf
        for model in models.values():
            if model.is_awake and model.name not in spared and not _is_used(model):
                command, sleep_at = self._sleep(model)
                if command is not None:
                    return command, math.inf
                at = min(at, sleep_at)
        if any(map(_is_used, models.values())) or self.rules.standby in spared:
            return None, at
        command, wake_at = self._standby(models, -math.inf)
        return command, min(at, wake_at)

    def _standby(
        self, models: Mapping[str, Model], may_leave_at: float
    ) -> tuple[Command | None, float]:
        standby = models.get(self.rules.standby or "")
        if standby is None or standby.is_awake:
            return None, math.inf
        used_at = (max(model.idle_since, model.entered_at) for model in models.values())
        idle_since = max(self.began_at, *used_at)
        due_at = idle_since + self.rules.standby_after_s
        wake_at = max(due_at, standby.retry_at, may_leave_at, self.standby_from)
        if wake_at > self.now:
            return None, wake_at
        wake = Wake(standby, "nothing else is wanted", rule="standby", is_unasked=True)
        return wake, math.inf

    def _sleep(self, model: Model) -> tuple[Command | None, float]:
        sleep_at = max(model.idle_since + model.idle_sleep_s, model.awake_since + self.min_active_s)
        if sleep_at > self.now:
            return None, sleep_at
        return Sleep(model, f"unused for {model.idle_sleep_s:g} s", rule="idle"), math.inf


def _is_used(model: Model) -> bool:
    return bool(model.wanted_by) or model.in_flight.in_use > len(model.quiet)
