"""Headers: lookup, and the selection of those that pass to a backend or to a client."""

from __future__ import annotations

from collections.abc import Mapping

from llmux.http.syntax import Headers

OVERRIDE = b"model-override"

FORWARDED_FOR = b"x-forwarded-for"

HINTS = frozenset({b"x-llmux-switch", b"x-llmux-priority", b"x-llmux-max-wait"})
"""A header for llmux only; see `llmux.switching.hints`."""

# RFC 9110, section 7.6.1, and what older agents send. `Connection` may name more.
HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip

# llmux's own to set (the framing, the name of the backend's host), and what is meant for llmux.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", OVERRIDE} | HINTS


def header(headers: Headers, wanted: bytes) -> bytes:
    """The first header of a lower-case name, stripped; empty if there is none."""
    length = len(wanted)
    for name, value in headers:
        if len(name) == length and name.lower() == wanted:
            return value.strip()
    return b""


def header_value(name: str) -> bytes:
    """A configured name as a header value; what ISO 8859-1 lacks goes as UTF-8 bytes."""
    return name.encode("utf-8", "replace")


def request_headers(
    headers: Headers, *, client: str | None, scheme: str, extra: Mapping[str, str]
) -> list[tuple[bytes, bytes]]:
    """Return the headers for the backend: end-to-end ones, the client's address, the config's own.

    Args:
        headers: As received.
        client: The client's address, where it is known.
        scheme: http or https, as the client used it.
        extra: The config's headers; each replaces all of its name.
    """
    fields = [(name.lower(), (name, value)) for name, value in headers]
    present = dict(fields)
    own = [(name.encode(), value.encode()) for name, value in extra.items()]
    replaced = {name.lower() for name, _ in own}
    dropped = NOT_FORWARDED | replaced if replaced else NOT_FORWARDED
    if b"connection" in present:
        dropped |= _named_by_connection(headers)
    kept = [field for lower, field in fields if lower not in dropped]
    if client is not None and FORWARDED_FOR not in replaced:
        if FORWARDED_FOR in present:
            kept = _append_forwarded_for(kept, client.encode())
        else:
            kept.append((b"X-Forwarded-For", client.encode()))
    if b"x-forwarded-proto" not in present and b"x-forwarded-proto" not in replaced:
        kept.append((b"X-Forwarded-Proto", scheme.encode()))
    taken = b"x-forwarded-host" in present or b"x-forwarded-host" in replaced
    if b"host" in present and not taken:
        kept.append((b"X-Forwarded-Host", present[b"host"][1]))
    return kept + own


def _append_forwarded_for(headers: Headers, client: bytes) -> list[tuple[bytes, bytes]]:
    """One header in place of all there are, since not all servers join them."""
    hops = [value for name, value in headers if name.lower() == FORWARDED_FOR]
    others = [(name, value) for name, value in headers if name.lower() != FORWARDED_FOR]
    return [*others, (b"X-Forwarded-For", b", ".join([*hops, client]))]


def response_headers(headers: Headers, status: int = 200) -> list[tuple[bytes, bytes]]:
    """Return the headers for the client: end-to-end ones, and for event streams no buffering.

    Args:
        headers: As received from the backend.
        status: The answer's. Of one that has no body the length is not passed on (RFC 9110,
            section 8.6), nor that of one in chunks (RFC 9112, section 6.3).
    """
    fields = [(name.lower(), (name, value)) for name, value in headers]
    present = dict(fields)
    dropped = HOP_BY_HOP
    if b"connection" in present:
        dropped |= _named_by_connection(headers) - {b"content-length"}  # the body is sent as framed
    if status == 204 or status < 200 or b"transfer-encoding" in present:
        dropped |= {b"content-length"}
    kept = [
        field
        for lower, field in fields
        if lower not in dropped and not lower.startswith(b"x-llmux-")
    ]
    kind = present.get(b"content-type")
    is_stream = kind is not None and kind[1].lower().startswith(b"text/event-stream")
    if is_stream and not header(kept, b"x-accel-buffering"):
        kept.append((b"X-Accel-Buffering", b"no"))
    return kept


def _named_by_connection(headers: Headers) -> set[bytes]:
    return {
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
