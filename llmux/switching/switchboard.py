"""One interface for all groups: finds the switcher of a model's group."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio_util import periodic

from llmux.config import Config
from llmux.errors import Cordoned, GroupNotFound
from llmux.http.clients import NO_PLACE, Place
from llmux.observe.events import Events
from llmux.observe.pauses import leave_out_pauses
from llmux.observe.schemas import CordonChange, ModeChange, Pin
from llmux.observe.schemas.outlook import HostState
from llmux.switching.admission import Check, Serving
from llmux.switching.awake import AwakeRecord
from llmux.switching.group import Mode
from llmux.switching.groups import Groups
from llmux.switching.hints import NO_HINTS, Hints
from llmux.switching.hooks import Hooks
from llmux.switching.memory import Measured
from llmux.switching.model import Model
from llmux.switching.overview import Overview
from llmux.switching.switcher import Switcher

WATCH_S = 1.0
"""Interval between checks for stuck switchers."""


class Switchboard(Overview):
    """One switcher for each group of models; groups never wait for each other.

    Attributes:
        on_death: Called when a switcher is stuck because a hook cannot be ended.
    """

    def __init__(
        self,
        config: Config,
        hooks: Hooks,
        events: Events,
        *,
        record: AwakeRecord | None = None,
        measured: Callable[[Config], Measured] = lambda _: {},
    ) -> None:
        self._record = record or AwakeRecord(None)
        self._hooks = hooks
        self._events = events
        self._running: trio.Nursery | None = None
        self._is_stopped = False
        super().__init__(Groups(hooks, events, self._record, self._start, measured))
        self._groups.fill(config)
        self._ended = trio.Event()
        self.on_death: Callable[[], object] = lambda: None
        self.refuses, self.policies_for = self._groups.refuses, self._groups.policies_for
        self.apply, self.connect = self._groups.apply, self._groups.connect
        self.remeasure = self._groups.remeasure

    def __repr__(self) -> str:
        return f"<Switchboard {dict(self.groups)!r}>"

    # ---- Admission ----

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
        """Return the model that has this name now and its admission check, or None."""
        switcher = self._groups.get(model)
        return None if switcher is None else (switcher.models[model], switcher.check_admissible)

    async def refused(self, model: str) -> None:
        """Report that a model's backend refused a connection; see `Health.refused`.

        The caller must be inside `Serving.waiting_beside_line`, so that the model is not removed
        meanwhile.
        """
        if (switcher := self._groups.get(model)) is not None:
            await switcher.health.refused(switcher.models[model])

    async def silent(self, model: str) -> None:
        """Report that a model's backend has been silent for too long; see `Health.silent`."""
        if (switcher := self._groups.get(model)) is not None:
            await switcher.health.silent(switcher.models[model])

    def look_at_sockets(self) -> None:
        """Call `draining.look_at_sockets` for all groups."""
        for switcher in self.groups.values():
            switcher.look_at_sockets()

    # ---- Operators ----

    def set_mode(self, mode: Mode) -> None:
        """Change the mode of all groups; entering manual mode refuses all waiting requests."""
        self._groups.mode = mode
        for switcher in self.groups.values():
            switcher.set_mode(mode)
        self._events.mode_changed.tell(ModeChange(at=self._events.clock.now(), mode=mode))

    def set_cordoned(self, cordoned: bool) -> None:
        """Refuse new requests from now on, or admit them again; idempotent.

        Requests in line or in flight are served as usual, and operators' commands are carried out.
        """
        if cordoned is self.is_cordoned:
            return
        self._groups.is_cordoned = cordoned
        for switcher in self.groups.values():
            switcher.set_cordoned(cordoned)
        change = CordonChange(at=self._events.clock.now(), cordoned=cordoned)
        self._events.cordon_changed.tell(change)

    def check_cordon(self) -> None:
        """Raise Cordoned if new requests are refused: for those that no model here serves."""
        if self.is_cordoned:
            raise Cordoned

    async def force_switch(self, model: str) -> None:
        """Switch a model's group to it; see `Wishes.force_switch`."""
        await self.switcher_of(model).force_switch(model)

    async def put_model_to_sleep(self, model: str) -> None:
        """Drain a model and put it to sleep; see `Wishes.put_model_to_sleep`."""
        await self.switcher_of(model).put_model_to_sleep(model)

    async def pin(self, pin: Pin) -> None:
        """Keep a model of its group awake; see `Wishes.pin`."""
        await self.switcher_of(pin.model).pin(pin)

    def unpin(self, group: str | None = None, *, model: str | None = None) -> None:
        """Let the policy choose again: about one model, in one group, or in all.

        Raises:
            GroupNotFound, ModelNotFound: There is none of this name.
        """
        if model is not None:
            self.switcher_of(model).unpin(model)
            return
        if group is not None and group not in self.groups:
            raise GroupNotFound(group)
        for name, switcher in self.groups.items():
            if group in {None, name}:
                switcher.unpin()

    # ---- Running and stopping ----

    @property
    def is_healthy(self) -> bool:
        """True if every group's switcher can make progress."""
        return not any(switcher.has_died for switcher in self.groups.values())

    @property
    def host_state(self) -> HostState:
        """ready, or why new requests are refused."""
        if not self.is_healthy:
            return "dead"
        if self._is_stopped:
            return "stopping"
        return "cordoned" if self.is_cordoned else "ready"

    async def run(self) -> None:
        """Run every group's switcher until `stop`."""
        self._record.load(self.models)
        try:
            for mark in self._record.left_marks():
                # Left running, it might wake a model that is not in the config any more.
                await self._hooks.end_marked(mark)
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
        """Call `on_death` when a switcher is stuck because a hook cannot be ended."""
        async for _ in periodic(WATCH_S):
            stuck = [group for group, each in self.groups.items() if each.die_if_stuck()]
            if stuck:
                self.on_death()

    def standing_still(self) -> list[str]:
        """Return the switchers that have not gone on since the last call, and why, for people.

        Once llmux stops, they end within its grace, however they are.
        """
        if self._is_stopped:
            return []
        found = ((name, each.progress.look()) for name, each in self.groups.items())
        return [f"the switcher of {name}: {why}" for name, why in found if why]

    def end(self) -> None:
        """End `run` at once, after `stop`; a running hook is ended as at its time-out."""
        if self._running is not None:
            self._running.cancel_scope.cancel()

    @property
    def has_ended(self) -> bool:
        """True once `run` has ended."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until `run` has ended; no hook is running then, and none will be started."""
        await self._ended.wait()

    async def put_to_sleep(self) -> None:
        """Put all models that hold a GPU to sleep; call it only after `run` has ended."""
        async with trio.open_nursery() as nursery:
            for switcher in self.groups.values():
                nursery.start_soon(switcher.put_to_sleep)

    def stop(self) -> None:
        """Stop admitting requests in all groups; `run` ends once running switches have ended."""
        self._is_stopped = True
        for switcher in self.groups.values():
            switcher.stop()
