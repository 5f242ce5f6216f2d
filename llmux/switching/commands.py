"""Typed commands: everything that the switching task can be told to do.

The policy and the idle rules decide on commands; operators, reloads and health checks queue them.
A command is immutable except for its outcome. Whether it is still wanted is computed when needed,
so no command has to be found and updated when a client leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from llmux.errors import LlmuxError, NotReady
from llmux.switching.model import Model


class Outcome:
    """The result of a command; set once.

    Args:
        on_failure: Called if it ends with an error, even if no task waits for it any more.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        self._on_failure = on_failure
        self._ended = trio.Event()
        self._error: LlmuxError | None = None

    def end(self, error: LlmuxError | None = None) -> None:
        """Set the outcome and wake the tasks that wait for it; only the first call counts."""
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
        """True if a request waits for any model of the group to be awake."""
        ...

    @property
    def shares_memory(self) -> bool:
        """True if several models of the group may be awake."""
        ...

    def may_abandon_wake(self, target: Model) -> bool:
        """Return whether a wake of this model may be given up for lack of demand."""
        ...

    def may_try(self, target: Model) -> bool:
        """Return whether a failing model may be tried now."""
        ...

    def has_queued_wake(self, target: Model) -> bool:
        """Return whether another command to wake this model is queued."""
        ...

    def has_pending_change(self, target: Model) -> bool:
        """Return whether a config change waits for this model to sleep."""
        ...


@dataclass(frozen=True, eq=False)
class Command:
    """One thing to do to one model; see the subclasses.

    Attributes:
        target: The model.
        reason: Why, in words, for logs.
        rule: The policy's rule, or other origin, to which the decision is attributed.
        stands: True if it is wanted even though no request waits for the target: an operator asked
            for it, or the policy decided so knowingly.
        outcome: How it ended.
    """

    target: Model
    reason: str
    rule: str = ""
    stands: bool = False
    outcome: Outcome = field(default_factory=Outcome, repr=False)

    def is_wanted(self, now: Situation) -> bool:
        """Return whether demand still justifies it."""
        return self.stands or not now.is_anyone_waiting

    def goes_on(self, now: Situation) -> bool:
        """Return whether to continue it, as long as no hook of its target was started."""
        return self.is_wanted(now)

    @property
    def error_if_removed(self) -> LlmuxError | None:
        """Its outcome if the target was removed before it began; None: success."""
        return None  # a removed model sleeps, as every command but `Wake` wants

    async def wait(self) -> None:
        """Wait until it has been carried out.

        Raises:
            LlmuxError: It failed.
        """
        await self.outcome.wait()


@dataclass(frozen=True, eq=False)
class Wake(Command):
    """Make room for the target, wake it, admit its line.

    Attributes:
        evict: The models that the policy puts to sleep for it; None: the placement chooses them
            when the command starts.
        is_unasked: True for a standby, which is woken though no request waits for it.
        is_trial: True if no operator wants it, and the target is failing.
    """

    evict: tuple[str, ...] | None = None
    is_unasked: bool = False
    is_trial: bool = False

    def is_wanted(self, now: Situation) -> bool:
        return bool(self.target.wanted_by) or super().is_wanted(now)

    def goes_on(self, now: Situation) -> bool:
        if self.is_trial and not now.may_try(self.target):
            return False
        return self.is_wanted(now) and self.is_wake_wanted(now)

    def is_wake_wanted(self, now: Situation) -> bool:
        """Return whether the wake hook may start, or continue."""
        target = self.target
        if self.stands or not now.may_abandon_wake(target):
            return True
        if self.is_unasked:
            return self.is_wanted(now)
        # A request that is about to retry will need the model again, and a queued wake would have
        # to start over.
        return bool(target.wanted_by or target.beside_line) or now.has_queued_wake(target)

    @property
    def error_if_removed(self) -> LlmuxError | None:
        return NotReady(self.target.name)


class Sleep(Command):
    """Drain the target and put it to sleep."""

    def is_wanted(self, now: Situation) -> bool:
        if now.shares_memory:  # demand for other models does not matter
            return self.stands or not self.target.wanted_by
        return super().is_wanted(now)


class Stop(Command):
    """Run the stop hook of the target, which sleeps."""


class BringDown(Command):
    """Cut the target's requests and put it to sleep, since it does not answer."""

    def is_wanted(self, now: Situation) -> bool:  # noqa: ARG002 - demand does not matter here
        return True


class Reconfigure(Command):
    """Drain the target and put it to sleep, as long as a config change waits for that."""

    def is_wanted(self, now: Situation) -> bool:
        return now.has_pending_change(self.target)
