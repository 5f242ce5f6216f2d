"""Pins: the model that operators keep awake in a group."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from llmux.errors import PinLost, Pinned
from llmux.observe.schemas import Pin


class Pins:
    """A stack of pins: the last one is in force; if its model cannot be woken, the one before is.

    Attributes:
        on_change: Called after each change.
    """

    def __init__(self) -> None:
        self._pins: list[Pin] = []
        self.on_change: Callable[[], None] = lambda: None

    @property
    def current(self) -> Pin | None:
        """The pin in force, or None."""
        return self._pins[-1] if self._pins else None

    @property
    def model(self) -> str | None:
        """The pinned model, or None."""
        return self._pins[-1].model if self._pins else None

    def refusal(self, model: str) -> Pinned | None:
        """Return the error for a request that the pin forbids, or None."""
        pin = self.current
        if pin is None or pin.wait or pin.model == model:
            return None
        return Pinned(model, pin.model)

    def place(self, pin: Pin) -> Pin:
        """Put a pin in force.

        Returns:
            A copy that identifies it, since an equal pin may have been placed before.
        """
        placed = replace(pin)
        self._pins.append(placed)
        self.on_change()
        return placed

    def keep(self, placed: Pin) -> None:
        """Drop the pins before this one, now that its model is awake.

        Raises:
            PinLost: It was removed meanwhile.
        """
        if not self._holds(placed):
            raise PinLost(placed.model)
        while self._pins[0] is not placed:
            del self._pins[0]

    def take_back(self, placed: Pin) -> None:
        """Remove a pin whose model could not be woken."""
        if self._holds(placed):
            self._pins = [each for each in self._pins if each is not placed]
            self.on_change()

    def forget(self, model: str) -> None:
        """Remove the pins of a model that was removed; idempotent."""
        if any(each.model == model for each in self._pins):
            self._pins = [each for each in self._pins if each.model != model]
            self.on_change()

    def clear(self) -> None:
        if self._pins:
            self._pins.clear()
            self.on_change()

    def _holds(self, placed: Pin) -> bool:
        return any(each is placed for each in self._pins)
