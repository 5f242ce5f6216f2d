"""Headers: lookup, and which of them are forwarded to a backend or to a client."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from llmux.http.syntax import Headers

OVERRIDE = b"model-override"

VIA = b"via"
"""Header in which each proxy that forwards a request names itself (RFC 9110, section 7.6.3)."""

PSEUDONYM = re.compile(rb"\bllmux-[0-9a-f]{16}\b")
"""The name of an llmux in `Via` (`own_pseudonym`)."""

FORWARDED_FOR = b"x-forwarded-for"

HINTS = frozenset({b"x-llmux-switch", b"x-llmux-priority", b"x-llmux-max-wait"})
"""Headers for llmux alone; see `llmux.switching.hints`."""

# RFC 9110, section 7.6.1, and what older agents send. `Connection` may name others.
HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip

# Besides: what llmux sets for each hop (framing, host), and what is meant for llmux itself.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", OVERRIDE} | HINTS


def header(headers: Headers, wanted: bytes) -> bytes:
    """Return the value of the first header with a (lower-case) name, stripped; empty if none."""
    length = len(wanted)
    for name, value in headers:
        if len(name) == length and name.lower() == wanted:
            return value.strip()
    return b""


def header_value(name: str) -> bytes:
    """Encode a configured name as a header value: in UTF-8, as some names are not ISO 8859-1."""
    return name.encode("utf-8", "replace")


def own_pseudonym() -> bytes:
    """Return a new name for `Via`, by which an llmux knows its own requests if they come back.

    It is random, so that one llmux may have another one as a backend.
    """
    return b"llmux-" + secrets.token_hex(8).encode()


def request_headers(
    headers: Headers,
    *,
    client: str | None,
    scheme: str,
    extra: Mapping[str, str],
    pseudonym: bytes = b"",
) -> list[tuple[bytes, bytes]]:
    """Return the headers for a backend: end-to-end, `X-Forwarded-*`, `Via`, and the config's.

    Args:
        headers: As received.
        client: Address of the client; None if unknown.
        scheme: http or https, as the client used it.
        extra: Headers of the config; each replaces all received ones of its name. Of `Via`, the
            marks of every llmux are kept, or loops would not be noticed.
        pseudonym: Name of this llmux, to be added to `Via`; empty for no addition.
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
    if VIA in replaced:
        own += [(b"Via", b"1.1 " + mark) for mark in _marks(headers)]
    if pseudonym:
        own.append((b"Via", b"1.1 " + pseudonym))
    return kept + own


def _marks(headers: Headers) -> list[bytes]:
    """Return the names of all llmux that have forwarded a request."""
    values = b",".join(value for name, value in headers if name.lower() == VIA)
    return PSEUDONYM.findall(values)


def _append_forwarded_for(headers: Headers, client: bytes) -> list[tuple[bytes, bytes]]:
    """Append the client to X-Forwarded-For, joined into one header: some servers read only one."""
    hops = [value for name, value in headers if name.lower() == FORWARDED_FOR]
    others = [(name, value) for name, value in headers if name.lower() != FORWARDED_FOR]
    return [*others, (b"X-Forwarded-For", b", ".join([*hops, client]))]


def response_headers(headers: Headers, status: int = 200) -> list[tuple[bytes, bytes]]:
    """Return the headers for a client: end-to-end ones, and for event streams no buffering.

    Args:
        headers: As received from the backend.
        status: Status code. `Content-Length` is dropped if the status allows no body (RFC 9110,
            section 8.6), or if the body is chunked (RFC 9112, section 6.3).
    """
    fields = [(name.lower(), (name, value)) for name, value in headers]
    present = dict(fields)
    dropped = HOP_BY_HOP
    if b"connection" in present:
        # `Connection: content-length` must not remove the framing that the body is sent with.
        dropped |= _named_by_connection(headers) - {b"content-length"}
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
