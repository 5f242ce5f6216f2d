"""The breaker of failing models: refuses their requests, and tells of its changes.

`llmux.switching.failing` says when a failing model may be tried. Until then its requests are
refused, on arrival and in line: they would wait for a wake that is not to come.
"""

from __future__ import annotations

import math

import trio

from llmux.errors import HookError, LlmuxError, ModelFailing
from llmux.observe.events import Events
from llmux.observe.schemas import FailingChange
from llmux.switching.core import retry_delay_s
from llmux.switching.failing import QUIET_S
from llmux.switching.group import Group
from llmux.switching.model import Model


def refusal(group: Group, model: Model) -> ModelFailing | None:
    """Return the error for a request that may not wait for a failing model; None if it may."""
    if not model.is_failing or model.is_awake:
        return None
    if group.is_waking(model) or group.has_queued_wake(model):
        return None
    now, at = trio.current_time(), group.trial_at(model)
    if at <= now:
        return None
    if at == math.inf:  # not before the others have been quiet for so long
        at = max(model.retry_at, now + QUIET_S)
    return _failing(model, model.last_error, at - now)


def after_failure(model: Model, error: HookError) -> LlmuxError:
    """Return the error for the requests that waited for a wake that has just failed.

    Call it before the failure is counted: the first `policy.wake_failures` are told as they are.
    """
    if not model.is_failing:
        return error
    return _failing(model, error, retry_delay_s(model.failures), more=int(error.was_started))


def _failing(
    model: Model, cause: LlmuxError | None, retry_after_s: float, more: int = 0
) -> ModelFailing:
    failed = model.failed_wakes + more
    return ModelFailing(model.name, failed, cause, retry_after_s=retry_after_s)


class Breaker:
    """Looks after the failing models of one group.

    Args:
        group: The group.
        events: Gets an event when a model begins or ceases to be failing.
    """

    def __init__(self, group: Group, events: Events) -> None:
        self._group = group
        self._events = events
        self._failing: set[str] = set()

    def look(self) -> None:
        """Refuse the requests in line that may not wait any more, and tell of changes.

        To be called before each decision.
        """
        models = self._group.models
        for model in models.values():
            if model.is_failing is not (model.name in self._failing):
                self._tell(model)
            if model.is_failing and model.waiters.count and (why := refusal(self._group, model)):
                model.waiters.refuse(why)
        self._failing &= models.keys()

    def _tell(self, model: Model) -> None:
        self._failing ^= {model.name}
        error = model.last_error
        self._events.failing_changed.tell(
            FailingChange(
                at=self._events.clock.now(),
                model=model.name,
                failing=model.is_failing,
                failed_wakes=model.failed_wakes,
                error=None if error is None else error.details,
            )
        )
