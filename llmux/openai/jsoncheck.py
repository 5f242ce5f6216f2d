"""Check in slices that bytes are JSON, as leniently as Python's `json` and JavaScript's parser.

msgspec decides for most bodies, and much faster. This check is for the others: it accepts whatever
one of those two parsers accepts (NaN and Infinity, lone surrogates, numbers of any size, any
depth), creates no objects, does not recurse, and reports the position of a mistake. Inside strings
it accepts bytes that are not UTF-8, since Node and Go replace them.
"""

from __future__ import annotations

import re
from functools import cache

from llmux.errors import BadRequest, NotJson
from llmux.openai.scanning import SLICE_BYTES, Pause

MAX_STEPS = 250_000
"""Limit for arrays and objects that contain more than three levels, and so are checked one by one;
this many take up to 3 s."""

STEPS_BETWEEN_PAUSES = 256

MAX_ESCAPE_BYTES = len(rb"\ud83d")

_SPACE = rb"[ \t\r\n]*+"
_TEXT = rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+'
_STRING = b'"%b"' % _TEXT
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_WORD = rb"true|false|null|NaN|-?Infinity"
_SCALAR = rb"(?:%b|%b|%b)" % (_STRING, _WORD, _NUMBER)


def _nested(value: bytes) -> bytes:
    """Return a pattern for a scalar, or an array or object of values that match `value`.

    It contains `value` only twice: so a third level has eight copies of the innermost, not 64,
    which would take a quarter of a second to compile.
    """
    items = rb"%b%b(?:,%b(?!\])|(?=\]))" % (value, _SPACE, _SPACE)
    members = rb"%b%b:%b%b%b(?:,%b(?!\})|(?=\}))" % (
        _STRING, _SPACE, _SPACE, value, _SPACE, _SPACE,
    )  # fmt: skip
    return rb"(?:%b|\[%b(?:%b)*+\]|\{%b(?:%b)*+\})" % (_SCALAR, _SPACE, items, _SPACE, members)


_CLOSING = {b"[": b"]", b"{": b"}"}

_BLANK = re.compile(_SPACE)
_CHARACTERS = re.compile(_TEXT)
_DIGITS = re.compile(rb"[0-9]*+")
_WORDS = re.compile(_WORD)


@cache  # few bodies need it, and to compile it takes a tenth of the server's start
def _run_of(bracket: bytes) -> re.Pattern[bytes]:
    """Return the pattern of a run of elements or members, each with its comma.

    The loop over them runs in C.
    """
    value = _nested(_nested(_nested(_SCALAR)))
    if bracket == b"[":
        return re.compile(rb"(?:%b%b%b,)*+" % (_SPACE, value, _SPACE))
    return re.compile(rb"(?:%b%b%b:%b%b%b,)*+" % (_SPACE, _STRING, _SPACE, _SPACE, value, _SPACE))


def check_json(body: bytes, start: int, pause: Pause) -> None:
    """Check that a body is JSON from `start` on, where any byte order mark has ended.

    Raises:
        NotJson: It is not; the message contains the position.
        BadRequest: The check would take too long.
    """
    end = end_of_blanks(body, end_of_value(body, start, pause), pause)
    if end < len(body):
        raise not_json(body, end, "Extra data")


def end_of_value(body: bytes, start: int, pause: Pause) -> int:
    """Return the end of the first value from `start` on, which may follow blanks; checks the value.

    Raises:
        NotJson: It is no JSON value; the message contains the position.
        BadRequest: The check would take too long.
    """
    stack = bytearray()  # the opening brackets of the levels around `at`
    at = paused = end_of_blanks(body, start, pause)
    for step in range(MAX_STEPS):
        if at - paused > SLICE_BYTES or step % STEPS_BETWEEN_PAUSES == STEPS_BETWEEN_PAUSES - 1:
            pause()
            paused = at
        first = body[at : at + 1]
        if first in _CLOSING:
            stack += first
            at = end_of_blanks(body, at + 1, pause)
            if body[at : at + 1] != _CLOSING[first]:
                at = _next_value(body, at, first, pause)
                continue
        else:
            at = _end_of_scalar(body, at, pause)
        at = _end_of_levels(body, at, stack, pause)
        if not stack:
            return at
        at = _next_value(body, at + 1, stack[-1:], pause)
    raise BadRequest(f"The body has more than {MAX_STEPS} arrays or objects, deeply nested")


def end_of_blanks(body: bytes, at: int, pause: Pause) -> int:
    """Return the offset of the next byte that is no white space."""
    return _end(_BLANK, body, at, pause)


def _end(pattern: re.Pattern[bytes], body: bytes, at: int, pause: Pause) -> int:
    """Return the end of the run that a pattern matches, slice by slice."""
    while (found := pattern.match(body, at, at + SLICE_BYTES)) is not None:
        end = found.end()
        # Nearer to the slice's end, the match may have stopped inside an escape: match from there.
        if end <= at + SLICE_BYTES - MAX_ESCAPE_BYTES:
            return end
        at = end
        pause()
    return at


def _end_of_levels(body: bytes, at: int, stack: bytearray, pause: Pause) -> int:
    """Close the levels that end after a value; return the offset of the comma or of their end."""
    while stack:
        at = end_of_blanks(body, at, pause)
        following = body[at : at + 1]
        if following == b",":
            return at
        if following != _CLOSING[bytes(stack[-1:])]:
            raise not_json(body, at, f"Expecting ',' or '{_CLOSING[bytes(stack[-1:])].decode()}'")
        stack.pop()
        at += 1
    return at


def _next_value(body: bytes, at: int, level: bytes | bytearray, pause: Pause) -> int:
    """Skip a run of values in an array or object; return the offset of the next single value."""
    at = end_of_blanks(body, _end(_run_of(bytes(level)), body, at, pause), pause)
    return at if level == b"[" else end_of_key(body, at, pause)[1]


def end_of_key(body: bytes, at: int, pause: Pause) -> tuple[int, int]:
    """Return where the key at `at` ends, quotes included, and where its value starts.

    Raises:
        NotJson: There is no key, or no colon after it.
    """
    if body[at : at + 1] != b'"':
        raise not_json(body, at, "Expecting a name in double quotes")
    end = _end_of_string(body, at, pause)
    colon = end_of_blanks(body, end, pause)
    if body[colon : colon + 1] != b":":
        raise not_json(body, colon, "Expecting ':'")
    return end, end_of_blanks(body, colon + 1, pause)


def _end_of_scalar(body: bytes, at: int, pause: Pause) -> int:
    if body[at : at + 1] == b'"':
        return _end_of_string(body, at, pause)
    if word := _WORDS.match(body, at):
        return word.end()
    return _end_of_number(body, at, pause)


def _end_of_string(body: bytes, at: int, pause: Pause) -> int:
    end = _end(_CHARACTERS, body, at + 1, pause)
    following = body[end : end + 1]
    if following == b'"':
        return end + 1
    if not following:
        raise not_json(body, at, "String without an end")
    if following == b"\\":
        raise not_json(body, end, "No such escape")
    raise not_json(body, end, "Control character in a string")


def _end_of_number(body: bytes, at: int, pause: Pause) -> int:
    start = at + (body[at : at + 1] == b"-")
    end = _end(_DIGITS, body, start, pause)
    if end == start:
        raise not_json(body, at, "Expecting a value")
    if body[start : start + 1] == b"0":
        end = start + 1
    if body[end : end + 1] == b"." and (more := _end(_DIGITS, body, end + 1, pause)) > end + 1:
        end = more
    if body[end : end + 1] in {b"e", b"E"}:
        start = end + 1 + (body[end + 1 : end + 2] in {b"+", b"-"})
        end = more if (more := _end(_DIGITS, body, start, pause)) > start else end
    return end


MAX_COLUMNS = 65536
"""Bytes before a mistake, in its line, up to which the message gives a column: it must decode them
to count characters."""


def not_json(body: bytes, at: int, reason: str) -> NotJson:
    """Return the error for a mistake at an offset, with its line and column."""
    line = body.count(b"\n", 0, at) + 1
    before = body[max(body.rfind(b"\n", 0, at) + 1, at - MAX_COLUMNS) : at]
    column = len(before.decode("utf-8", "replace")) + 1 if len(before) < MAX_COLUMNS else None
    place = f"line {line} column {column}" if column else f"line {line}"
    return NotJson(f"{reason}: {place} (byte {at})")
