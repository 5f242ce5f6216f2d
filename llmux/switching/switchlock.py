"""The switch lock: which models a running command may move, until its settle barrier."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

ALL = None
"""All models of the group, those included that are added meanwhile."""


class SwitchLock:
    """Held by each running command, for its models.

    No model is held twice. Where one model is awake at a time, a command holds all of them, so that
    commands run one by one. Nothing waits for this lock: a command is started only if its models
    are free.
    """

    def __init__(self) -> None:
        self._held: dict[object, frozenset[str] | None] = {}

    def locked(self) -> bool:
        """Return whether any command runs."""
        return bool(self._held)

    def holds(self, model: str, *, but: object = None) -> bool:
        """Return whether a running command (but one) may move this model."""
        return any(
            models is ALL or model in models
            for holder, models in self._held.items()
            if holder is not but
        )

    def take(self, holder: object, models: Collection[str] | None = ALL) -> None:
        """Lock models for a command, in place of those that it holds already."""
        self.release(holder)
        taken = self._held if models is ALL else any(map(self.holds, models))
        assert not taken, f"{models} are locked: {self._held}"
        self._held[holder] = ALL if models is ALL else frozenset(models)

    def release(self, holder: object) -> None:
        """Unlock the models of a command; idempotent."""
        self._held.pop(holder, None)

    @contextmanager
    def all_held(self) -> Iterator[None]:
        """Lock all models for as long as the context lasts."""
        holder = object()
        self.take(holder)
        try:
            yield
        finally:
            self.release(holder)
