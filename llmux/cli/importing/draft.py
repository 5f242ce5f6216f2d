"""A config that is being made: values, and notes on what they do not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelDraft:
    """One model.

    Attributes:
        values: Its keys, in the order in which they are written.
        notes: What its source says and `values` do not; each is a sentence without a full stop.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Draft:
    """A whole config; see `ModelDraft` for values and notes.

    Attributes:
        source: What it was made from, as a user would write it.
        models: By name.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    models: dict[str, ModelDraft] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
