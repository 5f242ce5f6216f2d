"""The field `model` of HTML forms: what it says, and where it stands in the body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from urllib.parse import quote, unquote_to_bytes

from llmux.errors import BadRequest

Span = tuple[int, int]
"""Offsets of a value in a body: its first byte, and the byte behind its last."""

Field = tuple[str, Span]
"""A field's decoded value, and the span of its raw value."""

MAX_MATCHES = 10_000
"""Parts of a form, or keys `model` in JSON: more are refused, since each costs about a
microsecond in which nothing else is served. Web frameworks take 1,000 parts."""

MAX_BOUNDARY_BYTES = 70
"""RFC 2046, section 5.1.1."""

MAX_HEAD_BYTES = 512
"""The head of a part; the field `model` needs 60. One that is longer is some other field's."""

URLENCODED = b"application/x-www-form-urlencoded"
MULTIPART = b"multipart/form-data"


def model_fields(content_type: bytes, body: bytes) -> list[Field]:
    """Every field `model` of a form; none if the body is no form.

    Raises:
        BadRequest: There are too many fields.
    """
    kind = _kind(content_type)
    if kind == URLENCODED:
        return urlencoded_fields(body)
    boundary = _parameters(content_type).get(b"boundary", b"")
    if kind == MULTIPART and 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        return list(_multipart_fields(body, boundary))
    return []


def form_value(content_type: bytes, text: str) -> bytes:
    """A value as it is written in a form of this type."""
    return text.encode() if _kind(content_type) == MULTIPART else quote(text, safe="/:").encode()


def spelled(word: bytes, escape: bytes) -> bytes:
    """A regular expression for a word of which any byte may be written as an escape and its hex."""
    return b"".join(b"(?:%c|%b(?i:%02x))" % (byte, escape, byte) for byte in word)


def few_matches(pattern: re.Pattern[bytes], data: bytes) -> list[re.Match[bytes]]:
    """All matches of a pattern.

    Raises:
        BadRequest: There are too many.
    """
    matches = list(islice(pattern.finditer(data), MAX_MATCHES + 1))
    if len(matches) > MAX_MATCHES:
        raise BadRequest(f"The request has more than {MAX_MATCHES} fields")
    return matches


def _kind(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


# ---- name=value&name=value ----

_URLENCODED_FIELD = re.compile(b"&" + spelled(b"model", b"%") + b"=([^&]*)")


def urlencoded_fields(data: bytes) -> list[Field]:
    """Every field `model` of a urlencoded body, or of a query.

    Raises:
        BadRequest: There are too many.
    """
    # A pattern that begins with a literal byte is searched for ten times as fast: hence the "&".
    matches = few_matches(_URLENCODED_FIELD, b"&" + data)
    return [(_unquoted(match[1]), (match.start(1) - 1, match.end(1) - 1)) for match in matches]


def _unquoted(value: bytes) -> str:
    return unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")


# ---- multipart/form-data: RFC 7578, RFC 2046 section 5.1.1 ----

# The lines of a part's head, and the blank line. The line break before them ends the delimiter.
_PART_HEAD = re.compile(rb"\r\n((?:[^\r\n]++\r\n)*+)\r\n")

# A parameter (RFC 9110, section 5.6.6): its value is a token or a quoted string.
_PARAMETER = re.compile(rb';\s*([^\s;="]++)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]++))')


def _multipart_fields(body: bytes, boundary: bytes) -> Iterator[Field]:
    delimiters = few_matches(_delimiter(boundary), body)
    for delimiter, following in pairwise(delimiters):
        if delimiter["close"]:
            return
        stop = following.start() - len(b"\r\n")
        head = _PART_HEAD.match(body, delimiter.end(), min(stop, delimiter.end() + MAX_HEAD_BYTES))
        if head is not None and _names_model(head[1]):
            yield body[head.end() : stop].decode("utf-8", "replace"), (head.end(), stop)


def _delimiter(boundary: bytes) -> re.Pattern[bytes]:
    """A delimiter behind its line break, which the very first may lack."""
    # What must come before is looked at behind the literal bytes, which are searched for fast.
    line = re.escape(b"--" + boundary)
    at_line_start = rb"(?:(?<=\r\n%b)|(?<=\A%b))" % (line, line)
    return re.compile(line + at_line_start + rb"(?:(?P<close>--)|[ \t]*+(?=\r\n))")


def _names_model(head: bytes) -> bool:
    """Whether a part is the field `model`; a part that has a file name is a file."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-disposition":
            given = _parameters(value)
            return given.get(b"name") == b"model" and not {b"filename", b"filename*"} & given.keys()
    return False


def _parameters(value: bytes) -> dict[bytes, bytes]:
    return {
        match[1].lower(): match[3] or re.sub(rb"\\(.)", rb"\1", match[2] or b"")
        for match in _PARAMETER.finditer(value)
    }
