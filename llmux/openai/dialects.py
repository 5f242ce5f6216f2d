"""The API that a request uses, and the form of an error in each: body, event, or JSON line.

Forms follow what the client libraries read, not only the APIs' documents: Anthropic's library
recognises an error in a stream by the event's name alone; Ollama's expects a string where OpenAI's
has an object. llmux's own `code` is in every form.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from llmux.base.names import shown
from llmux.errors import LlmuxError
from llmux.http.syntax import Headers

MAX_MESSAGE = 8192
"""Characters of a message. It bounds what backends and hooks write; names that clients send are
cut to much less when they arrive."""

MAX_CLOSE_BYTES = 123
"""Bytes of the reason in a Close frame (RFC 6455, section 5.5)."""

INTERNAL_CLOSE, TRY_LATER_CLOSE = 1011, 1013
"""Codes of Close frames (RFC 6455, section 7.4, and IANA's registry)."""


class ErrorInfo(NamedTuple):
    """Content of an error, independent of any API.

    Attributes:
        message: Human-readable message.
        code: Machine-readable code.
        status: HTTP status code; in a stream, the one that came too late to be sent.
        extra: Further members of a backend's own error object, in OpenAI's or Anthropic's form.
    """

    message: str
    code: str
    status: int
    extra: Mapping[str, Any] = {}


class StreamState(NamedTuple):
    """The state of a stream, which an error event that ends it must continue.

    Attributes:
        number: Sequence number of the next event, in APIs that number events.
        response: Id of the response; empty if it has not been seen.
    """

    number: int = 0
    response: str = ""


NOTHING_SENT = StreamState()
"""State of a stream of which nothing has been sent."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Form of errors in one family of APIs.

    Attributes:
        name: Name of the family.
        body: Makes the response body, to be encoded as JSON.
        events: Encodes the last events of a stream.
        line: Makes the last line of a stream of JSON lines, to be encoded as JSON.
    """

    name: str
    body: Callable[[ErrorInfo], dict[str, Any]]
    events: Callable[[ErrorInfo, StreamState], bytes]
    line: Callable[[ErrorInfo], dict[str, Any]]


def error_info(error: LlmuxError, *, to_operator: bool = False) -> ErrorInfo:
    """Return the content of one of llmux's errors; operators get details that clients do not."""
    text = error.details if to_operator else error.message
    # Escapes in a client's JSON may yield lone surrogates, which UTF-8 cannot encode.
    message = shown(text, MAX_MESSAGE).encode("utf-8", "replace").decode()
    return ErrorInfo(message, error.code, error.status, error.extra)


def event(payload: Mapping[str, Any], name: str = "") -> bytes:
    """Encode a server-sent event."""
    named = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (named, msgspec.json.encode(payload))


# ---- OpenAI, and servers that copy its form: vLLM, SGLang, llama.cpp ----


def _detail(error: ErrorInfo) -> dict[str, Any]:
    own = {"message": error.message, "type": "llmux_error", "param": None, "code": error.code}
    return {**own, **error.extra}


def _openai_body(error: ErrorInfo) -> dict[str, Any]:
    return {"error": _detail(error)}


OPENAI = Dialect(
    name="openai",
    body=_openai_body,
    events=lambda error, _: event(_openai_body(error)),
    line=_openai_body,
)


# ---- OpenAI's /v1/responses ----


def _responses_events(error: ErrorInfo, stream: StreamState) -> bytes:
    """Encode both events that report a failure, in the order of OpenAI's own server.

    OpenAI's library raises for the first event, `error`. Its fields are there twice: at the top, as
    older versions of the API have them, and in an object `error`. Codex reads only the second
    event, `response.failed`.
    """
    detail = _detail(error)
    raised = {
        "type": "error", "sequence_number": stream.number, "code": detail["code"],
        "message": detail["message"], "param": detail["param"], "error": detail,
    }  # fmt: skip
    response = {
        "id": stream.response or "resp_llmux", "object": "response", "created_at": int(time.time()),
        "status": "failed", "error": {"code": detail["code"], "message": detail["message"]},
        "incomplete_details": None, "output": [], "usage": None,
    }  # fmt: skip
    failed = {
        "type": "response.failed", "sequence_number": stream.number + 1, "response": response,
    }  # fmt: skip
    return event(raised, "error") + event(failed, "response.failed")


RESPONSES = Dialect(
    name="responses", body=_openai_body, events=_responses_events, line=_openai_body
)


# ---- Anthropic ----

_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 409: "conflict_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""Error types by status; any other 4xx is an `invalid_request_error`, the rest are `api_error`."""

# A tuple, not a set: the backend's value may be a list, which has no hash.
_ANTHROPIC_KNOWN = (
    *_ANTHROPIC_TYPES.values(), "invalid_request_error", "api_error", "billing_error",
)  # fmt: skip


def _anthropic_body(error: ErrorInfo) -> dict[str, Any]:
    default = "invalid_request_error" if 400 <= error.status < 500 else "api_error"
    own = {
        "type": _ANTHROPIC_TYPES.get(error.status, default), "message": error.message,
        "code": error.code, "details": {"error_code": error.code},
    }  # fmt: skip
    # An error object in OpenAI's form has types that Anthropic's clients do not know.
    is_known = error.extra.get("type") in _ANTHROPIC_KNOWN
    return {"type": "error", "error": {**own, **error.extra} if is_known else own}


ANTHROPIC = Dialect(
    name="anthropic",
    body=_anthropic_body,
    events=lambda error, _: event(_anthropic_body(error), "error"),
    line=_anthropic_body,
)


# ---- Ollama ----


def _ollama_body(error: ErrorInfo) -> dict[str, Any]:
    return {"error": error.message, "code": error.code}


OLLAMA = Dialect(
    name="ollama",
    body=_ollama_body,
    events=lambda error, _: event(_ollama_body(error)),
    line=_ollama_body,
)


# ---- Cohere, and rerankers that use its paths, some of them with OpenAI's errors ----


def _cohere_body(error: ErrorInfo) -> dict[str, Any]:
    return {"message": error.message, **_openai_body(error)}


def _cohere_events(error: ErrorInfo, _: StreamState) -> bytes:
    delta = {"finish_reason": "ERROR", "error": error.message}
    return event({"type": "message-end", "delta": delta, **_openai_body(error)}, "message-end")


def _cohere_line(error: ErrorInfo) -> dict[str, Any]:
    ended = {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR"}
    return {**ended, **_cohere_body(error)}


COHERE = Dialect(name="cohere", body=_cohere_body, events=_cohere_events, line=_cohere_line)


# ---- Hugging Face: text-embeddings-inference, text-generation-inference ----


def _tei_body(error: ErrorInfo) -> dict[str, Any]:
    kind = "validation" if 400 <= error.status < 500 else "backend"
    if error.status in {429, 503}:
        kind = "overloaded"
    # `message` is for clients of other rerankers that share the path.
    return {
        "error": error.message,
        "error_type": kind,
        "message": error.message,
        "code": error.code,
    }


TEI = Dialect(
    name="tei", body=_tei_body, events=lambda error, _: event(_tei_body(error)), line=_tei_body
)


# ---- The dialect of a request ----

_BY_PATH = (
    (ANTHROPIC, rb"/v\d+/messages(?:/count_tokens|/batches(?:/.*)?)?|/v\d+/complete"),
    # Without a version only as a whole: OpenAI's threads have /v1/threads/ID/messages.
    (ANTHROPIC, rb"\A/messages(?:/count_tokens)?"),
    (RESPONSES, rb"/responses(?:/[^/]+(?:/(?:cancel|input_items))?)?"),
    # Other servers' paths below /api begin with a version, or have two segments.
    (OLLAMA, rb"/api/(?!v\d+\b)[^/]+|/api/(?:blobs|experimental)/.*"),
    (
        COHERE,
        rb"/v[12]/(?:rerank|reranking|embed|chat|generate|summarize|classify|(?:de)?tokenize)",
    ),
    (
        TEI,
        rb"(?<!/v\d)/(?:rerank|embed(?:_all|_sparse)?|predict|similarity|decode|generate(?:_stream)?)",
    ),
)
"""Dialects by the end of the path, which may have a prefix: `/upstream/<model>`, or that of another
proxy."""

_DIALECTS = [(dialect, re.compile(rb".*(?:%b)" % path, re.DOTALL)) for dialect, path in _BY_PATH]

_EVENTS = re.compile(
    rb".*/(?:chat/completions|completions?|complete|infill|messages|responses(?:/[^/]+)?"
    rb"|generate_stream|v2/chat|images/generations|images/edits)",
    re.DOTALL,
)
"""Paths whose streams are server-sent events; not `/generate`, where servers differ."""


def plain_path(target: bytes) -> bytes:
    """Return the path of a target without doubled and trailing slashes, which servers ignore."""
    path = target.partition(b"?")[0]
    while b"//" in path:
        path = path.replace(b"//", b"/")
    return path.rstrip(b"/")


def dialect_of(target: bytes, headers: Headers = ()) -> Dialect:
    """Return the dialect that a request's client expects; OpenAI's if nothing says otherwise."""
    path = plain_path(target)
    for dialect, pattern in _DIALECTS:
        if pattern.fullmatch(path):
            return dialect
    if path.endswith((b"completions", b"embeddings")):
        return OPENAI
    # All requests of Anthropic's clients have this header, at any path (`/v1/models`, say).
    is_anthropic = any(name.lower() == b"anthropic-version" for name, _ in headers)
    return ANTHROPIC if is_anthropic else OPENAI


def streams_events(target: bytes) -> bool:
    """Return whether a stream requested at this path consists of server-sent events."""
    return _EVENTS.fullmatch(plain_path(target)) is not None


_TARGET = re.compile(rb"[^ \r\n]+ +([^ \r\n]+)")
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_RESPONSE = re.compile(rb'"id"\s*:\s*"(resp[^"\\]{1,200})"')


def dialect_of_head(head: bytes) -> Dialect:
    """Return the dialect of a malformed request, as far as its first line can be read."""
    line = _TARGET.match(head)
    return OPENAI if line is None else dialect_of(line[1])


def stream_state(opening: bytes, ending: bytes) -> StreamState:
    """Read the state of a stream off its first and last bytes, as they came over the wire."""
    numbers = _NUMBER.findall(ending)
    response = _RESPONSE.search(opening)
    return StreamState(
        int(numbers[-1]) + 1 if numbers else 0, response[1].decode() if response else ""
    )


# ---- WebSockets ----


def close_reason(error: LlmuxError) -> tuple[int, str]:
    """Return code and reason of the Close frame that ends a WebSocket with an error."""
    code = TRY_LATER_CLOSE if error.status in {429, 503, 504} else INTERNAL_CLOSE
    if error.code == "cancelled":  # has status 503, but clients should not try again
        code = INTERNAL_CLOSE
    reason = f"{error.code}: {error_info(error).message}".encode()[:MAX_CLOSE_BYTES]
    return code, reason.decode(errors="ignore")  # the cut may split a character


def realtime_event(target: bytes, error: LlmuxError) -> bytes:
    """Encode the message for OpenAI's realtime API before its Close frame; empty for other APIs."""
    if not plain_path(target).endswith(b"/realtime"):
        return b""
    return msgspec.json.encode(
        {"type": "error", "event_id": "", "error": _detail(error_info(error))}
    )
