"""Measure models while they are awake: right after a wake, and less and less often later.

Memory grows with use, mostly at first. All of it happens in a task of its own: no switch waits for
a measurement, and none fails by one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import trio

from llmux.observe.events import PhaseChanged
from llmux.observe.logs import get_logger
from llmux.observe.needs_seen import SeenNeeds

FIRST_S = 60.0
"""Time from the first measurement to the next; it doubles with each."""

LONGEST_S = 600.0
"""Longest time between two measurements of a model."""

Measure = Callable[[str], Awaitable[Mapping[str, int] | None]]
"""Returns what a model holds, in bytes by resource; None if that is unknown."""

log = get_logger(__name__)


class MemoryWatch:
    """Measures models that are awake.

    Args:
        measure: Measures one.
        seen: Keeps what was found.
        awake: Returns the models to measure: those awake whose `needs` are `auto`.
        changed: Called with a model whose needs are now other than before.
    """

    def __init__(
        self,
        measure: Measure,
        seen: SeenNeeds,
        awake: Callable[[], Collection[str]],
        changed: Callable[[str], object],
    ) -> None:
        self._measure = measure
        self._seen = seen
        self._awake = awake
        self._changed = changed
        self._due: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._wanted = trio.Event()

    def note(self, event: PhaseChanged) -> None:
        """Measure a model that has just woken, or was found awake. Never blocks."""
        if event.state == "awake" and event.left != "draining":
            self.woken(event.model)

    def woken(self, model: str) -> None:
        """Measure a model as soon as possible: it has just woken. Never blocks."""
        self._due[model] = trio.current_time()
        self._pauses[model] = FIRST_S
        self._wanted.set()

    async def run(self) -> None:
        """Measure whichever model is due, one at a time, until cancelled."""
        while True:
            await self._wait_due()
            awake, now = self._awake(), trio.current_time()
            for model in [each for each, at in self._due.items() if at <= now]:
                del self._due[model]
                if model in awake:
                    await self._look(model)
                    # A wake during the measurement has asked for another one.
                    self._due.setdefault(model, trio.current_time() + self._pauses[model])
                    self._pauses[model] = min(2 * self._pauses[model], LONGEST_S)
                else:
                    self._pauses.pop(model, None)

    async def _wait_due(self) -> None:
        self._wanted = trio.Event()
        with trio.move_on_at(min(self._due.values(), default=float("inf"))):
            await self._wanted.wait()

    async def _look(self, model: str) -> None:
        try:
            found = await self._measure(model)
        except Exception as error:  # a bug in it must end no switch
            log.error("internal_error", model=model, exc_info=error)
            return
        if found is None or model not in self._awake():  # what falls asleep holds less and less
            return
        if self._seen.note(model, found):
            log.info("memory_measured", model=model, most=self._seen.of(model))
            self._changed(model)
