"""Operators' settings as events: mode, pins and reloads."""

from __future__ import annotations

import msgspec

from llmux.observe.schemas.base import ModeName, Shape


class Pin(Shape, frozen=True):
    """A model that its group keeps awake.

    Attributes:
        model: Which.
        wait: Whether requests for others wait; else they get 503.
    """

    model: str
    wait: bool


class ModeChange(Shape, frozen=True):
    """The mode has changed.

    Attributes:
        at: When.
        mode: What it is now.
    """

    at: float
    mode: ModeName


class PinChange(Shape, frozen=True):
    """A group has been pinned or unpinned.

    Attributes:
        at: When.
        group: Which.
        pinned: To what; null: it is free.
    """

    at: float
    group: str
    pinned: Pin | None


class Reloaded(Shape, frozen=True):
    """The config was read again.

    Attributes:
        at: When.
        ok: Whether it is used.
        mistakes: Why not.
        models: The models there are now.
        needs_restart: Keys whose new values count from the next start only.
    """

    at: float
    ok: bool
    models: list[str]
    mistakes: list[str] = msgspec.field(default_factory=list)
    needs_restart: list[str] = msgspec.field(default_factory=list)
