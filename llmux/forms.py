"""The field `model` of HTML forms: what it says, and where it stands in the body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from llmux.errors import BadRequest
from llmux.names import MAX_NAME_BYTES, overlong
from llmux.scanning import (
    MAX_MATCHES,
    SLICE_BYTES,
    Pause,
    few_matches,
    no_pause,
    too_many,
)

Span = tuple[int, int]
"""Offsets of a value in a body: its first byte, and the byte behind its last."""

Field = tuple[str, Span]
"""A field's decoded value, and the span of its raw value."""

MAX_BOUNDARY_BYTES = 70
"""RFC 2046, section 5.1.1."""

MAX_HEAD_BYTES = 16384
"""The head of a part, which needs 60 bytes for the field `model`. Go takes far longer ones,
so a longer one is refused: the field could hide in it."""

URLENCODED = b"application/x-www-form-urlencoded"
MULTIPART = b"multipart/form-data"


def model_fields(content_type: bytes, body: bytes, pause: Pause = no_pause) -> list[Field]:
    """Every field `model` of a form; none if the body is no form.

    Args:
        content_type: As the client sent it.
        body: The whole body.
        pause: Called between two slices of work.

    Raises:
        BadRequest: There are too many fields.
    """
    kind = _kind(content_type)
    if kind == URLENCODED:
        return urlencoded_fields(body, pause)
    boundary = _parameters(content_type).get(b"boundary", b"")
    if kind == MULTIPART and 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        _check_line_ends(body, b"--" + boundary, pause)
        return list(_multipart_fields(body, boundary, pause))
    return []


def form_mistake(content_type: bytes, body: bytes, pause: Pause = no_pause) -> str | None:
    """Why a form cannot be read to its end; empty if it can be, None if the body is no form.

    Raises:
        BadRequest: There are too many fields.
    """
    kind = _kind(content_type)
    if kind == URLENCODED:
        return ""
    if kind != MULTIPART:
        return None
    boundary = _parameters(content_type).get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        return f"its Content-Type has no boundary of 1 to {MAX_BOUNDARY_BYTES} bytes"
    delimiters = _delimiters(body, b"--" + boundary, pause)
    if not any(each.is_last for each in delimiters):
        return "its last boundary is missing" if delimiters else "its boundary is not in it"
    return ""


def form_value(content_type: bytes, text: str) -> bytes:
    """A value as it is written in a form of this type."""
    return text.encode() if _kind(content_type) == MULTIPART else quote(text, safe="/:").encode()


def spelled(word: bytes, escape: bytes, *, any_case: bool = False) -> bytes:
    """A regular expression for a word of which any byte may be written as an escape and its hex."""
    letters = [{byte, bytes([byte]).upper()[0]} if any_case else {byte} for byte in word]
    return b"".join(
        b"(?:[%b]|%b(?i:%b))"
        % (bytes(sorted(each)), escape, b"|".join(b"%02x" % byte for byte in sorted(each)))
        for each in letters
    )


def _kind(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


# ---- name=value&name=value ----

_URLENCODED_KEY = spelled(b"model", b"%") + b"="
_FIRST_KEY = re.compile(_URLENCODED_KEY)
# A pattern that begins with a literal byte is searched for ten times as fast.
_LATER_KEY = re.compile(b"&" + _URLENCODED_KEY)
_LONGEST_KEY = len(b"&%6d%6f%64%65%6c=")


def has_later_field(data: bytes) -> bool:
    """Whether a urlencoded form would have a field `model` behind its first."""
    return _LATER_KEY.search(data) is not None


MAX_ENCODED_BYTES = 3 * MAX_NAME_BYTES
"""The longest name, each byte of it percent-encoded."""


def urlencoded_fields(data: bytes, pause: Pause = no_pause) -> list[Field]:
    """Every field `model` of a urlencoded body, or of a query.

    Raises:
        BadRequest: There are too many.
    """
    first = _FIRST_KEY.match(data)
    starts = [first.end()] if first else []
    starts += [each.end() for each in few_matches(_LATER_KEY, data, _LONGEST_KEY, pause)]
    ends = (data.find(b"&", start) for start in starts)
    spans = [
        (start, len(data) if end < 0 else end) for start, end in zip(starts, ends, strict=True)
    ]
    return [(_unquoted(data, *span), span) for span in spans]


def _unquoted(data: bytes, start: int, stop: int) -> str:
    """A value; of one that is too long for a name no more than what shows that it is."""
    raw = data[start : min(stop, start + MAX_ENCODED_BYTES + 3)]
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")


# ---- multipart/form-data: RFC 7578, RFC 2046 section 5.1.1 ----

# The lines of a part's head, and the blank line. The line break before them ends the delimiter.
_PART_HEAD = re.compile(rb"\r\n((?:[^\r\n]++\r\n)*+)\r\n")

# A line that goes on (RFC 5322, section 2.2.3).
_FOLD = re.compile(rb"\r\n(?=[ \t])")

# A parameter (RFC 9110, section 5.6.6): its value is a token or a quoted string.
_PARAMETER = re.compile(rb';\s*([^\s;="]++)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]++))')


# Behind the boundary: the end of the form, or of the line.
_BOUNDARY_END = re.compile(rb"(--)|[ \t]*+(?=\r\n)")


class _Delimiter(NamedTuple):
    """A line between two parts, from its dashes to its line break; the last ends the form."""

    start: int
    stop: int
    is_last: bool


def _multipart_fields(body: bytes, boundary: bytes, pause: Pause) -> Iterator[Field]:
    for delimiter, following in pairwise(_delimiters(body, b"--" + boundary, pause)):
        if delimiter.is_last:
            return
        stop = following.start - len(b"\r\n")
        most = delimiter.stop + MAX_HEAD_BYTES
        head = _PART_HEAD.match(body, delimiter.stop, min(stop, most))
        if head is not None and _names_model(head[1]):
            yield _part(body, head.end(), stop), (head.end(), stop)
        elif head is None and stop > most:
            raise BadRequest(f"The head of a part of the form has more than {MAX_HEAD_BYTES} bytes")


def _delimiters(body: bytes, line: bytes, pause: Pause) -> list[_Delimiter]:
    """All delimiters; each stands behind a line break, which the very first may lack.

    Raises:
        BadRequest: There are too many, or too much that begins like one.
    """
    found: list[_Delimiter] = []
    start = 0 if body.startswith(line) else _find_line(body, line, 0, pause)
    for _ in range(MAX_MATCHES + 1):
        if start < 0:
            return found
        stop = start + len(line)
        if end := _BOUNDARY_END.match(body, stop):
            found.append(_Delimiter(start, end.end(), is_last=end[1] is not None))
        start = _find_line(body, line, stop, pause)
    raise too_many(MAX_MATCHES)


def _check_line_ends(body: bytes, line: bytes, pause: Pause) -> None:
    """Raise BadRequest if a delimiter ends with a bare LF: Go's parser takes such forms."""
    wanted = re.compile(re.escape(line) + rb"[ \t]*+\n")
    for at in range(0, len(body), SLICE_BYTES):
        if wanted.search(body, at, at + SLICE_BYTES + 2 * len(line)):
            raise BadRequest("A line between two parts of the form ends without CR")
        pause()


def _find_line(body: bytes, line: bytes, start: int, pause: Pause) -> int:
    """Where a line begins that begins so; -1 if there is none."""
    wanted = b"\r\n" + line
    for at in range(start, len(body), SLICE_BYTES):
        found = body.find(wanted, at, at + SLICE_BYTES + len(wanted))
        if found >= 0:
            return found + len(b"\r\n")
        pause()
    return -1


def _part(body: bytes, start: int, stop: int) -> str:
    """A part's text; of one that is too long for a name no more than shows that it is."""
    raw = body[start : min(stop, start + MAX_NAME_BYTES + 1)]
    return overlong(raw) if len(raw) > MAX_NAME_BYTES else raw.decode("utf-8", "replace")


def _names_model(head: bytes) -> bool:
    """Whether a part is the field `model`; a part that has a file name is a file.

    Raises:
        BadRequest: Parsers differ on what it is.
    """
    for line in _FOLD.sub(b" ", head).split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-disposition":
            given = _parameters(value)
            if any(each.startswith(b"name*") for each in given):
                # RFC 2231; Go's parser reads it, and hardly any other.
                raise BadRequest("A part of the form has its name as 'name*': write it as 'name'")
            return given.get(b"name") == b"model" and not {b"filename", b"filename*"} & given.keys()
    return False


def _parameters(value: bytes) -> dict[bytes, bytes]:
    return {
        match[1].lower(): match[3] or re.sub(rb"\\(.)", rb"\1", match[2] or b"")
        for match in _PARAMETER.finditer(value)
    }
