"""Hooks as the switcher sees them."""

from __future__ import annotations

from typing import Protocol

from llmux.config import HookName


class ModelHooks(Protocol):
    """The hooks of one model, immutable.

    A command runs all its steps with the hooks it started with, even if the config is reloaded.
    """

    def has(self, hook: HookName) -> bool:
        """Return whether this hook is configured."""
        ...

    async def run(
        self, hook: HookName, *, source: str = "", target: str = "", expects_failure: bool = False
    ) -> None:
        """Run a hook that is configured, until it has ended.

        Args:
            hook: The hook's name.
            source: The model that the switch leaves, if any.
            target: The model that the switch is for, if any.
            expects_failure: True if a failure is to be neither logged as an error nor counted,
                since the model may still be loading.

        Raises:
            HookError: It failed, exceeded its time-out or could not be started.
        """
        ...

    def timeout_s(self, hook: HookName) -> float:
        """Return the time-out of a hook in seconds; infinity for none."""
        ...


class Hooks(Protocol):
    """Gives access to hooks; `llmux.hooks.ShellHooks` is the implementation in use."""

    def of(self, model: str) -> ModelHooks:
        """Return a model's current hooks."""
        ...

    async def end_marked(self, mark: str) -> None:
        """End the processes that a killed llmux left behind from the hook with this mark."""
        ...
