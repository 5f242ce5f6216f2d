"""The prefetch hook of a switch: it runs during drain and sleep, and the wake waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from llmux.errors import HookError


class Prefetch:
    """One run of a `prefetch` hook.

    Its failure is logged by the hook runner and otherwise ignored: the wake is slower, but correct.

    Args:
        hook: Runs the hook; raises HookError.
    """

    def __init__(self, hook: Callable[[], Awaitable[None]]) -> None:
        self._hook = hook
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Run the hook to its end, or until it is abandoned."""
        try:
            with self._scope, suppress(HookError):
                await self._hook()
        finally:
            self._ended.set()

    def skip(self) -> None:
        """Mark it as ended, since the model has no prefetch hook or nothing has to sleep."""
        self._ended.set()

    async def wait_ended(self) -> None:
        """Wait until the hook has run, or was abandoned."""
        await self._ended.wait()

    def abandon(self) -> None:
        """End the hook if it still runs."""
        self._scope.cancel()
