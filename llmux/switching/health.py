"""Health checks: run the `alive` hook of models that are awake, and bring them down if it fails.

The hook runs every `alive_interval_secs`, and at once when the backend refuses a connection. A
failure counts only if the backend sent nothing meanwhile: a busy server may be too slow to answer a
check.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import trio

from llmux.config import PolicyConfig
from llmux.errors import HookError
from llmux.observe.events import Events
from llmux.observe.logs import get_logger
from llmux.observe.schemas import AliveChange, AliveTrouble
from llmux.switching.group import IN_USE
from llmux.switching.hooks import Hooks
from llmux.switching.model import Model

log = get_logger(__name__)

HeardSince = Callable[[str, float], bool]
"""Returns whether a backend has sent a byte since a time (model, Trio's clock in seconds)."""


@dataclass
class _File:
    """What is known of one model's health.

    Attributes:
        looking: Held while its alive hook runs, so that one runs at a time.
        looked_at: When that last began.
        stay: The stay that `trouble` is about.
        trouble: Its failures in a row.
    """

    looking: trio.Lock = field(default_factory=trio.Lock)
    looked_at: float = -math.inf
    stay: int = -1
    trouble: AliveTrouble | None = None


class Health:
    """Checks the health of the models in use of one group.

    Args:
        in_use: Returns the models that are awake or draining.
        hooks: Runs alive hooks.
        settings: The interval between checks, and the number of failures that bring a model down.
        bring_down: Called with a model that no longer answers.
        events: Gets an event for each failure that counts, and for the success after it.

    Attributes:
        heard_since: Asked before a failure counts.
    """

    def __init__(
        self,
        in_use: Callable[[], Sequence[Model]],
        hooks: Hooks,
        settings: PolicyConfig,
        bring_down: Callable[[Model], Awaitable[None]],
        events: Events,
    ) -> None:
        self.heard_since: HeardSince = lambda _model, _since: False
        self._in_use = in_use
        self._hooks = hooks
        self._settings = settings
        self._bring_down = bring_down
        self._events = events
        self._files = WeakKeyDictionary[Model, _File]()
        self._applied = trio.Event()

    def apply(self, settings: PolicyConfig) -> None:
        self._settings = settings
        self._applied.set()  # the interval may be another one now
        self._applied = trio.Event()

    async def watch(self) -> None:
        """Check every `alive_interval_secs`, until cancelled."""
        async with trio.open_nursery() as checks:
            while True:
                with trio.move_on_after(self._settings.alive_interval_secs or math.inf) as interval:
                    await self._applied.wait()
                if not interval.cancelled_caught:
                    continue
                for model in self._in_use():
                    file = self._file(model)
                    if not file.looking.locked():  # else it may be brought down just now
                        since = max(file.looked_at, model.entered_at)
                        checks.start_soon(self._check, model, self._settings.alive_failures, since)

    def _file(self, model: Model) -> _File:
        return self._files.setdefault(model, _File())

    async def refused(self, model: Model) -> None:
        """Check at once, since the backend refused a connection; one failure is enough.

        Returns once the model has been found alive or brought down, or is not in use.
        """
        await self._check(model, 1, trio.current_time())

    async def silent(self, model: Model) -> None:
        """Count a failed check, since a stream of the backend has been silent for too long."""
        stay = model.stay
        async with self._file(model).looking:
            if _is_in_use(model, stay):
                await self._count(model, self._settings.alive_failures, "a stream has been silent")

    def trouble_of(self, model: Model) -> AliveTrouble | None:
        """Return the failures in a row of a model in use; None if there are none."""
        file = self._file(model)
        return file.trouble if _is_in_use(model, file.stay) else None

    async def is_alive(self, model: Model) -> bool:
        """Run the alive hook; a hook that cannot be started counts as success."""
        return await self._failure_of(model) is None

    async def _failure_of(self, model: Model) -> str | None:
        try:
            await self._hooks.of(model.name).run("alive", target=model.name)
        except HookError as error:
            return error.reason if error.was_started else None
        return None

    async def _check(self, model: Model, enough: int, heard_since: float) -> None:
        asked_at, stay, file = trio.current_time(), model.stay, self._file(model)
        async with file.looking:
            if file.looked_at >= asked_at or not _is_in_use(model, stay):
                return  # another task has checked meanwhile
            began_at = trio.current_time()
            failure = await self._failure_of(model)
            # Not in a `finally`: if the caller is cancelled, so is the check, which proves nothing.
            file.looked_at = began_at
            if not _is_in_use(model, stay):
                return
            if failure is not None and self.heard_since(model.name, heard_since):
                failure = None
            await self._count(model, enough, failure)

    async def _count(self, model: Model, enough: int, failure: str | None) -> None:
        """Count failures in a row; `enough` of them bring the model down."""
        before = self.trouble_of(model)
        count = 0 if failure is None else 1 + (before.failures if before else 0)
        trouble = AliveTrouble(count, enough, failure) if failure is not None else None
        if trouble or before:
            at = self._events.clock.now()
            self._events.alive_changed.tell(AliveChange(at=at, model=model.name, trouble=trouble))
        file = self._file(model)
        file.stay, file.trouble = model.stay, trouble
        if count >= enough:
            file.trouble = None
            await self._bring_down(model)


def _is_in_use(model: Model, stay: int) -> bool:
    """Return whether the model is in use, and has not slept since the check was requested."""
    return model.stay == stay and model.phase in IN_USE
