"""Streamed responses: whether a client expects one, and the form in which a backend sends it.

Media types are compared without case and without their parameters (RFC 9110, section 8.3.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from llmux.http.syntax import Headers
from llmux.openai.decoding import codings, content_encoding
from llmux.openai.dialects import OLLAMA, Dialect, dialect_of, plain_path, streams_events
from llmux.openai.headers import header
from llmux.openai.jsonbody import LARGE_BYTES

EVENT_STREAM = b"text/event-stream"

JSON_LINES = frozenset({
    b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonl",
    b"application/jsonlines", b"application/x-jsonlines", b"application/json-lines",
    b"application/json-seq", b"application/stream+json", b"application/x-json-stream",
})  # fmt: skip
"""Media types of streams with one JSON text per line. Ollama uses the first, Spring `stream+json`;
only `json-seq` (RFC 7464) is registered."""

UNBUFFERED = (b"X-Accel-Buffering", b"no")
"""Tells nginx, and other proxies that copy it, not to buffer a response (proxy_buffering)."""


def media_type(headers: Headers) -> bytes:
    """Return the media type of the content in lower case; empty if there is none."""
    return header(headers, b"content-type").partition(b";")[0].rstrip().lower()


def is_event_stream(headers: Headers) -> bool:
    return media_type(headers) == EVENT_STREAM


def is_token_stream(headers: Headers) -> bool:
    """Return whether the body arrives token by token: as events, or as JSON lines."""
    kind = media_type(headers)
    return kind == EVENT_STREAM or kind in JSON_LINES


def is_json_lines(headers: Headers, dialect: Dialect) -> bool:
    """Return whether the body is JSON lines, which some servers with Ollama's API label as JSON."""
    kind = media_type(headers)
    return kind in JSON_LINES or (dialect is OLLAMA and kind == b"application/json")


def json_line(headers: Headers, payload: Mapping[str, Any]) -> bytes:
    """Encode a line of a stream of JSON lines that has these headers."""
    start = b"\x1e" if media_type(headers) == b"application/json-seq" else b""
    return start + msgspec.json.encode(payload) + b"\n"


# ---- Server-sent events ----

EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""Ends of an event (WHATWG HTML, section 9.2.5)."""


def is_at_boundary(headers: Headers, tail: bytes) -> bool:
    """Return whether llmux may add an event or a line after `tail`, the last bytes sent."""
    if codings(content_encoding(headers)):
        return False  # plain text would corrupt a compressed body
    return not tail or tail.endswith(EVENT_ENDS if is_event_stream(headers) else b"\n")


def event_data(text: bytes) -> list[bytes]:
    """Return the data of each `data:` line, in order; these APIs have one line per event."""
    return [line[5:] for line in text.splitlines() if line.startswith(b"data:")]


# ---- What clients expect ----


def waits_for_events(
    method: bytes, target: bytes, headers: Headers, *, asks_for_stream: bool
) -> bool:
    """Return whether a client expects a stream of server-sent events.

    The body alone does not tell: Ollama's paths stream JSON lines, and others audio, after the same
    `"stream": true`. Nor does `Accept`: OpenAI's and Anthropic's libraries send `application/json`
    and still expect events.
    """
    if method == b"HEAD":
        return False
    query = target.partition(b"?")[2]
    asks_for_stream = asks_for_stream or b"stream=true" in query.split(b"&")
    accepted = _accepted(headers)
    if EVENT_STREAM in accepted:
        # Clients that accept several types (`text/event-stream, application/json`) need not want
        # a stream.
        wants_events = asks_for_stream or accepted == {EVENT_STREAM}
        return wants_events and dialect_of(target) is not OLLAMA
    if accepted and accepted.isdisjoint(_MAY_BE_EVENTS):
        return False
    return asks_for_stream and streams_events(target)


_STREAMS_UNASKED = re.compile(rb".*/(?:api/(?:chat|generate)|generate_stream)", re.DOTALL)
_NO_STREAM = re.compile(rb'"stream"[ \t\r\n]*+:[ \t\r\n]*+false')


def streams_unasked(target: bytes, body: bytes) -> bool:
    """Return whether the backend streams although the body does not ask for it.

    Ollama streams unless the body says `"stream": false`, and text-generation-inference's
    `/generate_stream` always does. A large body is not searched, and taken to say false.
    """
    if b"/api/" not in target and b"generate_stream" not in target:
        return False
    streams_by_default = _STREAMS_UNASKED.fullmatch(plain_path(target)) is not None
    return streams_by_default and len(body) <= LARGE_BYTES and _NO_STREAM.search(body) is None


_MAY_BE_EVENTS = frozenset({b"*/*", b"text/*", b"application/*", b"application/json"})


def _accepted(headers: Headers) -> set[bytes]:
    """Return the media types that a client accepts, without parameters (RFC 9110, 12.5.1)."""
    accepted = set()
    for name, value in headers:
        if name.lower() == b"accept":
            for each in value.split(b","):
                kind, *parameters = (part.strip().lower() for part in each.split(b";"))
                if kind and not any(_REFUSED.fullmatch(part) for part in parameters):
                    accepted.add(kind)
    return accepted


_REFUSED = re.compile(rb"q\s*=\s*0(?:\.0*)?")


def unbuffered(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a stream with one that stops proxies from buffering it, if missing."""
    kept = list(headers)
    if not header(kept, UNBUFFERED[0].lower()):
        kept.append(UNBUFFERED)
    return kept
