"""Health checks: run the `alive` hook of the awake model, and bring it down if it fails.

The hook runs every `alive_interval_secs`, and at once when the backend refuses a connection. A
failure counts only if the backend sent nothing meanwhile: a busy server may be too slow to answer a
check.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from llmux.config import PolicyConfig
from llmux.errors import HookError
from llmux.observe.logs import get_logger
from llmux.switching.group import IN_USE
from llmux.switching.model import Model
from llmux.switching.steps import Hooks

log = get_logger(__name__)

HeardSince = Callable[[str, float], bool]
"""Returns whether a backend has sent a byte since a time (model, Trio's clock in seconds)."""


class Health:
    """Checks the health of the model in use of one group.

    Args:
        in_use: Returns the model that is awake or draining.
        hooks: Runs alive hooks.
        settings: The interval between checks, and the number of failures that bring a model down.
        bring_down: Called with a model that no longer answers.

    Attributes:
        heard_since: Asked before a failure counts.
    """

    def __init__(
        self,
        in_use: Callable[[], Model | None],
        hooks: Hooks,
        settings: PolicyConfig,
        bring_down: Callable[[Model], Awaitable[None]],
    ) -> None:
        self.heard_since: HeardSince = lambda _model, _since: False
        self._in_use = in_use
        self._hooks = hooks
        self._settings = settings
        self._bring_down = bring_down
        self._looking = trio.Lock()  # one alive hook at a time
        self._looked_at = -math.inf
        self._stay = 0  # the stay (`Model.stay`) that `_failures` is about
        self._failures = 0  # in a row
        self._applied = trio.Event()

    def apply(self, settings: PolicyConfig) -> None:
        self._settings = settings
        self._applied.set()  # the interval may be another one now
        self._applied = trio.Event()

    async def watch(self) -> None:
        """Check every `alive_interval_secs`, until cancelled."""
        while True:
            with trio.move_on_after(self._settings.alive_interval_secs or math.inf) as interval:
                await self._applied.wait()
            model = self._in_use()
            if interval.cancelled_caught and model is not None:
                enough = self._settings.alive_failures
                since = max(self._looked_at, model.entered_at)
                await self._check(model, enough, heard_since=since)

    async def refused(self, model: Model) -> None:
        """Check at once, since the backend refused a connection; one failure is enough.

        Returns once the model has been found alive or brought down, or is not in use.
        """
        await self._check(model, enough=1, heard_since=trio.current_time())

    async def silent(self, model: Model) -> None:
        """Count a failed check, since a stream of the backend has been silent for too long."""
        stay = model.stay
        async with self._looking:
            if _is_in_use(model, stay):
                await self._count(model, enough=self._settings.alive_failures, is_well=False)

    async def is_alive(self, model: Model) -> bool:
        """Run the alive hook; a hook that cannot be started counts as success."""
        try:
            await self._hooks.of(model.name).run("alive", target=model.name)
        except HookError as error:
            return not error.was_started
        return True

    async def _check(self, model: Model, enough: int, heard_since: float) -> None:
        asked_at, stay = trio.current_time(), model.stay
        async with self._looking:
            if self._looked_at >= asked_at or not _is_in_use(model, stay):
                return  # another task has checked meanwhile
            began_at = trio.current_time()
            is_well = await self.is_alive(model)
            # Not in a `finally`: if the caller is cancelled, so is the check, which proves nothing.
            self._looked_at = began_at
            if not _is_in_use(model, stay):
                return
            is_well = is_well or self.heard_since(model.name, heard_since)
            await self._count(model, enough, is_well=is_well)

    async def _count(self, model: Model, enough: int, *, is_well: bool) -> None:
        """Count failures in a row; `enough` of them bring the model down."""
        if self._stay != model.stay:
            self._stay, self._failures = model.stay, 0
        self._failures = 0 if is_well else self._failures + 1
        if self._failures >= enough:
            self._failures = 0
            await self._bring_down(model)


def _is_in_use(model: Model, stay: int) -> bool:
    """Return whether the model is in use, and has not slept since the check was requested."""
    return model.stay == stay and model.phase in IN_USE
