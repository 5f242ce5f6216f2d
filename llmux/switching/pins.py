"""Pins: models that operators keep awake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from llmux.errors import PinLost, Pinned
from llmux.observe.schemas import Pin


class Pins:
    """A stack of pins. The last one is in force, and those before it that fit beside it.

    If the model of a pin cannot be woken, the pins that it had displaced are in force again.

    Attributes:
        on_change: Called after each change.
        fit: Returns whether models may be awake together.
    """

    def __init__(self) -> None:
        self._pins: list[Pin] = []
        self.on_change: Callable[[], None] = lambda: None
        self.fit: Callable[[Sequence[str]], bool] = lambda models: len(models) < 2

    @property
    def current(self) -> Pin | None:
        """The last pin in force, or None."""
        return self._pins[-1] if self._pins else None

    @property
    def in_force(self) -> list[Pin]:
        """The pins in force, the last one first."""
        found: list[Pin] = []
        for pin in reversed(self._pins):
            models = list(dict.fromkeys([*(each.model for each in found), pin.model]))
            if len(models) > len(found) and self.fit(models):
                found.append(pin)
        return found

    @property
    def models(self) -> frozenset[str]:
        """The pinned models."""
        return frozenset(pin.model for pin in self.in_force) if self._pins else frozenset()

    def holds_up(self, model: str) -> Pin | None:
        """Return the pin that keeps a model from being woken, or None."""
        in_force = self.in_force if self._pins else []
        pinned = [pin.model for pin in in_force]
        if not pinned or model in pinned or self.fit([*pinned, model]):
            return None
        # Of several, one beside which the model cannot be; the last one if it is all together.
        return next((pin for pin in in_force if not self.fit([pin.model, model])), in_force[0])

    def refusal(self, model: str) -> Pinned | None:
        """Return the error for a request that a pin forbids, or None."""
        if not self._pins:  # in short, since it is asked for each request
            return None
        pin = self.holds_up(model)
        return None if pin is None or pin.wait else Pinned(model, pin.model)

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
        """Drop the pins that this one has displaced, now that its model is awake.

        Raises:
            PinLost: It was removed meanwhile.
        """
        if not self._holds(placed):
            raise PinLost(placed.model)
        in_force = self.in_force
        later = self._pins[self._pins.index(placed) :]
        self._pins = [each for each in self._pins if _is_in(each, in_force) or _is_in(each, later)]

    def take_back(self, placed: Pin) -> None:
        """Remove a pin whose model could not be woken."""
        if self._holds(placed):
            self._pins = [each for each in self._pins if each is not placed]
            self.on_change()

    def forget(self, model: str) -> None:
        """Remove the pins of a model that was removed, or unpinned; idempotent."""
        if any(each.model == model for each in self._pins):
            self._pins = [each for each in self._pins if each.model != model]
            self.on_change()

    def clear(self) -> None:
        if self._pins:
            self._pins.clear()
            self.on_change()

    def _holds(self, placed: Pin) -> bool:
        return _is_in(placed, self._pins)


def _is_in(pin: Pin, pins: Sequence[Pin]) -> bool:
    return any(each is pin for each in pins)
