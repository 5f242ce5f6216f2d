"""What the headers of an answer say of how it comes: as a stream, and in which form.

Media types are compared without regard to case, and without their parameters (RFC 9110, section
8.3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from llmux.openai import header

Headers = Sequence[tuple[bytes, bytes]]

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


def unbuffered(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers of a stream, which is not to be held up on its way, unless they say otherwise."""
    kept = list(headers)
    if not header(kept, UNBUFFERED[0].lower()):
        kept.append(UNBUFFERED)
    return kept
