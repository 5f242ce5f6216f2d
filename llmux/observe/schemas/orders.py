"""Bodies of control requests."""

from __future__ import annotations

from llmux.observe.schemas.base import ModeName, Order


class ModelOrder(Order, frozen=True):
    """A model to act on.

    Attributes:
        model: The model's name, or an alias.
    """

    model: str


class ModeOrder(Order, frozen=True):
    """The mode to set.

    Attributes:
        mode: auto: the policy switches. manual: only control requests switch, and requests for a
            model that is not awake get 503.
    """

    mode: ModeName


class PinOrder(Order, frozen=True):
    """Keep a model awake.

    Attributes:
        model: The model's name, or an alias.
        wait: True if requests for models that cannot be awake beside it wait until it is unpinned;
            otherwise they get 503.
    """

    model: str
    wait: bool = False


class UnpinOrder(Order, frozen=True):
    """Remove pins.

    Attributes:
        group: The group to unpin. By default all groups are unpinned, and the mode becomes auto.
        model: The model whose pin is to be removed, by its name or an alias; not with a group.
    """

    group: str | None = None
    model: str | None = None
