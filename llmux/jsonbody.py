"""The key `model` of a JSON body: what it says, and where its values stand.

Servers differ in what they take for that key. Most want it as it is written; Go's parser, and so
Ollama, ignores case, and of several takes the last. So every spelling is found, and told apart.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from llmux.errors import BadRequest
from llmux.forms import spelled
from llmux.names import MAX_NAME_BYTES, overlong
from llmux.scanning import MAX_MATCHES, SLICE_BYTES, Pause, end_of_run, few_matches


class Value(NamedTuple):
    """What a key says.

    Attributes:
        name: A string's text; empty for anything else.
        start: Where the raw value begins in the body.
        stop: Where it has ended; for an object or array the same.
        is_exact: Whether the key is `model` as the API writes it, and not `Model`, say.
    """

    name: str
    start: int
    stop: int
    is_exact: bool


class JsonBody(NamedTuple):
    """A body that is a JSON object, or may be taken for one.

    Attributes:
        values: What its keys `model` say, in order; if it cannot be parsed, those of all depths,
            each name once.
        is_valid: Whether it can be parsed.
        asks_for_stream: Whether it says `"stream": true`.
        stores: Whether it says `"store": true`.
    """

    values: list[Value]
    is_valid: bool
    asks_for_stream: bool
    stores: bool = False


LARGE_BYTES = 256 << 10
"""From here on a body is looked through in slices: a smaller one takes less than 1 ms."""

MAX_PARSED_WEIGHT = 8 << 20
"""Bytes outside of strings, and escapes, up to which a large body is parsed to see if it is valid.

That is one call, which takes up to 10 ns for each of them. Prompts and images stay far below. Lists
of millions of token ids do not: of those only strings and brackets are looked at, and the backend
finds out the rest.
"""

MAX_STRINGS = 4_000_000
"""Strings before the last key `model`; as many take a second."""

MAX_UNPARSED = 100_000
"""Keys `model` in what cannot be parsed, such as an object on each line; as many take 0.2 s."""

MAX_RAW_BYTES = 6 * MAX_NAME_BYTES + 2
"""The longest name in quotes: each byte of it may be written as an escape of six, `\\u0061`."""

_UNSET = msgspec.UNSET

# Every spelling is a field, so that one pass of msgspec finds them all, escapes in keys included.
_SPELLINGS = ["".join(each) for each in itertools.product(*zip("model", "MODEL", strict=True))]
_Top = msgspec.defstruct(
    "_Top",
    [(key, msgspec.Raw | msgspec.UnsetType, _UNSET) for key in ("stream", "store", *_SPELLINGS)],
    gc=False,
)
_decode_top = msgspec.json.Decoder(_Top).decode
_NONE = (_UNSET,) * len(_SPELLINGS)

_decode_string = msgspec.json.Decoder(str).decode

_WIDE_SPACE = re.compile(rb"[\0 \t\r\n]*+")
_WIDE_MARK = re.compile(rb"\xff\xfe|\0*+\xfe\xff")

# The first quote is found fast, and cannot be inside of a string: it would have a backslash before.
_EXACT_KEY = re.compile(rb'"%b"' % spelled(b"model", rb"\\u00"))
_KEY = re.compile(rb'"(?<!\\")%b"(?=[ \t\r\n:])' % spelled(b"model", rb"\\u00", any_case=True))
_PLAIN_KEY = b'"model"'
_LONGEST_KEY = len(rb'"\u006d\u006f\u0064\u0065\u006c":')

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb'[^\s"{}\[\],]*+')
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NAME = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def read_plain(body: bytes) -> tuple[str, bool, bool] | None:
    """The name in a small body, and whether it asks for a stream and stores, in the shortest way.

    Returns:
        None if the body is anything but valid JSON with at most one key that may be `model`, as the
        API spells it and a string: see `read_json`.
    """
    if body[:1] != b"{" or len(body) > LARGE_BYTES:
        return None
    try:
        top = msgspec.structs.astuple(_decode_top(body))
        if not body.isascii():
            body.decode()  # msgspec does not look into the strings that it skips
        if top[2:] == _NONE:
            return "", _is_true(top[0]), _is_true(top[1])
        if top[3:] != _NONE[1:] or body.count(_PLAIN_KEY) != 1 or b"\\u006" in body:
            return None
        name = _decode_string(top[2])
        if len(name) > MAX_NAME_BYTES:
            return None
        return name, _is_true(top[0]), _is_true(top[1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return None


def read_json(body: bytes, pause: Pause) -> JsonBody | None:
    """What a body says of its model; None if no parser can take it for a JSON object.

    Raises:
        BadRequest: That would take too long to find out.
    """
    # A byte order mark is no JSON, but several parsers skip it.
    start = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
    start = end_of_run(_SPACE, body, start, pause)
    if body[start : start + 1] != b"{":
        return None
    if len(body) > LARGE_BYTES and _weight(body, pause) > MAX_PARSED_WEIGHT:
        return JsonBody(find_values(body, pause), is_valid=True, asks_for_stream=False)
    try:
        top = msgspec.structs.astuple(_decode_top(body))
        _check_text(body, pause)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = {each.name: each for _, each in _at_any_depth(body, pause, MAX_UNPARSED)}
        return JsonBody(list(found.values()), is_valid=False, asks_for_stream=False)
    values = [] if top[2:] == _NONE else find_values(body, pause)
    asks_for_stream, stores = _is_true(top[0]), _is_true(top[1])
    return JsonBody(values, is_valid=True, asks_for_stream=asks_for_stream, stores=stores)


class _Mentions(msgspec.Struct):
    """What of a body without a model says which model has made what it goes on with."""

    previous_response_id: Any = None
    conversation: Any = None
    input_file_id: Any = None
    thread_id: Any = None
    assistant_id: Any = None


_decode_mentions = msgspec.json.Decoder(_Mentions).decode

MAX_MENTIONING = 8 << 20
"""Bodies over this are not looked through for ids: that is one call, of 10 ns a byte at worst."""


def read_mentions(body: bytes) -> list[str]:
    """The ids of stored objects that a JSON body goes on with; none if it is no JSON object."""
    if len(body) > MAX_MENTIONING:
        return []
    try:
        said = msgspec.structs.astuple(_decode_mentions(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    ids = [each.get("id") if isinstance(each, dict) else each for each in said]
    return [each for each in ids if isinstance(each, str) and each]


def _is_true(value: msgspec.Raw | msgspec.UnsetType) -> bool:
    return value is not _UNSET and bytes(value) == b"true"


def is_json(body: bytes) -> bool:
    """Whether a body is JSON of any kind; one that is too large to look through counts as such."""
    if len(body) > MAX_MENTIONING:
        return True
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def is_wide_json(body: bytes, pause: Pause) -> bool:
    """Whether a body may be a JSON object in UTF-16 or UTF-32, which Python's parser detects."""
    if json.detect_encoding(body[:4]) in _NARROW:
        return False
    mark = _WIDE_MARK.match(body, 0, 4)
    start = end_of_run(_WIDE_SPACE, body, mark.end() if mark else 0, pause)
    return body[start : start + 1] == b"{"


_NARROW = frozenset({"utf-8", "utf-8-sig"})


def _weight(body: bytes, pause: Pause) -> int:
    """How much there is to parse: see `MAX_PARSED_WEIGHT`; counts little further than that."""
    weight = 0
    for bare, quotes, escapes in _outside(body, 0, len(body)):
        weight += len(bare) + quotes + escapes
        if weight > MAX_PARSED_WEIGHT:
            break
        pause()
    return weight


def _check_text(body: bytes, pause: Pause) -> None:
    """Raise UnicodeDecodeError if it is no UTF-8; msgspec does not look into strings it skips."""
    if body.isascii():
        return
    decode = codecs.getincrementaldecoder("utf-8")().decode
    for start in range(0, len(body), SLICE_BYTES):
        decode(body[start : start + SLICE_BYTES])
        pause()
    decode(b"", True)


def find_values(body: bytes, pause: Pause) -> list[Value]:
    """The values of all keys `model` of the outermost object, however it is spelled.

    Raises:
        BadRequest: There are too many.
    """
    values: list[Value] = []
    depth = quotes = end = 0
    for start, value in _at_any_depth(body, pause, MAX_MATCHES):
        for bare, more, _ in _outside(body, end, start):
            depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
            quotes += more
            if quotes > 2 * MAX_STRINGS:
                raise BadRequest("The request is too complex to find its key 'model'")
            pause()
        end = value.stop
        # Of a value that is no string, only a server that knows no other spelling makes anything.
        if depth == 1 and (value.is_exact or value.name):
            values.append(value)
    return values


def _at_any_depth(body: bytes, pause: Pause, most: int) -> Iterator[tuple[int, Value]]:
    """Where a key `model` begins, and its value; raises BadRequest at too many."""
    for key in few_matches(_KEY, body, _LONGEST_KEY, pause, most):
        colon = end_of_run(_SPACE, body, key.end(), pause)
        if body[colon : colon + 1] == b":":
            start = end_of_run(_SPACE, body, colon + 1, pause)
            is_exact = _EXACT_KEY.fullmatch(key[0]) is not None
            yield key.start(), _value(body, start, is_exact=is_exact, pause=pause)


def _value(body: bytes, start: int, *, is_exact: bool, pause: Pause) -> Value:
    """The value that begins there."""
    first = body[start : start + 1]
    if first == b'"':
        if found := _NAME.match(body, start, start + MAX_RAW_BYTES):
            return Value(_string(found[0]), start, found.end(), is_exact)
        stop = end_of_run(_TEXT, body, start + 1, pause) + 1
        return Value(overlong(body[start + 1 : start + MAX_RAW_BYTES]), start, stop, is_exact)
    stop = start if first in {b"{", b"["} else end_of_run(_SCALAR, body, start, pause)
    return Value("", start, stop, is_exact)


def _string(raw: bytes) -> str:
    """The text of a string, also where only a lenient parser takes it for one."""
    try:
        return _decode_string(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return str(json.loads(raw.decode("utf-8", "replace"), strict=False))
    except ValueError:
        return raw.decode("utf-8", "replace")


def _outside(body: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """What of a piece of JSON, which begins outside of strings, is outside of them.

    Yields:
        For each slice: that, the number of quotes, and of backslashes.
    """
    is_inside = 0
    rest = b""
    for at in range(start, stop, SLICE_BYTES):
        text = rest + body[at : min(at + SLICE_BYTES, stop)]
        escapes = text.count(b"\\")
        if escapes:
            text = text.replace(rb"\\", b"").replace(rb"\"", b"")
            rest = text[-1:] if text.endswith(b"\\") else b""
        pieces = text.split(b'"')
        yield b"".join(pieces[is_inside::2]), len(pieces) - 1, escapes
        is_inside ^= (len(pieces) - 1) & 1
