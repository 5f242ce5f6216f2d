"""The operator's wishes: modes, forced switches, sleeps on demand and pins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llmux.errors import ManualMode, ModelNotFound
from llmux.observe.schemas import Pin
from llmux.switching.commands import Command, Outcome, Sleep, Wake
from llmux.switching.group import Group, Mode
from llmux.switching.model import Model

OPERATOR = "an operator"
"""The reason of an operator's command, as logs and the journal show it."""


class Wishes:
    """Turns an operator's wishes for one group into commands and pins.

    Args:
        group: The group.
        tell_pin: Called with the group's last pin, or None, and all in force, after each change.
    """

    def __init__(self, group: Group, tell_pin: Callable[[Pin | None, list[Pin]], object]) -> None:
        self._group = group
        self._tell_pin = tell_pin
        group.pins.on_change = self._apply_pin

    def set_mode(self, mode: Mode) -> None:
        """Change the mode; entering manual mode refuses all waiting requests."""
        group = self._group
        group.mode = mode
        if mode == "manual":
            for model in group.models.values():
                if not model.is_awake:
                    model.waiters.refuse(ManualMode(model.name, group.awake_names))
        group.changed.set()

    def set_cordoned(self, cordoned: bool) -> None:
        """Refuse new requests, or admit them again; those in line are served either way."""
        self._group.is_cordoned = cordoned

    async def force_switch(self, name: str) -> None:
        """Switch to a model regardless of the policy; returns when it is awake.

        A pin that keeps that model from being woken moves to it. The command stands even if the
        caller is cancelled while it waits.

        Raises:
            ModelNotFound, HookError, NotReady, ShuttingDown: The model is not awake.
        """
        if (pin := self._pin_to_move(name)) is not None:
            await self.pin(Pin(model=name, wait=pin.wait))
            return
        await self._follow(Wake(self._known(name), OPERATOR, stands=True, rule="forced"))

    async def put_model_to_sleep(self, name: str) -> None:
        """Drain a model and put it to sleep; a request for it wakes it again.

        Raises:
            ModelNotFound, HookError, ShuttingDown: The model does not sleep.
        """
        await self._follow(Sleep(self._known(name), OPERATOR, stands=True, rule="forced"))

    async def pin(self, pin: Pin) -> None:
        """Switch to a model and keep it awake; returns when it is awake.

        Requests for models that cannot be awake beside it are refused, or wait, until `unpin`. If
        the model cannot be woken, the pins that this one has displaced are in force again.

        Raises:
            ModelNotFound, HookError, NotReady, ShuttingDown: The model is not awake.
            PinLost: It is awake, but no longer pinned.
        """
        target = self._known(pin.model)
        placed = self._group.pins.place(pin)
        # A callback, not an `except`: the caller may be gone by the time the wake fails.
        outcome = Outcome(on_failure=partial(self._take_back, placed))
        await self._follow(Wake(target, OPERATOR, stands=True, rule="pinned", outcome=outcome))
        self._group.pins.keep(placed)

    def unpin(self, model: str | None = None) -> None:
        """Remove the pin of one model, or all; idempotent."""
        if model is None:
            self._group.pins.clear()
        else:
            self._group.pins.forget(model)

    def _pin_to_move(self, name: str) -> Pin | None:
        pins = self._group.pins
        held_up_by = pins.holds_up(name)
        if held_up_by is None and name in pins.models:
            return pins.current
        return held_up_by

    def _take_back(self, placed: Pin) -> None:
        group = self._group
        before = group.pins.models
        group.pins.take_back(placed)
        if group.closed_with is not None:
            return
        # Pins are in force again whose models may have been put to sleep for this one.
        for name in group.pins.models - before:
            group.queue(Wake(group.models[name], OPERATOR, stands=True, rule="pinned"))

    def _apply_pin(self) -> None:
        group = self._group
        for model in group.models.values():
            if (refusal := group.pins.refusal(model.name)) is not None:
                model.waiters.refuse(refusal)
        self._tell_pin(group.pins.current, group.pins.in_force)
        group.changed.set()

    def _known(self, name: str) -> Model:
        if name not in self._group.models:
            raise ModelNotFound(name)
        self._group.check_open()
        return self._group.models[name]

    async def _follow(self, command: Command) -> None:
        self._group.queue(command)
        await command.wait()
