"""Wire facts, pure functions: the model that a request names, what passes on, llmux's answers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from llmux.errors import BadRequest, LlmuxError, NoModel
from llmux.forms import Span, few_matches, form_value, model_fields, spelled, urlencoded_fields

Headers = Sequence[tuple[bytes, bytes]]

OVERRIDE = b"model-override"
FORWARDED_FOR = b"x-forwarded-for"
UPSTREAM = b"/upstream/"

OWN_PATHS = frozenset({b"/v1/models", b"/metrics", b"/health", b"/control", b"/ui"})
OWN_PREFIXES = (b"/v1/models/", b"/control/", b"/ui/")

# RFC 9110, section 7.6.1, and what older agents send. `Connection` may name more.
HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip

# llmux's own to set (the framing, the name of the backend's host), and what is meant for llmux.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", OVERRIDE}


# ---- Which model ----


class Named(NamedTuple):
    """What a request names.

    Attributes:
        name: The model, as the client wrote it: a name, an alias, or nothing known.
        target: The raw path and query to forward.
    """

    name: str
    target: bytes


def is_own_path(path: bytes) -> bool:
    """Whether a raw path (no query) is llmux's own, and no model's."""
    return path in OWN_PATHS or path.startswith(OWN_PREFIXES)


def find_model(target: bytes, headers: Headers, body: bytes, names: Collection[str]) -> Named:
    """The model that a request names; the first place that names one counts.

    Args:
        target: Raw path and query.
        headers: As received.
        body: The whole body.
        names: Every name that clients may use; for paths, where a name may hold slashes.

    Raises:
        NoModel: It names none.
        BadRequest: Its body names two, or has more fields than can be looked at.
    """
    if override := header(headers, OVERRIDE):
        return Named(_text(override), target)
    if target.startswith(UPSTREAM) and (named := _named_by_path(target, names)):
        return named
    if name := _model_of_body(headers, body) or _model_of_query(target):
        return Named(name, target)
    raise NoModel


def header(headers: Headers, wanted: bytes) -> bytes:
    """The first header of a lower-case name, stripped; empty if there is none."""
    length = len(wanted)
    for name, value in headers:
        if len(name) == length and name.lower() == wanted:
            return value.strip()
    return b""


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _named_by_path(target: bytes, names: Collection[str]) -> Named | None:
    """`/upstream/<model>/<rest>`: the longest known name, or else the first segment."""
    path, mark, query = target.removeprefix(UPSTREAM).partition(b"?")
    most = 1 + max((name.count("/") for name in names), default=0)
    segments = path.split(b"/", most)
    for count in range(min(most, len(segments)), 0, -1):
        name = _text(unquote_to_bytes(b"/".join(segments[:count])))
        if name in names:
            break
    rest = b"/" + b"/".join(segments[count:])
    return Named(name, rest + mark + query) if name else None


def _model_of_body(headers: Headers, body: bytes) -> str:
    value = _json_model(body)
    if value is None:
        fields = model_fields(header(headers, b"content-type"), body)
        names = [name for name, _ in fields if name]
    elif value and (body.count(b'"model"') > 1 or b"\\u006" in body):
        # Parsers differ in which of two equal keys they take, so a backend could see another
        # model than llmux. This exact look is only for bodies in which there may be two.
        names = [_string(body[start:stop]) for start, stop in _json_spans(body)]
    else:
        names = [_string(value)]
    if len(set(names)) > 1:
        raise BadRequest("The request names two models: its body has two different 'model'")
    return names[0] if names else ""


def _model_of_query(target: bytes) -> str:
    query = target.partition(b"?")[2]
    return next((name for name, _ in urlencoded_fields(query) if name), "")


def rewrite_model(body: bytes, headers: Headers, upstream_model: str) -> bytes:
    """The body with its field `model` replaced, and nothing else; as it is if it has none.

    Raises:
        BadRequest: It has more fields than can be looked at.
    """
    value = _json_model(body)
    if value is None:
        content_type = header(headers, b"content-type")
        spans = [span for _, span in model_fields(content_type, body)]
        return _splice(body, spans, form_value(content_type, upstream_model))
    found = _json_spans(body) if value else []
    spans = [(start, stop) for start, stop in found if start < stop]  # no objects, no arrays
    return _splice(body, spans, msgspec.json.encode(upstream_model))


def _splice(body: bytes, spans: Iterable[Span], value: bytes) -> bytes:
    pieces: list[bytes] = []
    end = 0
    for start, stop in spans:
        pieces += (body[end:start], value)
        end = stop
    return b"".join([*pieces, body[end:]])


# ---- The top-level key `model` of a JSON body ----


class _OnlyModel(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()


_decode_object = msgspec.json.Decoder(_OnlyModel).decode
_decode_string = msgspec.json.Decoder(str).decode

_OBJECT = re.compile(rb"[ \t\r\n]*+\{")

# The key, at any depth, and its value if that is no object or array. The first quote is found fast,
# and cannot be inside of a string: it would have a backslash before it.
_JSON_MODEL = re.compile(
    rb'"(?<!\\")%b"[ \t\r\n]*+:[ \t\r\n]*+' % spelled(b"model", rb"\\u00")
    + rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s"{}\[\],]*+)'
)

# Strings (their escapes are taken out before), and what follows each up to a bracket.
_JSON_STRINGS = re.compile(rb'"[^"]*+"[^"{}\[\]\0]*+(?:"[^"]*+"[^"{}\[\]\0]*+)*+')

MAX_JSON_STRINGS = 1_000_000
"""Places with strings in a body with several keys `model`; as many take a third of a second."""


def _json_model(body: bytes) -> bytes | None:
    """The raw value of the key; empty if there is none, None if the body is no JSON object."""
    if not _OBJECT.match(body):
        return None
    try:
        value = _decode_object(body).model
        if not body.isascii():
            body.decode()  # msgspec does not look into the strings that it skips
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value


def _string(value: bytes) -> str:
    """A raw JSON value if it is a string, otherwise nothing."""
    try:
        return _decode_string(value)
    except msgspec.DecodeError:
        return ""


def _json_spans(body: bytes) -> list[Span]:
    """Where the values stand in valid JSON that has the key; an object or array counts as empty.

    Raises:
        BadRequest: That would take too long to find out.
    """
    keys = few_matches(_JSON_MODEL, body)
    if len(keys) == 1:
        return [keys[0].span(1)]
    ends = [0, *(key.end() for key in keys)]
    # Valid JSON holds no zero byte.
    gaps = b"\0".join(body[end : key.start()] for end, key in zip(ends, keys, strict=False))
    unescaped = gaps.replace(rb"\\", b"").replace(rb"\"", b"")
    bare, count = _JSON_STRINGS.subn(b"", unescaped, MAX_JSON_STRINGS)
    if count == MAX_JSON_STRINGS:
        raise BadRequest("The request is too complex to find its key 'model'")
    depths = accumulate(map(_nesting, bare.split(b"\0")))
    return [key.span(1) for key, depth in zip(keys, depths, strict=True) if depth == 1]


def _nesting(brackets: bytes) -> int:
    """By how much the depth grows over a piece of JSON without strings."""
    opened = brackets.count(b"{") + brackets.count(b"[")
    return opened - brackets.count(b"}") - brackets.count(b"]")


# ---- Headers ----


def request_headers(
    headers: Headers, *, client: str | None, scheme: str, extra: Mapping[str, str]
) -> list[tuple[bytes, bytes]]:
    """What the backend gets: end-to-end headers, where the request came from, the config's own.

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


def response_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What the client gets: end-to-end headers, and for event streams no buffering on the way."""
    fields = [(name.lower(), (name, value)) for name, value in headers]
    present = dict(fields)
    dropped = HOP_BY_HOP
    if b"connection" in present:
        dropped |= _named_by_connection(headers) - {b"content-length"}  # the body is sent as framed
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


# ---- llmux's answers ----


def error_answer(error: LlmuxError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer that an error carries."""
    message = error.message.encode("utf-8", "replace").decode()
    detail = {"message": message, "type": "llmux_error", "param": None, "code": error.code}
    body = msgspec.json.encode({"error": detail})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if not error.may_be_repeated:
        headers.append((b"x-should-retry", b"false"))  # OpenAI's clients heed it
    if error.challenge:
        headers.append((b"www-authenticate", error.challenge.encode()))
    return error.status, headers, body


def error_event(error: LlmuxError) -> bytes:
    """An error as the last event of a stream, as OpenAI's clients know it."""
    return b"data: " + error_answer(error)[2] + b"\n\n"


def model_object(name: str, created: int, facts: Mapping[str, Any]) -> bytes:
    """One model as OpenAI's API shows it.

    Args:
        name: Its id.
        created: Unix time.
        facts: What llmux has to say of it beside.
    """
    return msgspec.json.encode(_model(name, created, facts))


def model_list(models: Iterable[tuple[str, int, Mapping[str, Any]]]) -> bytes:
    """OpenAI's list of models, sorted by id; each as for `model_object`."""
    data = [_model(*model) for model in sorted(models, key=itemgetter(0))]
    return msgspec.json.encode({"object": "list", "data": data})


def _model(name: str, created: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "llmux", "llmux": facts}


def header_value(name: str) -> bytes:
    """A configured name as a header value; what ISO 8859-1 lacks goes as UTF-8 bytes."""
    return name.encode("utf-8", "replace")
