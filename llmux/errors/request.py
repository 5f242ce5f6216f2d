"""Errors in requests: their syntax, size, keys, and the names in them."""

from __future__ import annotations

from collections.abc import Collection

from llmux.base.names import nearest, shown
from llmux.errors.base import LlmuxError

MOST_NAMES, MAX_LISTED = 10, 128
"""Limits for known names in a message: their number, and the characters of one."""


class NoModel(LlmuxError):
    """The request names no model in any of the places where llmux looks for one."""

    status = 404
    code = "no_model"

    def __init__(self) -> None:
        super().__init__("No model specified in request")


class ModelNotFound(LlmuxError):
    """The request names a model that is not in the config.

    Attributes:
        name: The name as the request has it.
        known: Names that the message lists, as far as there is room for them.
    """

    status = 404
    code = "model_not_found"
    may_be_served_elsewhere = True

    def __init__(self, name: str, known: Collection[str] = ()) -> None:
        super().__init__(f"Model not found: {shown(name)}")
        self.name = name
        self.known = known

    def __str__(self) -> str:
        """Return the message; names are compared only here, since a fallback may take over."""
        text = super().__str__()
        if not self.known:
            return text
        listed = [shown(each, MAX_LISTED) for each in nearest(self.name, self.known, MOST_NAMES)]
        rest = len(self.known) - len(listed)
        more = f", and {rest} more (GET /v1/models lists all)" if rest else ""
        return f"{text}. Known names: {', '.join(listed)}{more}"


class GroupNotFound(LlmuxError):
    """There is no group of this name."""

    status = 404
    code = "group_not_found"

    def __init__(self, group: str) -> None:
        super().__init__(f"Group not found: {shown(group)}")


class IdNotFound(LlmuxError):
    """The request refers to a stored object, and llmux does not know which model created it.

    Args:
        id: Id of the object (a response, a file, a batch, ...).
    """

    status = 404
    code = "id_not_found"
    may_be_served_elsewhere = True

    def __init__(self, id: str) -> None:  # noqa: A002
        super().__init__(
            f"No model is known to have made {shown(id)!r}: unknown, forgotten, or older than this "
            "llmux. Name its model, in a header model-override or as ?model="
        )


class RequestNotFound(LlmuxError):
    """The request to cancel does not exist, or has ended."""

    status = 404
    code = "request_not_found"

    def __init__(self, request: str) -> None:
        super().__init__(f"No such request is being served: {shown(request)}")


class PathNotFound(LlmuxError):
    """No model server has the path: the client's base URL lacks `/v1`, or has it twice.

    Args:
        path: As the client requested it.
        right: The path that it should be.
        is_sure: False if the server of a model with `unversioned_paths` has the path.
    """

    status = 404
    code = "wrong_path"

    def __init__(self, path: str, right: str, *, is_sure: bool) -> None:
        if right.startswith("/api/"):
            base = "the base URL of an Ollama client has no path"
        elif right.startswith("/v1/messages"):
            base = "the base URL of an Anthropic client has no path"
        else:
            base = "the base URL of an OpenAI client ends in /v1"
        unless = "" if is_sure else " (if the model's server has both: unversioned_paths: true)"
        super().__init__(f"No such path: {shown(path)}. Use {shown(right)}; {base}{unless}")


class LoopDetected(LlmuxError):
    """The request has come back to the llmux that forwarded it (RFC 5842, section 7.2)."""

    status = 508
    code = "loop_detected"
    may_be_repeated = False

    def __init__(self) -> None:
        super().__init__(
            "This llmux has forwarded the request before, and it has come back: the port or url of "
            "a model, or the fallback, leads to llmux itself"
        )


class NotHere(LlmuxError):
    """This path belongs to another of llmux's listeners."""

    status = 404
    code = "not_found"


class BadRequest(LlmuxError):
    """The request is malformed, or can be read in more than one way."""

    status = 400
    code = "bad_request"


class NotJson(BadRequest):
    """The body is not JSON, although its `Content-Type` says so or its first byte suggests it.

    Attributes:
        reason: Mistake and its position.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"body is not JSON: {reason}")
        self.reason = reason


class HeadTooLarge(BadRequest):
    """The request line and headers are larger than the limit."""

    status = 431

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Request line and headers are larger than {limit_bytes} bytes")


class TooManyFields(BadRequest):
    """The request has more header fields than `limits.header_fields`."""

    status = 431

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request has more than {limit} header fields")


class RequestTooSlow(BadRequest):
    """The client took too long to send the request."""

    status = 408

    def __init__(self) -> None:
        super().__init__("The request did not arrive in time")


class UnsupportedCoding(LlmuxError):
    """The request's body has a `Content-Encoding` that llmux does not support."""

    status = 415
    code = "unsupported_encoding"
    accepts = "gzip, deflate, zstd, br, identity"  # RFC 9110, section 15.5.16


class BodyTooLarge(LlmuxError):
    """The request's body is larger than `limits.body_bytes`."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Request body is larger than {limit_bytes} bytes")


class InvalidKey(LlmuxError):
    """The request carries no valid key."""

    status = 401
    code = "invalid_api_key"
    challenge = "Bearer"

    def __init__(self) -> None:
        super().__init__(
            "Send a valid key, in a header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        )


class ReadKey(LlmuxError):
    """The request would steer llmux, and its key is one of the `read_keys`, which only read."""

    status = 403
    code = "read_key"

    def __init__(self) -> None:
        super().__init__(
            "This is a read key, which shows llmux and steers nothing: orders take one of the "
            "control_keys"
        )


class Forbidden(LlmuxError):
    """The control API refuses this peer or, without keys, requests from other sites' pages."""

    status = 403
    code = "forbidden"
