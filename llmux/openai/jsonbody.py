"""The key `model` of a JSON body: its values and their positions.

Servers differ in what they accept as that key. Most want exactly `model`; Go's parser, and so
Ollama, ignores case, and takes the last of several. So every spelling is found, and marked as exact
or not.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from llmux.base.names import MAX_NAME_BYTES, overlong
from llmux.errors import BadRequest, NotJson
from llmux.openai.forms import spelled
from llmux.openai.jsoncheck import check_json
from llmux.openai.scanning import MAX_MATCHES, SLICE_BYTES, Pause, end_of_run, few_matches, no_pause


class Value(NamedTuple):
    """Value of one key or form field.

    Attributes:
        name: Text of a string; empty for other types.
        start: Offset of the raw value in the body.
        stop: Offset of its end; equal to `start` for an object or array.
        is_exact: True if the key is spelled `model`, and not `Model`, say.
    """

    name: str
    start: int
    stop: int
    is_exact: bool


class JsonBody(NamedTuple):
    """Findings in a body that is JSON, or starts like a JSON object.

    Attributes:
        values: Values of the keys `model` at the top level, in order. If the body is not JSON:
            those at any depth, each name once.
        asks_for_stream: True if it contains `"stream": true`.
        stores: True if it contains `"store": true`.
        mistake: Why and where it is not JSON; empty if it is.
    """

    values: list[Value]
    asks_for_stream: bool
    stores: bool = False
    mistake: str = ""


LARGE_BYTES = 256 << 10
"""Larger bodies are searched in slices, since they take more than 1 ms."""

MAX_PARSED_WEIGHT = 8 << 20
"""Limit for the bytes outside strings, plus escapes, of a large body that is parsed as a whole.

Parsing is one call, which cannot pause and takes up to 10 ns for each of these. Prompts and images
stay far below the limit; lists of millions of token ids do not. If such a list's body names a
model, only its strings and brackets are read, and its validity is left to the backend.
"""

MAX_STRINGS = 4_000_000
"""Limit for strings before the last key `model`; this many take a second."""

MAX_UNPARSED = 100_000
"""Limit for keys `model` at any depth, as in a batch with an object per line; this many take
0.2 s."""

MAX_RAW_BYTES = 6 * MAX_NAME_BYTES + 2
"""Longest name in quotes: each of its bytes may be an escape of six bytes, such as `\\u0061`."""

_UNSET = msgspec.UNSET

# Each spelling is a field, so that one pass of msgspec finds them all, escaped keys included.
_SPELLINGS = ["".join(each) for each in itertools.product(*zip("model", "MODEL", strict=True))]
_Top = msgspec.defstruct(
    "_Top",
    [(key, msgspec.Raw | msgspec.UnsetType, _UNSET) for key in ("stream", "store", *_SPELLINGS)],
    gc=False,
)
_decode_top = msgspec.json.Decoder(_Top).decode
_NONE = (_UNSET,) * len(_SPELLINGS)

_WIDE_SPACE = re.compile(rb"[\0 \t\r\n]*+")
_WIDE_MARK = re.compile(rb"\xff\xfe|\0*+\xfe\xff")

_decode_string = msgspec.json.Decoder(str).decode

# A leading literal quote makes the search fast. A match cannot be the inside of a string: there,
# the quote would follow a backslash.
_EXACT_KEY = re.compile(rb'"%b"' % spelled(b"model", rb"\\u00"))
_KEY = re.compile(rb'"(?<!\\")%b"(?=[ \t\r\n:])' % spelled(b"model", rb"\\u00", any_case=True))
_STREAM_KEY = re.compile(rb'"(?<!\\")%b"(?=[ \t\r\n:])' % spelled(b"stream", rb"\\u00"))
_STORE_KEY = re.compile(rb'"(?<!\\")%b"(?=[ \t\r\n:])' % spelled(b"store", rb"\\u00"))
_PLAIN_KEY = b'"model"'
_LONGEST_KEY = len(rb'"\u0073\u0074\u0072\u0065\u0061\u006d":')

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb'[^\s"{}\[\],]*+')
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NAME = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def read_plain(body: bytes) -> tuple[str, bool, bool] | None:
    """Read a small body by the fast path: one pass of msgspec, for nearly all requests.

    Returns:
        The model's name, and the fields `asks_for_stream` and `stores` of `JsonBody`. None if
        `read_json` must look closer: the body is large or not strictly valid, has another spelling
        of `model` or several, or a value of it that is no string.
    """
    if body[:1] != b"{" or len(body) > LARGE_BYTES:
        return None
    try:
        top = msgspec.structs.astuple(_decode_top(body))
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


def read_json(body: bytes, pause: Pause, *, must_be: bool = False) -> JsonBody | None:
    """Read a body in UTF-8, of any size and validity, with or without a byte order mark.

    Returns:
        The findings; None if the body does not look like JSON, and its Content-Type does not say
        so (`must_be`).

    Raises:
        BadRequest: The search would take too long.
    """
    # Python's parser skips a byte order mark, and so do Node's body parsers.
    start = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
    begin = end_of_run(_SPACE, body, start, pause)
    first = body[begin : begin + 1]
    if first != b"{":
        if not must_be and first != b"[":
            return None
        mistake = _mistake(body, start, pause)
        # A text that starts with a bracket need not be meant as JSON.
        return None if mistake and not must_be else JsonBody([], False, mistake=mistake)
    is_heavy = len(body) > LARGE_BYTES and _weight(body, pause) > MAX_PARSED_WEIGHT
    if is_heavy:
        values = find_values(body, pause)
        if any(each.is_exact and each.name for each in values):
            return JsonBody(values, asks_for_stream=False)
    top = None if is_heavy or start else _top(body)
    if top is not None:
        values = [] if top[2:] == _NONE else find_values(body, pause)
        return JsonBody(values, _is_true(top[0]), _is_true(top[1]))
    if mistake := _mistake(body, start, pause):
        names = {each.name: each for _, each in _at_any_depth(body, pause, MAX_UNPARSED)}
        return JsonBody(list(names.values()), False, mistake=mistake)
    return JsonBody(
        find_values(body, pause),
        asks_for_stream=_is_set(body, pause, _STREAM_KEY),
        stores=_is_set(body, pause, _STORE_KEY),
    )


def _top(body: bytes) -> tuple[msgspec.Raw | msgspec.UnsetType, ...] | None:
    """Return the raw values of the keys of `_Top`; None if msgspec refuses the body.

    msgspec does not validate strings that it skips, so an accepted body may still not be UTF-8.
    """
    try:
        return msgspec.structs.astuple(_decode_top(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Mentions(msgspec.Struct):
    """Members of a body without a model that refer to stored objects, which imply the model."""

    previous_response_id: Any = None
    conversation: Any = None
    input_file_id: Any = None
    thread_id: Any = None
    assistant_id: Any = None


_decode_mentions = msgspec.json.Decoder(_Mentions).decode

MAX_MENTIONS_BYTES = 8 << 20
"""Larger bodies are not searched for ids: parsing is one call, of up to 10 ns per byte."""


def read_mentions(body: bytes) -> list[str]:
    """Return the ids of stored objects that a JSON body refers to."""
    if len(body) > MAX_MENTIONS_BYTES:
        return []
    try:
        values = msgspec.structs.astuple(_decode_mentions(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _lenient_mentions(body) if len(body) <= LARGE_BYTES else []
    return _ids(values)


def _lenient_mentions(body: bytes) -> list[str]:
    """Return the same ids for JSON that only Python's parser accepts."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(decoded, dict):
        return []
    return _ids(decoded.get(key) for key in _Mentions.__struct_fields__)


def _ids(values: Iterable[Any]) -> list[str]:
    # A reference is an id, or an object with one: `"conversation": {"id": "conv_..."}`.
    ids = [each.get("id") if isinstance(each, dict) else each for each in values]
    return [each for each in ids if isinstance(each, str) and each]


def is_plain_object(body: bytes) -> bool:
    """Return whether a body is a JSON object, and not compressed as its headers claim."""
    # The first byte settles it for nearly all compressed bodies.
    start = end_of_run(_SPACE, body, 0, no_pause)
    return body[start : start + 1] == b"{" and _top(body) is not None


def _mistake(body: bytes, start: int, pause: Pause) -> str:
    try:
        check_json(body, start, pause)
    except NotJson as error:
        return error.reason
    return ""


def _is_true(value: msgspec.Raw | msgspec.UnsetType) -> bool:
    return value is not _UNSET and bytes(value) == b"true"


def wide_codec(body: bytes, pause: Pause, *, must_be: bool = False) -> str:
    """Return the codec of JSON in UTF-16 or UTF-32, which Python's parser accepts; else empty.

    Unless the Content-Type says JSON (`must_be`), the body has to look like a JSON object.
    """
    codec = json.detect_encoding(body[:4])
    if codec in _NARROW:
        return ""
    mark = _WIDE_MARK.match(body, 0, 4)
    start = end_of_run(_WIDE_SPACE, body, mark.end() if mark else 0, pause)
    return codec if must_be or body[start : start + 1] == b"{" else ""


def may_be_wide(body: bytes) -> bool:
    """Return False if `wide_codec` would return nothing; decided by the first bytes."""
    return json.detect_encoding(body[:4]) not in _NARROW


_NARROW = frozenset({"utf-8", "utf-8-sig"})


def _weight(body: bytes, pause: Pause) -> int:
    """Return how much there is to parse, as `MAX_PARSED_WEIGHT` counts it; stops beyond that."""
    weight = 0
    for bare, quotes, escapes in _outside(body, 0, len(body)):
        weight += len(bare) + quotes + escapes
        if weight > MAX_PARSED_WEIGHT:
            break
        pause()
    return weight


def find_values(body: bytes, pause: Pause) -> list[Value]:
    """Return the values of all keys `model` at the top level, in any spelling.

    Raises:
        BadRequest: There are too many.
    """
    # A value that is no string matters only under the exact key.
    return [each for each in _outermost(body, pause, _KEY) if each.is_exact or each.name]


def _is_set(body: bytes, pause: Pause, key: re.Pattern[bytes]) -> bool:
    raw = b""  # of several keys, parsers take the last
    for value in _outermost(body, pause, key):
        raw = body[value.start : value.stop]
    return raw == b"true"


def _outermost(body: bytes, pause: Pause, key: re.Pattern[bytes]) -> Iterator[Value]:
    """Yield the values of a key at the top level; raises BadRequest if there are too many."""
    depth = quotes = end = 0
    for start, value in _at_any_depth(body, pause, MAX_MATCHES, key):
        for bare, more, _ in _outside(body, end, start):
            depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
            quotes += more
            if quotes > 2 * MAX_STRINGS:
                raise BadRequest("The request is too complex to find its key 'model'")
            pause()
        end = value.stop
        if depth == 1:
            yield value


def names_inside(body: bytes, pause: Pause) -> list[str]:
    """Return the names of all keys `model`, at any depth and in any spelling, each name once.

    Raises:
        BadRequest: There are too many.
    """
    found = _at_any_depth(body, pause, MAX_UNPARSED)
    return list({each.name: None for _, each in found if each.name})


def _at_any_depth(
    body: bytes, pause: Pause, most: int, wanted: re.Pattern[bytes] = _KEY
) -> Iterator[tuple[int, Value]]:
    """Yield each key's offset and its value; raises BadRequest if there are too many."""
    for key in few_matches(wanted, body, _LONGEST_KEY, pause, most):
        colon = end_of_run(_SPACE, body, key.end(), pause)
        if body[colon : colon + 1] == b":":
            start = end_of_run(_SPACE, body, colon + 1, pause)
            is_exact = _EXACT_KEY.fullmatch(key[0]) is not None
            yield key.start(), _value(body, start, is_exact=is_exact, pause=pause)


def _value(body: bytes, start: int, *, is_exact: bool, pause: Pause) -> Value:
    first = body[start : start + 1]
    if first == b'"':
        if found := _NAME.match(body, start, start + MAX_RAW_BYTES):
            return Value(text_of_string(found[0]), start, found.end(), is_exact)
        stop = end_of_run(_TEXT, body, start + 1, pause) + 1
        return Value(overlong(body[start + 1 : start + MAX_RAW_BYTES]), start, stop, is_exact)
    stop = start if first in {b"{", b"["} else end_of_run(_SCALAR, body, start, pause)
    return Value("", start, stop, is_exact)


def text_of_string(raw: bytes) -> str:
    """Return the text of a string, even if only a lenient parser accepts it."""
    try:
        return _decode_string(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return str(json.loads(raw.decode("utf-8", "replace"), strict=False))
    except ValueError:
        return raw.decode("utf-8", "replace")


def _outside(body: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the parts of JSON outside strings; `start` must be outside of them.

    Yields:
        For each slice: those parts, the number of quotes, and the number of backslashes.
    """
    is_inside = 0
    rest = b""  # a backslash at the end of a slice, whose escape is in the next
    for at in range(start, stop, SLICE_BYTES):
        text = rest + body[at : min(at + SLICE_BYTES, stop)]
        escapes = text.count(b"\\")
        if escapes:
            text = text.replace(rb"\\", b"").replace(rb"\"", b"")
            rest = text[-1:] if text.endswith(b"\\") else b""
        pieces = text.split(b'"')
        yield b"".join(pieces[is_inside::2]), len(pieces) - 1, escapes
        is_inside ^= (len(pieces) - 1) & 1
