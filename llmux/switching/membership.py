"""Membership: add, reconfigure and remove models while the group is served.

A model's hooks and server may change only while it sleeps, so that it is put to sleep by the hooks
that woke it. A change is made at once if the model sleeps, and else kept in `Group.changes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llmux.config import PolicyConfig
from llmux.observe.logs import get_logger
from llmux.switching.awake import AwakeRecord
from llmux.switching.bookkeeping import Bookkeeper
from llmux.switching.commands import Command, Reconfigure, Wake
from llmux.switching.group import Group
from llmux.switching.idle import IdleRules
from llmux.switching.ledger import Hold
from llmux.switching.memory import GroupMemory
from llmux.switching.model import AT_REST, NO_TRAITS, Model, Phase, Traits
from llmux.switching.observer import Chronicle

log = get_logger(__name__)


class Membership:
    """Adds, reconfigures and removes the models of one group."""

    def __init__(self, group: Group, record: AwakeRecord, chronicle: Chronicle) -> None:
        self._group = group
        self._record = record
        self._books = Bookkeeper(group, record, chronicle, self._remove_if_unwanted)

    def add(self, name: str, traits: Traits = NO_TRAITS) -> None:
        """Add a sleeping model, or cancel a pending removal.

        A model that an earlier llmux may have left awake is put to sleep before another one wakes.
        """
        group = self._group
        group.leaving.pop(name, None)
        if name in group.models:
            return
        model = group.models[name] = self._books.open(name, traits)
        _apply_settings(model, group.settings)
        self._refit()
        if self._record.take_left(name):
            log.warning("model_unsure", model=name, hint="slept before another wakes")
            model.holds_gpu = True
            group.room.ledger.find(name, Hold.UNSURE)
            model.enter(Phase.FAILED)

    def use_memory(self, shared: GroupMemory | None, busy: int | None = None) -> None:
        """Let the models share this memory from now on.

        Args:
            shared: The memory; None: one model is awake at a time.
            busy: Number of models that may be at work on one resource; None: any.
        """
        group = self._group
        group.room.use(shared, group.models, lambda name: group.models[name].may_stop)
        group.busy = busy
        group.places.use(busy if shared is not None else None)
        group.changed.set()

    def _refit(self) -> None:
        """Share the same memory among the models that there are now."""
        self.use_memory(self._group.room.shared, self._group.busy)

    def apply(self, settings: PolicyConfig, queued_per_model: int, idle_rules: IdleRules) -> None:
        """Use other settings from now on."""
        group = self._group
        group.settings = settings
        group.queued_per_model = queued_per_model
        group.idle_rules = idle_rules
        for model in group.models.values():
            _apply_settings(model, settings)
        group.changed.set()

    # ---- Changes ----

    def renew(self, name: str, then: Callable[[], None]) -> None:
        """Call `then` while the model sleeps: now, or once it has been drained and put to sleep.

        This replaces an earlier change of the model that is still pending.
        """
        group = self._group
        model = group.models[name]
        if self._rests(model):
            self.leave_as_is(name)
            then()
            return
        # `note_asleep` makes the change as soon as the model sleeps, for whatever reason. The
        # command only makes that happen sooner.
        group.changes[name] = then
        reason = "its config has changed"
        commands: list[Command] = [Reconfigure(model, reason)]
        # In manual mode, or while pinned, no request and no policy would wake it again.
        if group.is_kept(model) and model.phase in {Phase.WAKING, Phase.AWAKE}:
            commands.append(Wake(model, reason, stands=True))
        group.queue(*commands)

    def leave_as_is(self, name: str) -> None:
        """Cancel the pending change of a model, and the drain for it; idempotent."""
        if self._group.changes.pop(name, None) is not None:
            self._group.changed.set()

    def note_asleep(self, model: Model) -> None:
        """Make the pending change of a model that now sleeps."""
        if (change := self._group.changes.pop(model.name, None)) is not None:
            change()

    # ---- Removal ----

    def is_unused(self, name: str) -> bool:
        """Return whether a model can be removed at once."""
        model = self._group.models[name]
        return self._rests(model) and model.is_unused

    def remove(self, name: str, then: Callable[[], None]) -> None:
        """Remove a model and call `then`, once no request needs it and it sleeps."""
        self._group.leaving[name] = then
        self.leave_as_is(name)
        self._remove_if_unwanted(self._group.models[name])

    def remove_unwanted(self) -> None:
        """Remove models whose last request was about to retry, and has given up."""
        group = self._group
        for name in [name for name in group.leaving if name not in group.changes]:
            self._remove_if_unwanted(group.models[name])

    def _remove_if_unwanted(self, model: Model) -> None:
        group = self._group
        if model.name not in group.leaving or not model.is_unused:
            return

        def finish() -> None:
            # Meanwhile a reload may have kept the model, or a new request may have arrived.
            if model.is_unused and (then := group.leaving.pop(model.name, None)) is not None:
                del group.models[model.name]
                self._refit()
                group.measures.forget(model.name)
                group.pins.forget(model.name)
                then()

        self.renew(model.name, finish)

    def _rests(self, model: Model) -> bool:
        """Return whether the model sleeps and no running command may change that."""
        is_asleep = model.phase in AT_REST and not model.holds_gpu
        return is_asleep and not self._group.switch_lock.holds(model.name)


def _apply_settings(model: Model, settings: PolicyConfig) -> None:
    idle_s = settings.websocket_idle_secs
    model.drains = settings.drain_before_switch
    model.failing_after = settings.wake_failures or math.inf
    model.socket_idle_s = math.inf if idle_s is None else idle_s
