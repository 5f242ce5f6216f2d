"""All groups behind one front: each model name leads to the switcher of its group."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio_util import periodic

from llmux.config import Config
from llmux.errors import GroupNotFound
from llmux.http.clients import NO_PLACE, Place
from llmux.observe.events import Events
from llmux.observe.pauses import leave_out_pauses
from llmux.observe.schemas import ModeChange, Pin
from llmux.switching.admission import Check, Serving
from llmux.switching.awake import AwakeRecord
from llmux.switching.group import Mode
from llmux.switching.groups import Groups
from llmux.switching.hints import NO_HINTS, Hints
from llmux.switching.model import Model
from llmux.switching.overview import Overview
from llmux.switching.steps import Hooks
from llmux.switching.switcher import Switcher

WATCH_S = 1.0
"""How often it is looked whether the switchers get on."""


class Switchboard(Overview):
    """One switcher for each group of models; groups never wait for each other.

    Attributes:
        on_death: Called when a switcher is stuck: its hook cannot even be ended.
    """

    def __init__(
        self,
        config: Config,
        hooks: Hooks,
        events: Events,
        *,
        record: AwakeRecord | None = None,
    ) -> None:
        self._record = record or AwakeRecord(None)
        self._hooks = hooks
        self._events = events
        self._running: trio.Nursery | None = None
        self._is_stopped = False
        super().__init__(Groups(hooks, events, self._record, self._start))
        self._groups.fill(config)
        self._ended = trio.Event()
        self.on_death: Callable[[], object] = lambda: None
        self.refuses, self.policies_for = self._groups.refuses, self._groups.policies_for
        self.apply, self.connect = self._groups.apply, self._groups.connect

    def __repr__(self) -> str:
        return f"<Switchboard {dict(self.groups)!r}>"

    # ---- The door ----

    def serving(
        self,
        model: str,
        scope: trio.CancelScope | None = None,
        hints: Hints = NO_HINTS,
        *,
        request: str = "",
        place: Place = NO_PLACE,
    ) -> Serving:
        """The only way into a model; see `Switcher.serving`.

        Raises:
            ModelNotFound: No model has this name.
        """
        switcher = self.switcher_of(model)
        return switcher.serving(model, scope, hints, request=request, place=place, find=self._find)

    def _find(self, model: str) -> tuple[Model, Check] | None:
        """A model and its door, where there is one by this name now."""
        switcher = self._groups.get(model)
        return None if switcher is None else (switcher.models[model], switcher.check_admissible)

    async def refused(self, model: str) -> None:
        """A model's backend has refused a connection; see `Health.refused`.

        Whoever asks counts as beside the line, so that the model is not removed meanwhile.
        """
        if (switcher := self._groups.get(model)) is not None:
            await switcher.health.refused(switcher.models[model])

    async def silent(self, model: str) -> None:
        """A model's backend has sent nothing for too long; see `Health.silent`."""
        if (switcher := self._groups.get(model)) is not None:
            await switcher.health.silent(switcher.models[model])

    def look_at_sockets(self) -> None:
        """See `Switcher.look_at_sockets`; for all groups, and called often."""
        for switcher in self.groups.values():
            switcher.look_at_sockets()

    # ---- What operators may do ----

    def set_mode(self, mode: Mode) -> None:
        """Change the mode of all groups; entering manual mode refuses all who wait."""
        self._groups.mode = mode
        for switcher in self.groups.values():
            switcher.set_mode(mode)
        self._events.mode_changed.tell(ModeChange(at=self._events.clock.now(), mode=mode))

    async def force_switch(self, model: str) -> None:
        """Switch a model's group to it; see `Switcher.force_switch`."""
        await self.switcher_of(model).force_switch(model)

    async def put_model_to_sleep(self, model: str) -> None:
        """Drain a model and put it to sleep; see `Switcher.put_model_to_sleep`."""
        await self.switcher_of(model).put_model_to_sleep(model)

    async def pin(self, pin: Pin) -> None:
        """Keep a model of its group awake; see `Switcher.pin`."""
        await self.switcher_of(pin.model).pin(pin)

    def unpin(self, group: str | None = None) -> None:
        """Leave it to the policy again what is awake in a group, or in all.

        Raises:
            GroupNotFound: There is none of this name.
        """
        if group is not None and group not in self.groups:
            raise GroupNotFound(group)
        for name, switcher in self.groups.items():
            if group in {None, name}:
                switcher.unpin()

    # ---- Its life ----

    @property
    def is_healthy(self) -> bool:
        """Whether every group's switcher can make progress."""
        return not any(switcher.has_died for switcher in self.groups.values())

    async def run(self) -> None:
        """Run every group's switcher until `stop`."""
        self._record.load(self.models)
        try:
            for mark in self._record.left_marks():
                await self._hooks.end_marked(
                    mark
                )  # it would wake a model that nobody puts to sleep
            async with trio.open_nursery() as beside:
                beside.start_soon(self._watch_switchers)
                beside.start_soon(leave_out_pauses)
                async with trio.open_nursery() as self._running:
                    for switcher in self.groups.values():
                        self._start(switcher)
                beside.cancel_scope.cancel()
        finally:
            self._running = None
            self._ended.set()

    def _start(self, switcher: Switcher) -> None:
        if self._running is not None and not self._is_stopped:
            self._running.start_soon(self._run, switcher)

    @staticmethod
    async def _run(switcher: Switcher) -> None:
        async with trio.open_nursery() as beside:
            beside.start_soon(switcher.health.watch)
            await switcher.run()
            beside.cancel_scope.cancel()

    async def _watch_switchers(self) -> None:
        """Notice one whose hook cannot even be ended."""
        async for _ in periodic(WATCH_S):
            stuck = [group for group, each in self.groups.items() if each.die_if_stuck()]
            if stuck:
                self.on_death()

    def end(self) -> None:
        """End `run` at once, after `stop`: a hook that runs is ended like one over its time."""
        if self._running is not None:
            self._running.cancel_scope.cancel()

    @property
    def has_ended(self) -> bool:
        """Whether `run` has."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until `run` has ended: no hook runs then, and none will."""
        await self._ended.wait()

    async def put_to_sleep(self) -> None:
        """Run the sleep hooks of all models that hold a GPU; only once `run` has ended."""
        async with trio.open_nursery() as nursery:
            for switcher in self.groups.values():
                nursery.start_soon(switcher.put_to_sleep)

    def stop(self) -> None:
        """Let nobody in any more, in any group; `run` ends with the switches that are running."""
        self._is_stopped = True
        for switcher in self.groups.values():
            switcher.stop()
