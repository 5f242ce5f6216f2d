"""What the headers of an answer say of how it comes: as a stream, and in which form.

Media types are compared without regard to case, and without their parameters (RFC 9110, section
8.3.1).
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
"""One JSON text a line. None but `json-seq` (RFC 7464) is registered: Ollama has the first, Spring
`stream+json`."""

UNBUFFERED = (b"X-Accel-Buffering", b"no")
"""Tells nginx, and others in its place, to pass an answer on as it comes (proxy_buffering)."""


def media_type(headers: Headers) -> bytes:
    """Of the content, in lower case; empty if it is not said."""
    return header(headers, b"content-type").partition(b";")[0].rstrip().lower()


def is_event_stream(headers: Headers) -> bool:
    """Whether these are server-sent events."""
    return media_type(headers) == EVENT_STREAM


def is_token_stream(headers: Headers) -> bool:
    """Whether a body of unknown length comes token by token: as events, or as JSON lines."""
    kind = media_type(headers)
    return kind == EVENT_STREAM or kind in JSON_LINES


def is_json_lines(headers: Headers, dialect: Dialect) -> bool:
    """Whether these are lines of JSON; some servers of Ollama's API call them JSON."""
    kind = media_type(headers)
    return kind in JSON_LINES or (dialect is OLLAMA and kind == b"application/json")


def json_line(headers: Headers, payload: Mapping[str, Any]) -> bytes:
    """One line more of these."""
    begun = b"\x1e" if media_type(headers) == b"application/json-seq" else b""
    return begun + msgspec.json.encode(payload) + b"\n"


EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""How an event ends (WHATWG HTML, section 9.2.5)."""


def stands_between(headers: Headers, tail: bytes) -> bool:
    """Whether another event, or another line, may follow what was sent of a stream.

    Args:
        headers: Of the answer.
        tail: The last bytes of the body that were sent; nothing if none was.
    """
    if codings(content_encoding(headers)):
        return False
    return not tail or tail.endswith(EVENT_ENDS if is_event_stream(headers) else b"\n")


def waits_for_events(
    method: bytes, target: bytes, headers: Headers, *, asks_for_stream: bool
) -> bool:
    """Whether a client waits for an answer that is a stream of events.

    Ollama's paths stream JSON lines, and others audio, though their bodies ask in the same way.
    What a client says that it accepts counts where its path says nothing; OpenAI's and Anthropic's
    packages accept `application/json` only, and get events all the same.

    Args:
        method: Of the request.
        target: Its raw path and query.
        headers: As received.
        asks_for_stream: Whether its body does.
    """
    if method == b"HEAD":
        return False
    query = target.partition(b"?")[2]
    asks_for_stream = asks_for_stream or b"stream=true" in query.split(b"&")
    accepted = _accepted(headers)
    if EVENT_STREAM in accepted:
        is_meant = asks_for_stream or accepted == {EVENT_STREAM}
        return is_meant and dialect_of(target) is not OLLAMA
    if accepted and accepted.isdisjoint(_MAY_BE_EVENTS):
        return False
    return asks_for_stream and streams_events(target)


_STREAMS_UNASKED = re.compile(rb".*/(?:api/(?:chat|generate)|generate_stream)", re.DOTALL)
_NO_STREAM = re.compile(rb'"stream"[ \t\r\n]*+:[ \t\r\n]*+false')


def streams_unasked(target: bytes, body: bytes) -> bool:
    """Whether the answer is a stream though the body asks for none.

    Ollama streams unless it is told not to, text-generation-inference's path always. A large body
    is not looked through, and taken to say no.
    """
    if b"/api/" not in target and b"generate_stream" not in target:
        return False
    is_meant = _STREAMS_UNASKED.fullmatch(plain_path(target)) is not None
    return is_meant and len(body) <= LARGE_BYTES and _NO_STREAM.search(body) is None


_MAY_BE_EVENTS = frozenset({b"*/*", b"text/*", b"application/*", b"application/json"})


def _accepted(headers: Headers) -> set[bytes]:
    """The media types that a client accepts, bare (RFC 9110, section 12.5.1)."""
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
    """The headers of a stream, which is not to be held up on its way, unless they say otherwise."""
    kept = list(headers)
    if not header(kept, UNBUFFERED[0].lower()):
        kept.append(UNBUFFERED)
    return kept
