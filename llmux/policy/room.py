"""The memory that models share: amounts of named resources, and what each model needs of them.

Amounts are tuples of bytes, one for each resource, in the order of `Memory.resources`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import add, sub

Amounts = tuple[int, ...]
"""Bytes of each resource."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one model holds, in bytes of each resource.

    Attributes:
        awake: While it is awake or drains.
        asleep: While it sleeps.
        moving: While a hook wakes it: at least the larger of both, since a model copies its weights
            before it frees the originals; more if its start needs more.
        starting: While a hook wakes it after it was stopped, so that nothing is held asleep.
    """

    awake: Amounts
    asleep: Amounts
    moving: Amounts
    starting: Amounts

    @classmethod
    def of(
        cls, awake: Amounts, asleep: Amounts | None = None, peak: Amounts | None = None
    ) -> Needs:
        """Return needs, where a model needs nothing asleep and no more than awake to start."""
        asleep = asleep or (0,) * len(awake)
        peak = peak or awake
        starting = tuple(map(max, awake, peak))
        return cls(awake, asleep, tuple(map(max, asleep, starting)), starting)

    @property
    def falling(self) -> Amounts:
        """What it holds while a hook puts it to sleep."""
        return tuple(map(max, self.awake, self.asleep))

    @property
    def taken(self) -> Amounts:
        """What a wake takes in the end; negative where the model needs more asleep."""
        return less(self.awake, self.asleep)


@dataclass(frozen=True, slots=True)
class Memory:
    """All memory that a group of models shares.

    Attributes:
        resources: Their names, as in the config.
        amounts: How much there is of each.
        needs: What each model needs.
    """

    resources: tuple[str, ...]
    amounts: Amounts
    needs: Mapping[str, Needs] = field(default_factory=dict)


def more(some: Amounts, others: Amounts) -> Amounts:
    """Return the sum of two amounts."""
    return tuple(map(add, some, others))


def less(some: Amounts, others: Amounts) -> Amounts:
    """Return the difference of two amounts."""
    return tuple(map(sub, some, others))


def total(amounts: Iterable[Amounts], zero: Amounts) -> Amounts:
    """Return the sum of amounts; `zero` if there is none."""
    for each in amounts:
        zero = more(zero, each)
    return zero


def covers(have: Amounts, need: Amounts) -> bool:
    """Return whether there is enough of every resource."""
    return all(map(int.__ge__, have, need))
