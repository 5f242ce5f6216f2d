"""Errors of requests that no model serves: limits, operators' decisions, failed switches."""

from __future__ import annotations

from collections.abc import Collection

from llmux.base.names import shown
from llmux.errors.base import LlmuxError


class QueueFull(LlmuxError):
    """More requests wait than the limits allow."""

    status = 429
    code = "queue_full"
    may_be_served_elsewhere = True


class TooManyConnections(LlmuxError):
    """One client, or all of them together, have as many connections as `limits` allow.

    Args:
        limit: The limit.
        whose: Subject of the message, llmux or the client.
    """

    status = 503
    code = "too_many_connections"
    may_be_served_elsewhere = True

    def __init__(self, limit: int, whose: str = "llmux") -> None:
        super().__init__(f"{whose} has {limit} connections, its limit", retry_after_s=1)


class SwitchTimeout(LlmuxError):
    """The request waited longer than `policy.request_timeout_secs`."""

    status = 504
    code = "switch_timeout"
    may_be_served_elsewhere = True

    def __init__(self) -> None:
        super().__init__("Request timed out waiting for model")


class WouldSwitch(LlmuxError):
    """The request's model is not active, and the request asks not to cause a switch.

    OpenAI's and Anthropic's libraries would repeat every 409, and no repetition wakes the model.
    """

    status = 409
    code = "would_switch"
    may_be_repeated = False
    may_be_served_elsewhere = True

    def __init__(self, model: str) -> None:
        super().__init__(f"Model {model} is not active, and the request asks for no switch")


class ModelAsleep(LlmuxError):
    """The model is not awake, and the request never wakes one: it only inspects it (`passive`).

    There is no `Retry-After`, since no retry of such a request wakes the model either.
    """

    status = 503
    code = "model_asleep"
    may_be_repeated = False
    may_be_served_elsewhere = True

    def __init__(self, model: str, state: str) -> None:
        super().__init__(f"Model {model} is not awake ({state}), and requests like this wake none")


class ManualMode(LlmuxError):
    """Manual mode is on and the request's model is not awake."""

    status = 503
    code = "manual_mode"
    may_be_served_elsewhere = True

    def __init__(self, model: str, active: str | None) -> None:
        super().__init__(
            f"Manual mode active: model {model} not available (active: {active or 'none'})"
        )


class Pinned(LlmuxError):
    """An operator keeps another model awake."""

    status = 503
    code = "pinned"
    may_be_served_elsewhere = True

    def __init__(self, model: str, pinned: str) -> None:
        super().__init__(f"Model {pinned} is pinned: model {model} not available")


class PinLost(LlmuxError):
    """The pin was removed or replaced before its model was awake."""

    status = 409
    code = "pin_lost"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model {model} was unpinned, or another one pinned, meanwhile")


class NotReady(LlmuxError):
    """The model stopped before it answered: forced switch, drain timeout, or found down."""

    status = 503
    code = "not_ready"
    may_be_served_elsewhere = True

    def __init__(self, model: str) -> None:
        super().__init__(f"Model not ready: {model}")


class NoRoom(LlmuxError):
    """There is not enough memory for an operator's command, whatever else may be evicted for it."""

    status = 409
    code = "no_room"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"Model {model}: there is not enough memory for this, beside models that have to stay"
        )


class ModelFailing(LlmuxError):
    """The model's wake keeps failing (`policy.wake_failures`), and another model is served.

    Args:
        model: Name of the model.
        failures: Number of its failed wakes in a row.
        cause: Why the last one failed; None if the server was found down after the wake.
        retry_after_s: Seconds until it may be tried at the earliest.
    """

    status = 503
    code = "model_failing"
    may_be_served_elsewhere = True

    def __init__(
        self, model: str, failures: int, cause: LlmuxError | None, *, retry_after_s: float
    ) -> None:
        told = f"Model {model} has failed to wake {_times(failures)}"
        why = "its server stopped right after the wake" if cause is None else cause.details
        super().__init__(f"{told}: {why}", retry_after_s=retry_after_s)
        self._message = str(self) if cause is None else f"{told}: {cause.message}"

    @property
    def message(self) -> str:
        """Message for clients; tells of a hook's output only if the hook's error does."""
        return self._message


def _times(count: int) -> str:
    return "the last time" if count == 1 else f"{count} times in a row"


class RequestCancelled(LlmuxError):
    """An operator cancelled the request."""

    status = 503
    code = "cancelled"
    may_be_repeated = False

    def __init__(self) -> None:
        super().__init__("The request was cancelled by an operator")


class StreamCut(Exception):
    """llmux cut a request in flight: drain timeout, model found down, or operator.

    Attributes:
        why: Error for the client; None if the model is being put to sleep.
    """

    def __init__(self, why: LlmuxError | None = None) -> None:
        super().__init__(why)
        self.why = why


class Cordoned(LlmuxError):
    """An operator lets llmux take no new requests (`llmux cordon`); the line is still served."""

    status = 503
    code = "cordoned"
    may_be_served_elsewhere = True

    def __init__(self) -> None:
        super().__init__("llmux is cordoned: it takes no new requests", retry_after_s=5)


class ShuttingDown(LlmuxError):
    """The server is stopping; clients may try again once it is back."""

    status = 503
    code = "shutting_down"
    may_be_served_elsewhere = True

    def __init__(self) -> None:
        super().__init__("llmux is shutting down", retry_after_s=5)


class NoHost(LlmuxError):
    """No host of a fleet would serve the request now (`llmux pick`)."""

    status = 503
    code = "no_host"

    def __init__(self, model: str, reasons: Collection[str], *, retry_after_s: float) -> None:
        what = f"model {shown(model)}" if model else "the request"
        why = f" ({', '.join(reasons)})" if reasons else ""
        super().__init__(f"No host can serve {what} now{why}", retry_after_s=retry_after_s)


class SwitcherDied(LlmuxError):
    """The task that switches has ended, so no model can be woken."""

    status = 503
    may_be_served_elsewhere = True

    def __init__(self) -> None:
        super().__init__("Internal error: the switcher has stopped")
