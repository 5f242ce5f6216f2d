"""The two kinds of JSON object: those that llmux sends, and those that it receives."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelState = Literal["asleep", "waking", "awake", "draining", "sleeping", "failed"]
ModeName = Literal["auto", "manual"]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """An object that llmux sends."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object that llmux receives; unknown keys are errors."""


class Message(Shape, frozen=True):
    """The request was carried out.

    Attributes:
        message: A description of what was done.
    """

    message: str
