"""Operators' settings as events: mode, pins and reloads."""

from __future__ import annotations

import msgspec

from llmux.observe.schemas.base import ModeName, Shape


class Pin(Shape, frozen=True):
    """A pin, which keeps a model of a group awake.

    Attributes:
        model: The pinned model.
        wait: True if requests for models that cannot be awake beside it wait; otherwise they get
            503.
    """

    model: str
    wait: bool


class ModeChange(Shape, frozen=True):
    """The mode has changed.

    Attributes:
        at: When.
        mode: The new mode.
    """

    at: float
    mode: ModeName


class CordonChange(Shape, frozen=True):
    """llmux has been cordoned or uncordoned.

    Attributes:
        at: When.
        cordoned: True if new requests are refused from now on.
    """

    at: float
    cordoned: bool


class PinChange(Shape, frozen=True):
    """A group has been pinned or unpinned.

    Attributes:
        at: When.
        group: The group.
        pinned: The last pin; null: the group is not pinned any more.
        pins: All pins in force, the last one first.
    """

    at: float
    group: str
    pinned: Pin | None
    pins: list[Pin] = msgspec.field(default_factory=list)


class Reloaded(Shape, frozen=True):
    """The config was read again.

    Attributes:
        at: When.
        ok: True if the new config is in use.
        mistakes: The errors in the new config, if it is not in use.
        models: The models of the config in use.
        needs_restart: Keys whose new values take effect at the next start only.
    """

    at: float
    ok: bool
    models: list[str]
    mistakes: list[str] = msgspec.field(default_factory=list)
    needs_restart: list[str] = msgspec.field(default_factory=list)
