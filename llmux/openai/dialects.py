"""How each family of APIs words an error: as an answer, as a stream's last event, as its last line.

The measure is what the client libraries read: Anthropic's knows errors of a stream by their event's
name only, Ollama's wants a text where OpenAI's has an object. llmux's own `code` is in all forms.
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
"""Characters of one message: what is a client's is cut where it comes in, to much less."""

MAX_CLOSE_BYTES = 123
"""Of the reason in a Close frame (RFC 6455, section 5.5)."""

INTERNAL_CLOSE, TRY_LATER_CLOSE = 1011, 1013
"""Codes of Close frames (RFC 6455, section 7.4, and IANA's registry)."""


class Told(NamedTuple):
    """What an error says, in no API's words.

    Attributes:
        message: For people.
        code: For programs.
        status: Of the answer that it is, or would have been.
        extra: More that a backend has said in OpenAI's or Anthropic's form.
    """

    message: str
    code: str
    status: int
    extra: Mapping[str, Any] = {}


class Stream(NamedTuple):
    """What is known of the stream that ends with an error.

    Attributes:
        number: Of the event that comes next, where events are numbered.
        response: The id of the answer; empty if it has not been seen.
    """

    number: int = 0
    response: str = ""


FRESH = Stream()
"""One of which nothing has been sent."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one family of APIs words an error.

    Attributes:
        name: The family's.
        body: The whole answer, for JSON.
        events: The last events of a stream.
        line: The last line of a stream of JSON lines, for JSON.
    """

    name: str
    body: Callable[[Told], dict[str, Any]]
    events: Callable[[Told, Stream], bytes]
    line: Callable[[Told], dict[str, Any]]


def told(error: LlmuxError, *, to_operator: bool = False) -> Told:
    """What an error of llmux says, to clients or to operators, who hear more."""
    said = error.details if to_operator else error.message
    message = shown(said, MAX_MESSAGE).encode("utf-8", "replace").decode()
    return Told(message, error.code, error.status, error.extra)


def event(payload: Mapping[str, Any], name: str = "") -> bytes:
    """One event of a stream."""
    named = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (named, msgspec.json.encode(payload))


# ---- OpenAI, and whatever has its form: vLLM, SGLang, llama.cpp ----


def _detail(said: Told) -> dict[str, Any]:
    own = {"message": said.message, "type": "llmux_error", "param": None, "code": said.code}
    return {**own, **said.extra}


def _openai_body(said: Told) -> dict[str, Any]:
    return {"error": _detail(said)}


OPENAI = Dialect(
    name="openai",
    body=_openai_body,
    events=lambda said, _: event(_openai_body(said)),
    line=_openai_body,
)


# ---- OpenAI's /v1/responses ----


def _responses_events(said: Told, stream: Stream) -> bytes:
    """Both ways to hear of it, in the order in which OpenAI's own server has them.

    The package raises for the first, whose `error` older descriptions of the API have in the event
    itself. Codex reads the second only.
    """
    detail = _detail(said)
    error = {
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
    return event(error, "error") + event(failed, "response.failed")


RESPONSES = Dialect(
    name="responses", body=_openai_body, events=_responses_events, line=_openai_body
)


# ---- Anthropic ----

_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 409: "conflict_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""Types of errors by status; other ones of 4xx are `invalid_request_error`, others `api_error`."""

# A tuple: what a backend says in its place may be a list, which has no hash.
_ANTHROPIC_KNOWN = (
    *_ANTHROPIC_TYPES.values(), "invalid_request_error", "api_error", "billing_error",
)  # fmt: skip


def _anthropic_body(said: Told) -> dict[str, Any]:
    otherwise = "invalid_request_error" if 400 <= said.status < 500 else "api_error"
    own = {
        "type": _ANTHROPIC_TYPES.get(said.status, otherwise), "message": said.message,
        "code": said.code, "details": {"error_code": said.code},
    }  # fmt: skip
    # What a backend says in OpenAI's form has types that no client of Anthropic's knows.
    is_known = said.extra.get("type") in _ANTHROPIC_KNOWN
    return {"type": "error", "error": {**own, **said.extra} if is_known else own}


ANTHROPIC = Dialect(
    name="anthropic",
    body=_anthropic_body,
    events=lambda said, _: event(_anthropic_body(said), "error"),
    line=_anthropic_body,
)


# ---- Ollama ----


def _ollama_body(said: Told) -> dict[str, Any]:
    return {"error": said.message, "code": said.code}


OLLAMA = Dialect(
    name="ollama",
    body=_ollama_body,
    events=lambda said, _: event(_ollama_body(said)),
    line=_ollama_body,
)


# ---- Cohere, and rerankers with its paths, of which some have OpenAI's errors ----


def _cohere_body(said: Told) -> dict[str, Any]:
    return {"message": said.message, **_openai_body(said)}


def _cohere_events(said: Told, _: Stream) -> bytes:
    delta = {"finish_reason": "ERROR", "error": said.message}
    return event({"type": "message-end", "delta": delta, **_openai_body(said)}, "message-end")


def _cohere_line(said: Told) -> dict[str, Any]:
    ended = {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR"}
    return {**ended, **_cohere_body(said)}


COHERE = Dialect(name="cohere", body=_cohere_body, events=_cohere_events, line=_cohere_line)


# ---- Hugging Face: text-embeddings-inference, text-generation-inference ----


def _tei_body(said: Told) -> dict[str, Any]:
    kind = "validation" if 400 <= said.status < 500 else "backend"
    if said.status in {429, 503}:
        kind = "overloaded"
    # `message`: rerankers of other makers have the same path.
    return {"error": said.message, "error_type": kind, "message": said.message, "code": said.code}


TEI = Dialect(
    name="tei", body=_tei_body, events=lambda said, _: event(_tei_body(said)), line=_tei_body
)


# ---- Which one a request speaks ----

_BY_PATH = (
    (ANTHROPIC, rb"/v\d+/messages(?:/count_tokens|/batches(?:/.*)?)?|/v\d+/complete"),
    (RESPONSES, rb"/responses(?:/[^/]+(?:/(?:cancel|input_items))?)?"),
    # Of other servers' paths below /api the first segment is a version, or there are two.
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
"""By what a path ends with: there may be a prefix, of `/upstream/<model>` or of another proxy."""

_DIALECTS = [(dialect, re.compile(rb".*(?:%b)" % path, re.DOTALL)) for dialect, path in _BY_PATH]

_EVENTS = re.compile(
    rb".*/(?:chat/completions|completions?|complete|infill|messages|responses(?:/[^/]+)?"
    rb"|generate_stream|v2/chat|images/generations|images/edits)",
    re.DOTALL,
)
"""Paths whose streams are events; not `/generate`, which each server streams in its own way."""


def plain_path(target: bytes) -> bytes:
    """The path of a target, without what servers overlook: slashes that are doubled, or last."""
    path = target.partition(b"?")[0]
    while b"//" in path:
        path = path.replace(b"//", b"/")
    return path.rstrip(b"/")


def dialect_of(target: bytes, headers: Headers = ()) -> Dialect:
    """The dialect of the client of a request.

    Args:
        target: Raw path and query, as received.
        headers: As received; Anthropic's clients name their version in one.
    """
    path = plain_path(target)
    for dialect, pattern in _DIALECTS:
        if pattern.fullmatch(path):
            return dialect
    if path.endswith((b"completions", b"embeddings")):
        return OPENAI
    is_anthropic = any(name.lower() == b"anthropic-version" for name, _ in headers)
    return ANTHROPIC if is_anthropic else OPENAI


def streams_events(target: bytes) -> bool:
    """Whether a stream that is asked for at this path is one of events."""
    return _EVENTS.fullmatch(plain_path(target)) is not None


_TARGET = re.compile(rb"[^ \r\n]+ +([^ \r\n]+)")
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_RESPONSE = re.compile(rb'"id"\s*:\s*"(resp[^"\\]{1,200})"')


def dialect_of_head(head: bytes) -> Dialect:
    """The dialect of a request whose head cannot be read, as far as its first line tells."""
    line = _TARGET.match(head)
    return OPENAI if line is None else dialect_of(line[1])


def seen_of(opening: bytes, ending: bytes) -> Stream:
    """What the beginning and the end of a stream say of it, as they came over the wire."""
    numbers = _NUMBER.findall(ending)
    response = _RESPONSE.search(opening)
    return Stream(int(numbers[-1]) + 1 if numbers else 0, response[1].decode() if response else "")


# ---- WebSockets ----


def close_reason(error: LlmuxError) -> tuple[int, str]:
    """Code and reason of the Close frame that ends a WebSocket with an error."""
    code = TRY_LATER_CLOSE if error.status in {429, 503, 504} else INTERNAL_CLOSE
    if error.code == "cancelled":  # to be tried again by nobody
        code = INTERNAL_CLOSE
    reason = f"{error.code}: {told(error).message}".encode()[:MAX_CLOSE_BYTES]
    return code, reason.decode(errors="ignore")


def realtime_event(target: bytes, error: LlmuxError) -> bytes:
    """What a client of OpenAI's realtime API is told before; nothing for others."""
    if not plain_path(target).endswith(b"/realtime"):
        return b""
    return msgspec.json.encode({"type": "error", "event_id": "", "error": _detail(told(error))})
