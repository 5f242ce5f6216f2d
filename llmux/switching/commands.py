"""What the switching task is told to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio

from llmux.errors import LlmuxError
from llmux.switching.model import Model


class Order:
    """A switch to carry out: decided by the policy, or placed by somebody who waits for it.

    Attributes:
        target: The model that is to be awake, or asleep.
        reason: Why, for people.
        stands: It is wanted though no request waits for it: an operator does, or the policy knew.
        rule: Which rule of the policy, or who else, has decided.
        to: What the target is to be. asleep: put to sleep, its requests drained; down: cut, too;
            renewed: asleep, as long as a change waits for that.
        is_unasked: No request waited for the target when it was decided.
        on_failure: Called if it could not be carried out.
    """

    def __init__(
        self,
        target: Model,
        reason: str,
        *,
        stands: bool = False,
        rule: str = "",
        to: Literal["awake", "asleep", "down", "renewed"] = "awake",
    ) -> None:
        self.target = target
        self.reason = reason
        self.stands = stands
        self.rule = rule
        self.to = to
        self.is_unasked = not target.wanted_by
        self.on_failure: Callable[[], None] = lambda: None
        self._ended = trio.Event()
        self._error: LlmuxError | None = None

    def __repr__(self) -> str:
        return f"<Order {self.target.name!r}: {self.reason}>"

    def end(self, error: LlmuxError | None = None) -> None:
        """Tell whoever waits how it ended; only the first word counts."""
        if not self._ended.is_set():
            self._error = error
            self._ended.set()
            if error is not None:
                self.on_failure()

    async def wait_ended(self) -> None:
        """Wait until it is carried out.

        Raises:
            LlmuxError: Why it could not be.
        """
        await self._ended.wait()
        if self._error is not None:
            raise self._error
