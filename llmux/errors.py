"""What llmux itself answers: every error carries its own response.

An error raised anywhere below the proxy ends as one JSON answer, written in one place
(`llmux.openai.wire.error_answer`), from the attributes that the error carries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from llmux.base.names import shown


class LlmuxError(Exception):
    """An error with an HTTP answer.

    Attributes:
        status: HTTP status code of the answer.
        code: Machine-readable `error.code` of the answer; a promise to clients.
        may_be_repeated: Whether a client may send the request again by itself, if it usually does
            so after this status.
        challenge: What a `WWW-Authenticate` header asks for; empty for no header.
        extra: What a backend has said beside, in its own form of an error.
        accepts: What an `Accept-Encoding` header says of bodies of requests; empty for no header.
        retry_after_s: Whole seconds for a `Retry-After` header, or None for no header.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    may_be_repeated: ClassVar[bool] = True
    challenge: ClassVar[str] = ""
    extra: Mapping[str, Any] = {}
    accepts: ClassVar[str] = ""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = None if retry_after_s is None else max(1, math.ceil(retry_after_s))

    @property
    def message(self) -> str:
        """The human-readable `error.message` of the answer."""
        return str(self)

    @property
    def details(self) -> str:
        """The message for operators: the log, and holders of control keys."""
        return str(self)


class NoModel(LlmuxError):
    """The request names no model in any of the places that are looked at."""

    status = 404
    code = "no_model"

    def __init__(self) -> None:
        super().__init__("No model specified in request")


class ModelNotFound(LlmuxError):
    """The request names a model that the config does not know."""

    status = 404
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model not found: {shown(model)}")
        self.model = shown(model)


class GroupNotFound(LlmuxError):
    """There is no group of this name."""

    status = 404
    code = "group_not_found"

    def __init__(self, group: str) -> None:
        super().__init__(f"Group not found: {shown(group)}")


class BadRequest(LlmuxError):
    """The request cannot be read."""

    status = 400
    code = "bad_request"


class NotJson(BadRequest):
    """The request's body is not JSON, though its `Content-Type` says so, or its first byte.

    Attributes:
        reason: What is wrong, and where.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"body is not JSON: {reason}")
        self.reason = reason


class UnsupportedCoding(LlmuxError):
    """The request's body has a `Content-Encoding` that is not known here."""

    status = 415
    code = "unsupported_encoding"
    accepts = "gzip, deflate, zstd, br, identity"  # RFC 9110, section 15.5.16


class ConfigMistakes(BadRequest):
    """The config that is to be used has mistakes."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))


class HeadTooLarge(BadRequest):
    """The request's line and headers are over the limit."""

    status = 431

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Request line and headers are larger than {limit_bytes} bytes")


class TooManyFields(BadRequest):
    """The request has more header fields than `limits.header_fields`."""

    status = 431

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request has more than {limit} header fields")


class IdNotFound(LlmuxError):
    """The request names no model, but an object that no known answer of a model has made.

    Args:
        id: How it calls the object.
    """

    status = 404
    code = "id_not_found"

    def __init__(self, id: str) -> None:  # noqa: A002
        super().__init__(
            f"No model is known to have made {shown(id)!r}: unknown, forgotten, or older than this "
            "llmux. Name its model, in a header model-override or as ?model="
        )


class RequestTooSlow(BadRequest):
    """The request itself did not arrive in time."""

    status = 408

    def __init__(self) -> None:
        super().__init__("The request did not arrive in time")


class NotHere(LlmuxError):
    """Another listener of llmux answers this path."""

    status = 404
    code = "not_found"


class InvalidKey(LlmuxError):
    """The request carries no key that is accepted here."""

    status = 401
    code = "invalid_api_key"
    challenge = "Bearer"

    def __init__(self) -> None:
        super().__init__(
            "Send a valid key, in a header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        )


class Forbidden(LlmuxError):
    """The control API does not answer this peer, or there are no keys and a foreign page asks."""

    status = 403
    code = "forbidden"


class BodyTooLarge(LlmuxError):
    """The request's body is over `limits.body_bytes`."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Request body is larger than {limit_bytes} bytes")


class QueueFull(LlmuxError):
    """More requests wait than the limits allow."""

    status = 429
    code = "queue_full"


class TooManyConnections(LlmuxError):
    """More clients are connected than `limits.connections`, or more often than one may be.

    Args:
        limit: How many there may be.
        whose: Who has so many.
    """

    status = 503
    code = "too_many_connections"

    def __init__(self, limit: int, whose: str = "llmux") -> None:
        super().__init__(f"{whose} has {limit} connections, its limit", retry_after_s=1)


class WouldSwitch(LlmuxError):
    """The request's model is not active, and it asked not to cause a switch."""

    status = 409
    code = "would_switch"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model {model} is not active, and the request asks for no switch")


class ModelAsleep(LlmuxError):
    """The request only looks at a model (`passive`) that is not awake, and wakes none.

    It has no `Retry-After`: to wait helps nobody, since the request itself will never wake it.
    """

    status = 503
    code = "model_asleep"
    may_be_repeated = False

    def __init__(self, model: str, state: str) -> None:
        super().__init__(f"Model {model} is not awake ({state}), and requests like this wake none")


class SwitchTimeout(LlmuxError):
    """The request waited longer than `policy.request_timeout_secs`."""

    status = 504
    code = "switch_timeout"

    def __init__(self) -> None:
        super().__init__("Request timed out waiting for model")


class HookError(LlmuxError):
    """A hook failed, could not be run, or outlived its time.

    Attributes:
        model: The model whose hook it was.
        hook: wake, sleep, alive, prefetch or verify_asleep.
        exit_code: The shell's exit code; None if it was ended by llmux or never started.
        output: The last lines that the hook printed.
        was_started: Whether it can have done anything.
        log_name: Where all that it printed is: a file in `logs` of the state folder; may be empty.
        shows_output: Whether clients are told what it printed, which may hold secrets.
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
        what = f"{hook} hook" if exit_code != 0 else hook  # of what has succeeded, not the hook
        told = f"Hook failed for {model}: {what} {reason}"
        super().__init__(told + (f": {output}" if output else ""))
        place = f" (its log: logs/{log_name} in state_dir)" if log_name else ""
        self._message = str(self) if shows_output else told + place
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
        """What clients are told."""
        return self._message


class NotAlive(HookError):
    """A wake hook has succeeded, but its model was not alive in the hook's time."""

    def __init__(self, model: str, waited_s: float, failure: HookError | None) -> None:
        """Tell of the last look.

        Args:
            model: The model.
            waited_s: How long its `alive` hook has failed, in seconds.
            failure: The last failure; None: it did not return.
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


class ManualMode(LlmuxError):
    """Manual mode is on and the request's model is not the active one."""

    status = 503
    code = "manual_mode"

    def __init__(self, model: str, active: str | None) -> None:
        super().__init__(
            f"Manual mode active: model {model} not available (active: {active or 'none'})"
        )


class NotReady(LlmuxError):
    """The model left before it answered: a forced switch, a drain over its time, or found down."""

    status = 503
    code = "not_ready"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model not ready: {model}")


class RequestCancelled(LlmuxError):
    """An operator has cancelled the request."""

    status = 503
    code = "cancelled"
    may_be_repeated = False

    def __init__(self) -> None:
        super().__init__("The request was cancelled by an operator")


class RequestNotFound(LlmuxError):
    """The request that is to be cancelled is not there, or no more."""

    status = 404
    code = "request_not_found"

    def __init__(self, request: str) -> None:
        super().__init__(f"No such request is being served: {shown(request)}")


class Pinned(LlmuxError):
    """An operator keeps another model awake."""

    status = 503
    code = "pinned"

    def __init__(self, model: str, pinned: str) -> None:
        super().__init__(f"Model {pinned} is pinned: model {model} not available")


class PinLost(LlmuxError):
    """A pin was taken back, or another one placed, before its model was awake."""

    status = 409
    code = "pin_lost"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model {model} was unpinned, or another one pinned, meanwhile")


class ShuttingDown(LlmuxError):
    """The server is stopping; a client may come back when it is up again."""

    status = 503
    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("llmux is shutting down", retry_after_s=5)


class SwitcherDied(LlmuxError):
    """The task that switches has ended; nothing can be woken any more."""

    status = 503

    def __init__(self) -> None:
        super().__init__("Internal error: the switcher has stopped")


class BackendError(LlmuxError):
    """The backend refused, reset or broke before its status line."""

    status = 502
    code = "backend_error"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Backend error: {reason}")


class NoStream(BackendError):
    """The backend has answered a client that waits for a stream with something else."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"answered {status}: {body[:2000].decode(errors='replace')}")


class BackendSaid(BackendError):
    """The backend's own error, which comes too late for a status line.

    Args:
        status: Its status.
        message: What it says.
        extra: What it says beside.
    """

    def __init__(self, status: int, message: str, extra: Mapping[str, Any]) -> None:
        LlmuxError.__init__(self, message)
        self.status = status  # type: ignore[misc]  # the backend's, for this one alone
        self.extra = extra


class BackendRefused(BackendError):
    """The backend accepted no connection, so it cannot have seen the request."""


class BackendSilent(BackendError):
    """The backend has sent nothing of a stream for the model's `stream_idle_secs`."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"nothing came for {limit_s:g} s (the model's stream_idle_secs)")


class BackendBroke(Exception):
    """The backend broke after its status line; the response can only be cut."""


class StreamCut(Exception):
    """llmux cut a request in flight: a drain over its time, a model found down, an operator.

    Attributes:
        why: What to tell its client; None: that the model is put to sleep.
    """

    def __init__(self, why: LlmuxError | None = None) -> None:
        super().__init__(why)
        self.why = why


class InternalError(LlmuxError):
    """Anything unforeseen."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"Internal error: {type(error).__name__}: {shown(str(error))}")


class ConfigError(Exception):
    """A config that cannot be used.

    Attributes:
        mistakes: One line each, `path.in.the.file: what is wrong`.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
