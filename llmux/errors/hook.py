"""Errors of hooks."""

from __future__ import annotations

from llmux.errors.base import LlmuxError


class HookError(LlmuxError):
    """A hook failed, could not be run, or outlived its time.

    Attributes:
        model: Name of the model.
        hook: wake, sleep, alive, prefetch or verify_asleep.
        reason: The failure, to follow "the wake hook".
        exit_code: The shell's exit code; None if llmux ended it or it never started.
        output: The last lines that the hook printed.
        was_started: False if it cannot have done anything.
        log_name: Name of the log with all that it printed, in `logs` of the state folder; may be
            empty.
        shows_output: True if clients get its output, too, which may hold secrets.
    """

    status = 500
    code = "hook_failed"

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
        # After exit code 0 it was not the hook that failed, but what should come of it.
        subject = f"{hook} hook" if exit_code != 0 else hook
        summary = f"Hook failed for {model}: {subject} {reason}"
        super().__init__(summary + (f": {output}" if output else ""))
        place = f" (its log: logs/{log_name} in state_dir)" if log_name else ""
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
        """Message for clients, without the output unless that is for clients, too."""
        return self._message


class NotAlive(HookError):
    """A wake hook succeeded, but its model was not alive within the hook's time limit."""

    def __init__(self, model: str, waited_s: float, failure: HookError | None) -> None:
        """Report the last run of the `alive` hook.

        Args:
            model: Name of the model.
            waited_s: How long its `alive` hook has failed, in seconds.
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
