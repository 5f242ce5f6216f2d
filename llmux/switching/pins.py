"""What operators keep a group on."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from llmux.errors import PinLost, Pinned
from llmux.observe.schemas import Pin


class Pins:
    """The pin that counts is the last one; those before it count again should it fail.

    Args:
        on_change: Called after each change.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._pins: list[Pin] = []
        self._on_change = on_change

    @property
    def current(self) -> Pin | None:
        """The one that counts; None: there is none."""
        return self._pins[-1] if self._pins else None

    @property
    def model(self) -> str | None:
        """The model that is pinned; None: none is."""
        return self._pins[-1].model if self._pins else None

    def refusal(self, model: str) -> Pinned | None:
        """Why a request for a model is refused; None: it is not."""
        pin = self.current
        if pin is None or pin.wait or pin.model == model:
            return None
        return Pinned(model, pin.model)

    def place(self, pin: Pin) -> Pin:
        """Let this one count from now on.

        Returns:
            What to name it by: another one than any before, though it may say the same.
        """
        placed = replace(pin)
        self._pins.append(placed)
        self._on_change()
        return placed

    def keep(self, placed: Pin) -> None:
        """Its model is awake: those before it are not needed any more.

        Raises:
            PinLost: It has been taken back meanwhile.
        """
        if not self._holds(placed):
            raise PinLost(placed.model)
        while self._pins[0] is not placed:
            del self._pins[0]

    def take_back(self, placed: Pin) -> None:
        """Its model could not be woken."""
        if self._holds(placed):
            self._pins = [each for each in self._pins if each is not placed]
            self._on_change()

    def forget(self, model: str) -> None:
        """There is no such model any more; harmless when repeated."""
        if any(each.model == model for each in self._pins):
            self._pins = [each for each in self._pins if each.model != model]
            self._on_change()

    def clear(self) -> None:
        """Have none; harmless when repeated."""
        if self._pins:
            self._pins.clear()
            self._on_change()

    def _holds(self, placed: Pin) -> bool:
        return any(each is placed for each in self._pins)
