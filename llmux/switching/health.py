"""Whether the model that is awake still answers, and what happens if it does not.

Its `alive` hook is run now and then, and at once when its backend refuses a connection. A failure
counts only if nothing came from the backend meanwhile: a busy server may be slow to say that it is
well.
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
"""Whether a byte has come from a model's backend since a time (Trio's clock, seconds)."""


class Health:
    """Looks after the model of one group that is awake.

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
        """Start nothing yet.

        Args:
            in_use: The model that is awake or draining.
            hooks: Runs alive hooks.
            settings: How often to look, and how many failures are enough.
            bring_down: Called with a model that does not answer any more.
        """
        self.heard_since: HeardSince = lambda _model, _since: False
        self._in_use = in_use
        self._hooks = hooks
        self._settings = settings
        self._bring_down = bring_down
        self._looking = trio.Lock()  # one alive hook at a time
        self._looked_at = -math.inf
        self._stay = 0  # of the model, as all that was seen of it
        self._failures = 0
        self._applied = trio.Event()

    def apply(self, settings: PolicyConfig) -> None:
        """Use other settings from now on."""
        self._settings = settings
        self._applied.set()
        self._applied = trio.Event()

    async def watch(self) -> None:
        """Look every `alive_interval_secs`, for ever."""
        while True:
            with trio.move_on_after(self._settings.alive_interval_secs or math.inf) as interval:
                await self._applied.wait()
            model = self._in_use()
            if interval.cancelled_caught and model is not None:
                enough = self._settings.alive_failures
                since = max(self._looked_at, model.entered_at)
                await self._check(model, enough, heard_since=since)

    async def refused(self, model: Model) -> None:
        """The backend has refused a connection: look at once, and one failure is enough.

        Returns when the model is found to be well, or has been brought down, or is not in use.
        """
        await self._check(model, enough=1, heard_since=trio.current_time())

    async def silent(self, model: Model) -> None:
        """Its backend has sent nothing of a stream for too long: as bad as a look that failed."""
        stay = model.stay
        async with self._looking:
            if _is_in_use(model, stay):
                await self._count(model, enough=self._settings.alive_failures, is_well=False)

    async def is_alive(self, model: Model) -> bool:
        """Run its alive hook. One that cannot be started says nothing against the model."""
        try:
            await self._hooks.of(model.name).run("alive", target=model.name)
        except HookError as error:
            return not error.was_started
        return True

    async def _check(self, model: Model, enough: int, heard_since: float) -> None:
        asked_at, stay = trio.current_time(), model.stay
        async with self._looking:
            if self._looked_at >= asked_at or not _is_in_use(model, stay):
                return  # somebody else has looked meanwhile
            began_at = trio.current_time()
            is_well = await self.is_alive(model)
            self._looked_at = began_at  # not if whoever asked has left, and with it the look
            if not _is_in_use(model, stay):
                return
            is_well = is_well or self.heard_since(model.name, heard_since)
            await self._count(model, enough, is_well=is_well)

    async def _count(self, model: Model, enough: int, *, is_well: bool) -> None:
        """Take note of how it is; so many failures in a row are enough."""
        if self._stay != model.stay:
            self._stay, self._failures = model.stay, 0
        self._failures = 0 if is_well else self._failures + 1
        if self._failures >= enough:
            self._failures = 0
            await self._bring_down(model)


def _is_in_use(model: Model, stay: int) -> bool:
    """Whether this is still the stay that was asked about."""
    return model.stay == stay and model.phase in IN_USE
