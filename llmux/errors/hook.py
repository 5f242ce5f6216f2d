"""Errors of hooks."""

from __future__ import annotations

import shlex

from llmux.errors.base import LlmuxError


class HookError(LlmuxError):
    """A hook failed, could not be started, or exceeded its time limit.

    Attributes:
        model: Name of the model.
        hook: Its name.
        reason: Failure, worded to follow "the wake hook".
        exit_code: The shell's exit code; None if llmux killed it or it never started.
        output: The last lines that the hook printed.
        was_started: False if it cannot have had any effect.
        log_name: Name of the log with all its output, in `logs` of the state folder; empty if there
            is none.
        shows_output: True if clients get the output, too, which may contain secrets.
    """

    status = 500
    code = "hook_failed"
    may_be_served_elsewhere = True

    def __init__(
        self,
        model: str,
        hook: str,
        reason: str,
        *,
        exit_code: int | None = None,
        output: str = "",
        was_started: bool = True,
        log_name: str = "",
        shows_output: bool = False,
    ) -> None:
        # After exit code 0 the hook itself did not fail: its effect is missing.
        subject = f"{hook} hook" if exit_code != 0 else hook
        summary = f"Hook failed for {model}: {subject} {reason}"
        super().__init__(summary + (f": {output}" if output else ""))
        place = f" (its log: llmux logs {shlex.quote(model)})" if log_name else ""
        self._message = str(self) if shows_output else summary + place
        self.log_name = log_name
        self.shows_output = shows_output
        self.model = model
        self.hook = hook
        self.reason = reason
        self.exit_code = exit_code
        self.was_started = was_started
        self.output = output

    @property
    def message(self) -> str:
        """Message for clients; contains the output only if `shows_output`."""
        return self._message


class NotAlive(HookError):
    """The wake hook succeeded, but the model was not alive within the hook's time limit."""

    def __init__(self, model: str, waited_s: float, failure: HookError | None) -> None:
        """Report the last run of the `alive` hook.

        Args:
            model: Name of the model.
            waited_s: Time for which its `alive` hook failed, in seconds.
            failure: The last failure; None if the hook did not return.
        """
        waited = f"{round(waited_s, None if waited_s >= 10 else 1):g} s"
        why = "it did not return" if failure is None else failure.reason
        super().__init__(
            model,
            "wake",
            f"returned 0 but alive failed for {waited}: {why}",
            exit_code=0,
            output="" if failure is None else failure.output,
            log_name="" if failure is None else failure.log_name,
            shows_output=failure is not None and failure.shows_output,
        )
