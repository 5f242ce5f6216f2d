"""The field `model` of HTML forms: its values and their positions.

A form that parsers could read differently is refused: its backend might otherwise read another
model than llmux did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from llmux.base.names import MAX_NAME_BYTES, overlong
from llmux.errors import BadRequest
from llmux.openai.scanning import (
    MATCHES_BETWEEN_PAUSES,
    MAX_MATCHES,
    SLICE_BYTES,
    Pause,
    end_of_run,
    few_matches,
    no_pause,
    too_many,
)

Span = tuple[int, int]
"""Offsets of a value in a body: of its first byte, and behind its last."""

Field = tuple[str, Span]
"""A field's decoded value, and the span of its raw value."""

MAX_BOUNDARY_BYTES = 70
"""RFC 2046, section 5.1.1."""

MAX_HEAD_BYTES = 16384
"""Limit for the head of a part. The field `model` needs 60 bytes; a longer head is refused, not
skipped, since Go accepts far longer ones, and could find the field in it."""

URLENCODED = b"application/x-www-form-urlencoded"
MULTIPART = b"multipart/form-data"


def model_fields(content_type: bytes, body: bytes, pause: Pause = no_pause) -> list[Field]:
    """Return every field `model` of a form; none if the body is no form.

    Raises:
        BadRequest: There are too many fields, or parsers would disagree on them.
    """
    kind = _kind(content_type)
    if kind == URLENCODED:
        return urlencoded_fields(body, pause)
    if kind != MULTIPART:
        return []
    boundary = _boundary(content_type)
    _check_line_ends(body, b"--" + boundary, pause)
    return list(_multipart_fields(body, boundary, pause))


def form_mistake(content_type: bytes, body: bytes, pause: Pause = no_pause) -> str | None:
    """Return why a form cannot be read to its end; empty if it can, None if the body is no form.

    Raises:
        BadRequest: There are too many fields.
    """
    kind = _kind(content_type)
    if kind == URLENCODED:
        return ""
    if kind != MULTIPART:
        return None
    delimiters = _delimiters(body, b"--" + _boundary(content_type), pause)
    if not any(each.is_last for each in delimiters):
        return "its last boundary is missing" if delimiters else "its boundary is not in it"
    return ""


def form_value(content_type: bytes, text: str) -> bytes:
    """Encode a value for a form of this type."""
    return text.encode() if _kind(content_type) == MULTIPART else quote(text, safe="/:").encode()


def spelled(word: bytes, escape: bytes, *, any_case: bool = False) -> bytes:
    """Return a pattern for a word, any byte of which may be written as `escape` and its hex."""
    letters = [{byte, bytes([byte]).upper()[0]} if any_case else {byte} for byte in word]
    return b"".join(
        b"(?:[%b]|%b(?i:%b))"
        % (bytes(sorted(each)), escape, b"|".join(b"%02x" % byte for byte in sorted(each)))
        for each in letters
    )


def _kind(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def _boundary(content_type: bytes) -> bytes:
    """Return the boundary of a multipart form.

    Raises:
        BadRequest: It is missing, or not all parsers would accept it: Go's also accepts longer
            ones, and `boundary*`.
    """
    given = [each for each in _parameters(content_type) if each[0].startswith(b"boundary")]
    if len(given) == 1 and given[0][0] == b"boundary":
        boundary = given[0][1]
        if 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
            return boundary
    raise BadRequest(
        "body is not multipart/form-data: its Content-Type has no boundary of 1 to "
        f"{MAX_BOUNDARY_BYTES} bytes, given once"
    )


# ---- name=value&name=value ----

_URLENCODED_KEY = spelled(b"model", b"%") + b"="
_FIRST_KEY = re.compile(_URLENCODED_KEY)
# Two patterns, since a search is ten times as fast for one that starts with a literal byte.
_LATER_KEY = re.compile(b"&" + _URLENCODED_KEY)
_LONGEST_KEY = len(b"&%6d%6f%64%65%6c=")


def has_later_field(data: bytes) -> bool:
    """Return whether the data, read as a urlencoded form, has a field `model` after the first."""
    return _LATER_KEY.search(data) is not None


MAX_ENCODED_BYTES = 3 * MAX_NAME_BYTES
"""Longest name with each byte percent-encoded."""


def urlencoded_fields(data: bytes, pause: Pause = no_pause) -> list[Field]:
    """Return every field `model` of a urlencoded body, or of a query.

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
    """Decode a value; one that is too long for a name is cut, but stays too long."""
    raw = data[start : min(stop, start + MAX_ENCODED_BYTES + 3)]
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")


# ---- multipart/form-data: RFC 7578, RFC 2046 section 5.1.1 ----

# The lines of a part's head, and the blank line; the first line break belongs to the delimiter.
_PART_HEAD = re.compile(rb"\r\n((?:[^\r\n]++\r\n)*+)\r\n")

# A folded line (RFC 5322, section 2.2.3).
_FOLD = re.compile(rb"\r\n(?=[ \t])")

# A parameter, whose value is a token or a quoted string (RFC 9110, section 5.6.6).
_PARAMETER = re.compile(rb';\s*([^\s;="]++)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]++))')


_BLANKS = re.compile(rb"[ \t]*+")
_LINE_END = re.compile(rb"[ \t]{0,4096}+(?:\r\n|\Z)")
_BARE_LF = re.compile(rb"(?<!\r)\n")

MAX_BOUNDARY_LINE_BYTES = 4096
"""Go's parser does not accept a longer line as a boundary."""

_CONTENT_DISPOSITION, _TRANSFER_ENCODING = b"content-disposition", b"content-transfer-encoding"

PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary"})
"""Values of Content-Transfer-Encoding that leave a part as it is. Parsers differ on others: Go's
decodes quoted-printable, some of Python's also base64. RFC 7578, section 4.7, deprecates it."""

# RFC 8187. Go's parser ignores a value of another form.
_ENCODED_NAME = re.compile(rb"(?i:utf-8|us-ascii)'[^']*'(?:[^%']|%[0-9A-Fa-f]{2})++")


class _Delimiter(NamedTuple):
    """A boundary line, from its dashes to its line break; `is_last` if it ends the form."""

    start: int
    stop: int
    is_last: bool


def _multipart_fields(body: bytes, boundary: bytes, pause: Pause) -> Iterator[Field]:
    delimiters = _delimiters(body, b"--" + boundary, pause)
    for number, (delimiter, following) in enumerate(pairwise(delimiters), 1):
        if number % MATCHES_BETWEEN_PAUSES == 0:
            pause()
        if delimiter.is_last:
            if not _LINE_END.match(body, delimiter.stop):  # Go's parser would not see a boundary
                raise BadRequest("Text follows the form's last boundary in its line")
            return
        stop = following.start - len(b"\r\n")
        most = delimiter.stop + MAX_HEAD_BYTES
        # Search as far as `following.start`: with an empty body, the head's blank line may be the
        # line break of the next delimiter.
        head = _PART_HEAD.match(body, delimiter.stop, min(following.start, most))
        if head is None and stop > most:
            raise BadRequest(f"The head of a part of the form has more than {MAX_HEAD_BYTES} bytes")
        if head is None:
            if _BARE_LF.search(body, delimiter.stop, stop):  # Go's parser accepts such lines
                raise BadRequest("A line in the head of a part of the form ends without CR")
        elif _names_model(head[1]) and head.end() <= stop:
            yield _part(body, head.end(), stop), (head.end(), stop)


def _delimiters(body: bytes, line: bytes, pause: Pause) -> list[_Delimiter]:
    """Return all delimiters; each follows a line break, except one at the start of the body.

    Raises:
        BadRequest: There are too many lines that start like one.
    """
    found: list[_Delimiter] = []
    start = 0 if body.startswith(line) else _find_line(body, line, 0, pause)
    for number in range(1, MAX_MATCHES + 2):
        if start < 0:
            return found
        if number % MATCHES_BETWEEN_PAUSES == 0:
            pause()
        stop = start + len(line)
        end = end_of_run(_BLANKS, body, stop, pause)
        if body.startswith(b"--", stop):
            found.append(_Delimiter(start, stop + len(b"--"), is_last=True))
        elif body.startswith(b"\r\n", end):
            found.append(_Delimiter(start, end, is_last=False))
        start = _find_line(body, line, stop, pause)
    raise too_many(MAX_MATCHES)


def _check_line_ends(body: bytes, line: bytes, pause: Pause) -> None:
    """Raise BadRequest if a delimiter ends with a bare LF, as Go's parser accepts it."""
    wanted = re.compile(re.escape(line) + rb"[ \t]*+\n")
    more = len(line) + MAX_BOUNDARY_LINE_BYTES
    for at in range(0, len(body), SLICE_BYTES):
        if wanted.search(body, at, at + SLICE_BYTES + more):
            raise BadRequest("A line between two parts of the form ends without CR")
        pause()


def _find_line(body: bytes, line: bytes, start: int, pause: Pause) -> int:
    """Return the offset of the next line that starts with `line`, or -1."""
    wanted = b"\r\n" + line
    for at in range(start, len(body), SLICE_BYTES):
        found = body.find(wanted, at, at + SLICE_BYTES + len(wanted))
        if found >= 0:
            return found + len(b"\r\n")
        pause()
    return -1


def _part(body: bytes, start: int, stop: int) -> str:
    """Decode a part; one that is too long for a name is cut, but stays too long."""
    raw = body[start : min(stop, start + MAX_NAME_BYTES + 1)]
    return overlong(raw) if len(raw) > MAX_NAME_BYTES else raw.decode("utf-8", "replace")


def _names_model(head: bytes) -> bool:
    """Return whether a part is the field `model`, and not a file.

    Raises:
        BadRequest: Parsers would disagree.
    """
    lines = [line.partition(b":") for line in _FOLD.sub(b" ", head).split(b"\r\n")]
    fields = [(name.strip().lower(), value) for name, _, value in lines]
    dispositions = [value for name, value in fields if name == _CONTENT_DISPOSITION]
    if len(dispositions) > 1:
        raise BadRequest("A part of the form has two Content-Disposition headers")
    pairs = _parameters(dispositions[0]) if dispositions else []
    given = dict(pairs)
    if any(each.startswith(b"name*") for each in given):
        # RFC 2231: Go's parser reads it, hardly any other does.
        raise BadRequest("A part of the form has its name as 'name*': write it as 'name'")
    is_called_model = given.get(b"name") == b"model"
    if not is_called_model and (b"name", b"model") in pairs:
        raise BadRequest("A part of the form has two names")
    if not is_called_model or _is_file(given):
        return False
    encodings = {value.strip().lower() for name, value in fields if name == _TRANSFER_ENCODING}
    if not encodings <= PLAIN_ENCODINGS:
        raise BadRequest("The field 'model' of the form has a Content-Transfer-Encoding")
    return True


def _is_file(given: dict[bytes, bytes]) -> bool:
    """Return whether parameters name a file; raises BadRequest if parsers would disagree."""
    names = {key: value for key, value in given.items() if key.startswith(b"filename")}
    if not names:
        return False
    plain, encoded = names.pop(b"filename", b"x"), names.pop(b"filename*", b"utf-8''x")
    if not plain or names or not _ENCODED_NAME.fullmatch(encoded):
        raise BadRequest("The field 'model' of the form has a file name that is empty or malformed")
    return True


def _parameters(value: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (match[1].lower(), match[3] or re.sub(rb"\\(.)", rb"\1", match[2] or b""))
        for match in _PARAMETER.finditer(value)
    ]
