"""Typed commands: everything that the switching task can be told to do.

The policy and the idle rules decide on commands; operators, reloads and health checks queue them.
A command is immutable but for its outcome, so that it can be asked at any time whether it is still
wanted: nobody has to find and update it when a client leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from llmux.errors import LlmuxError, NotReady
from llmux.switching.model import Model


class Outcome:
    """How a command ended; set once.

    Args:
        on_failure: Called if it ends with an error, also when nobody waits for it any more.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        self._on_failure = on_failure
        self._ended = trio.Event()
        self._error: LlmuxError | None = None

    def end(self, error: LlmuxError | None = None) -> None:
        """Set the outcome and wake everybody who waits for it; only the first call counts."""
        if not self._ended.is_set():
            self._error = error
            self._ended.set()
            if error is not None:
                self._on_failure()

    async def wait(self) -> None:
        """Wait for the end.

        Raises:
            LlmuxError: Why the command failed.
        """
        await self._ended.wait()
        if self._error is not None:
            raise self._error


class Situation(Protocol):
    """The part of a group's state that decides whether a command is still wanted (`Group`)."""

    @property
    def is_anyone_waiting(self) -> bool:
        """Whether a request waits for any model of the group to be awake."""
        ...

    def may_abandon_wake(self, target: Model) -> bool:
        """Return whether a wake of this model may be given up for lack of demand."""
        ...

    def has_queued_wake(self, target: Model) -> bool:
        """Return whether another command to wake this model is queued."""
        ...

    def has_pending_change(self, target: Model) -> bool:
        """Return whether a change waits for this model to sleep."""
        ...


@dataclass(frozen=True, eq=False)
class Command:
    """One thing to do to one model; see the subclasses.

    Attributes:
        target: The model.
        reason: Why, for people.
        rule: The policy's rule, or other origin, that the decision is attributed to.
        stands: It is wanted although no request waits for it: an operator does, or the policy
            decided it knowingly.
        outcome: How it ended.
    """

    target: Model
    reason: str
    rule: str = ""
    stands: bool = False
    outcome: Outcome = field(default_factory=Outcome, repr=False)

    def is_wanted(self, now: Situation) -> bool:
        """Return whether it should still be carried out, as far as demand goes."""
        return self.stands or not now.is_anyone_waiting

    def goes_on(self, now: Situation) -> bool:
        """Return whether to go on with it, before a hook of its target was started."""
        return self.is_wanted(now)

    @property
    def error_if_removed(self) -> LlmuxError | None:
        """Its outcome if the target was removed before it began: then the target sleeps."""
        return None

    async def wait(self) -> None:
        """Wait until it is carried out.

        Raises:
            LlmuxError: Why it could not be.
        """
        await self.outcome.wait()


@dataclass(frozen=True, eq=False)
class Wake(Command):
    """Put `evict` to sleep, wake the target, let in its line.

    Attributes:
        evict: The models that have to sleep first, in this order: what the placement says at the
            moment in which the command is taken up. Models that come later are not among them.
        is_unasked: No request waited for the target when this was decided: it is a standby.
    """

    evict: tuple[Model, ...] = ()
    is_unasked: bool = False

    def is_wanted(self, now: Situation) -> bool:
        return bool(self.target.wanted_by) or super().is_wanted(now)

    def goes_on(self, now: Situation) -> bool:
        return self.is_wanted(now) and self.is_wake_wanted(now)

    def is_wake_wanted(self, now: Situation) -> bool:
        """Return whether the wake hook may begin, or go on."""
        target = self.target
        if self.stands or not now.may_abandon_wake(target):
            return True
        if self.is_unasked:
            return self.is_wanted(now)
        # A request beside the line will come back to it, and a queued wake would start over.
        return bool(target.wanted_by or target.beside_line) or now.has_queued_wake(target)

    @property
    def error_if_removed(self) -> LlmuxError | None:
        return NotReady(self.target.name)


class Sleep(Command):
    """Drain the target and put it to sleep."""


class BringDown(Command):
    """The target does not answer: cut its requests and put it to sleep."""

    def is_wanted(self, now: Situation) -> bool:  # noqa: ARG002 - whatever is wanted, it is down
        return True


class Reconfigure(Command):
    """Drain the target and put it to sleep, for as long as a change waits for that."""

    def is_wanted(self, now: Situation) -> bool:
        return now.has_pending_change(self.target)
