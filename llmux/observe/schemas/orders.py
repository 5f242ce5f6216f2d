"""Bodies of control requests: which model, which mode, which pin."""

from __future__ import annotations

from llmux.observe.schemas.base import ModeName, Order


class ModelOrder(Order, frozen=True):
    """Which model; aliases count.

    Attributes:
        model: Its name.
    """

    model: str


class ModeOrder(Order, frozen=True):
    """Which mode.

    Attributes:
        mode: manual: nothing but orders switches; requests for a model that is not awake get 503.
    """

    mode: ModeName


class PinOrder(Order, frozen=True):
    """Keep a model awake.

    Attributes:
        model: Its name.
        wait: Whether requests for the group's other models wait until it is unpinned; else they
            get 503.
    """

    model: str
    wait: bool = False


class UnpinOrder(Order, frozen=True):
    """Pin a model no more.

    Attributes:
        group: Whose pin; none: every group's, and the mode becomes auto.
    """

    group: str | None = None
