"""Fields of HTML forms in a request body, and where they stand: multipart and urlencoded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

Field = tuple[str, tuple[int, int]]
"""A field's decoded value, and where its raw value stands in the body."""

# Parameters of a header field (RFC 9110, section 5.6.6): a token or a quoted string.
_PARAMETER = re.compile(
    rb';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))'
)


def form_fields(content_type: bytes, body: bytes, wanted: bytes) -> list[Field]:
    """Every field of this name in a form; none if the body is no form.

    Args:
        content_type: The request's Content-Type.
        body: The whole body.
        wanted: The name.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/x-www-form-urlencoded":
        return list(_urlencoded(body, wanted))
    boundary = _parameters(content_type).get(b"boundary")
    if kind == b"multipart/form-data" and boundary:
        return list(_multipart(body, boundary, wanted))
    return []


def _urlencoded(body: bytes, wanted: bytes) -> Iterator[Field]:
    for match in re.finditer(rb"([^&=]*)=([^&]*)", body):
        if unquote_to_bytes(match[1].replace(b"+", b" ")) == wanted:
            value = unquote_to_bytes(match[2].strip().replace(b"+", b" "))
            yield value.decode("utf-8", "replace"), match.span(2)


def _multipart(body: bytes, boundary: bytes, wanted: bytes) -> Iterator[Field]:
    """RFC 7578; a part that has a file name is a file, whatever its name."""
    delimiter = b"\r\n--" + boundary
    # The first delimiter has no line break before it if nothing precedes it.
    start = 0 if body.startswith(delimiter[2:]) else body.find(delimiter) + 2
    end = start
    while start >= 0 and end >= 0 and not body.startswith(delimiter[2:] + b"--", start):
        head_start = body.find(b"\r\n", start) + 2
        head_end = body.find(b"\r\n\r\n", head_start - 2)
        end = body.find(delimiter, max(head_end + 2, head_start))
        if head_start < 2 or head_end < 0 or end < 0:
            return
        names = _part_names(body[head_start:head_end])
        if names.get(b"name") == wanted and b"filename" not in names:
            yield body[head_end + 4 : end].decode("utf-8", "replace"), (head_end + 4, end)
        start = end + 2


def _part_names(head: bytes) -> dict[bytes, bytes]:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameters(value)
    return {}


def _parameters(value: bytes) -> dict[bytes, bytes]:
    return {
        match[1].lower(): re.sub(rb"\\(.)", rb"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(value)
    }
