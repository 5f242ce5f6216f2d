"""The key `model` of a JSON body: what it says, and where its values stand.

Servers differ in what they take for that key. Most want it as it is written; Go's parser, and so
Ollama, ignores case, and of several takes the last. So every spelling is found, and told apart.
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
    """A body that is JSON, or begins like a JSON object.

    Attributes:
        values: What its keys `model` say, in order; if it is no JSON, those of all depths, each
            name once.
        asks_for_stream: Whether it says `"stream": true`.
        stores: Whether it says `"store": true`.
        mistake: Why it is no JSON, and where; empty if it is.
    """

    values: list[Value]
    asks_for_stream: bool
    stores: bool = False
    mistake: str = ""


LARGE_BYTES = 256 << 10
"""From here on a body is looked through in slices: a smaller one takes less than 1 ms."""

MAX_PARSED_WEIGHT = 8 << 20
"""Bytes outside of strings, and escapes, up to which a large body is parsed to see if it is valid.

That is one call, which takes up to 10 ns for each of them. Prompts and images stay far below. Lists
of millions of token ids do not: of those that name a model only strings and brackets are looked at,
and the backend finds out the rest.
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

_WIDE_SPACE = re.compile(rb"[\0 \t\r\n]*+")
_WIDE_MARK = re.compile(rb"\xff\xfe|\0*+\xfe\xff")

_decode_string = msgspec.json.Decoder(str).decode

# The first quote is found fast, and cannot be inside of a string: it would have a backslash before.
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
    """The name in a small body, and whether it asks for a stream and stores, in the shortest way.

    Returns:
        None if the body is anything but valid JSON with at most one key that may be `model`, as the
        API spells it and a string: see `read_json`.
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
    """What a body says of its model; None if it does not look like a JSON object, nor must be JSON.

    Args:
        body: In UTF-8, perhaps behind a byte order mark.
        pause: Called between two slices.
        must_be: Whether it is said to be JSON.

    Raises:
        BadRequest: That would take too long to find out.
    """
    # Python's parser skips a byte order mark, and so do Node's ways to read a body.
    start = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
    begin = end_of_run(_SPACE, body, start, pause)
    first = body[begin : begin + 1]
    if first != b"{":
        if not must_be and first != b"[":
            return None
        mistake = _mistake(body, start, pause)
        # Prose may begin with a bracket, too.
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
    """The keys that matter, and None for what msgspec refuses; it looks into no other strings."""
    try:
        return msgspec.structs.astuple(_decode_top(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


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
        return _lenient_mentions(body) if len(body) <= LARGE_BYTES else []
    return _ids(said)


def _lenient_mentions(body: bytes) -> list[str]:
    """The same of JSON that only Python's parser takes."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return (
        _ids(said.get(key) for key in _Mentions.__struct_fields__) if isinstance(said, dict) else []
    )


def _ids(said: Iterable[Any]) -> list[str]:
    ids = [each.get("id") if isinstance(each, dict) else each for each in said]
    return [each for each in ids if isinstance(each, str) and each]


def is_plain_object(body: bytes) -> bool:
    """Whether what is said to be compressed is a JSON object: its first bytes mostly tell."""
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
    """The codec of JSON in UTF-16 or UTF-32, which Python's parser detects; empty for other bodies.

    Args:
        body: What to look at.
        pause: Called between two slices.
        must_be: Whether it is said to be JSON; else it has to look like an object.
    """
    codec = json.detect_encoding(body[:4])
    if codec in _NARROW:
        return ""
    mark = _WIDE_MARK.match(body, 0, 4)
    start = end_of_run(_WIDE_SPACE, body, mark.end() if mark else 0, pause)
    return codec if must_be or body[start : start + 1] == b"{" else ""


def may_be_wide(body: bytes) -> bool:
    """Whether `wide_codec` has to look at it."""
    return json.detect_encoding(body[:4]) not in _NARROW


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


def find_values(body: bytes, pause: Pause) -> list[Value]:
    """The values of all keys `model` of the outermost object, however it is spelled.

    Raises:
        BadRequest: There are too many.
    """
    # Of a value that is no string, only a server that knows no other spelling makes anything.
    return [each for each in _outermost(body, pause, _KEY) if each.is_exact or each.name]


def _is_set(body: bytes, pause: Pause, key: re.Pattern[bytes]) -> bool:
    raw = b""
    for value in _outermost(body, pause, key):
        raw = body[value.start : value.stop]
    return raw == b"true"


def _outermost(body: bytes, pause: Pause, key: re.Pattern[bytes]) -> Iterator[Value]:
    """The values of a key of the outermost object; raises BadRequest at too many."""
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
    """What any key `model` of JSON says, at any depth and however it is spelled; each name once.

    Raises:
        BadRequest: There are too many.
    """
    found = _at_any_depth(body, pause, MAX_UNPARSED)
    return list({each.name: None for _, each in found if each.name})


def _at_any_depth(
    body: bytes, pause: Pause, most: int, wanted: re.Pattern[bytes] = _KEY
) -> Iterator[tuple[int, Value]]:
    """Where a key begins, and its value; raises BadRequest at too many."""
    for key in few_matches(wanted, body, _LONGEST_KEY, pause, most):
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
