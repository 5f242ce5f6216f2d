"""Wire facts, as pure functions: the model a request names, which headers pass, llmux's answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec

from llmux.errors import BadRequest, LlmuxError, NoModel
from llmux.forms import form_fields

Headers = Sequence[tuple[bytes, bytes]]
Span = tuple[int, int]

OVERRIDE = b"model-override"
UPSTREAM = b"/upstream/"

# RFC 9110, section 7.6.1, and what older agents send. `Connection` may name more.
HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip

# Set by whoever sends the request on: the framing, the name of the backend's host.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", OVERRIDE}

OWN_PATHS = frozenset({b"/v1/models", b"/metrics", b"/health", b"/control", b"/ui"})
OWN_PREFIXES = (b"/v1/models/", b"/control/", b"/ui/")


# ---- Which model ----


@dataclass(frozen=True, slots=True)
class Named:
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


def find_model(target: bytes, headers: Headers, body: bytes, names: Mapping[str, str]) -> Named:
    """The model that a request names; the first place that names one counts.

    Args:
        target: Raw path and query.
        headers: As received.
        body: The whole body.
        names: Every name that clients may use; for paths, where a name may hold slashes.

    Raises:
        NoModel: It names none.
        BadRequest: It names two.
    """
    override = header(headers, OVERRIDE)
    if override:
        return Named(_text(override), target)
    if target.startswith(UPSTREAM):
        return _from_path(target, names)
    name = json_model(body) or _form_model(headers, body) or _query_model(target)
    if not name:
        raise NoModel
    return Named(name, target)


def header(headers: Headers, wanted: bytes) -> bytes:
    """The first header of a lower-case name, stripped; empty if there is none."""
    return next((value.strip() for name, value in headers if name.lower() == wanted), b"")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _from_path(target: bytes, names: Mapping[str, str]) -> Named:
    """`/upstream/<model>/<rest>`: the longest known name; an unknown one ends at the slash."""
    path, mark, query = target[len(UPSTREAM) :].partition(b"?")
    segments = path.split(b"/")
    for count in range(len(segments), 0, -1):
        name = _text(unquote_to_bytes(b"/".join(segments[:count])))
        if name in names:
            break
    else:
        count, name = 1, _text(unquote_to_bytes(segments[0]))
    if not name:
        raise NoModel
    return Named(name, b"/" + b"/".join(segments[count:]) + mark + query)


class _OnlyModel(msgspec.Struct):
    model: Any = None


_decode_model = msgspec.json.Decoder(_OnlyModel).decode


def json_model(body: bytes) -> str | None:
    """The string at the top-level key `model`; None if the body is not such JSON.

    Raises:
        BadRequest: There are two of them, and they differ.
    """
    if body[:1] != b"{" and not body.lstrip(b" \t\r\n").startswith(b"{"):
        return None
    try:
        name = _decode_model(body).model
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    # Parsers differ in which of two equal keys they take, so a backend may see another model than
    # llmux. The exact and slow look is only for bodies in which there can be two.
    if body.count(b'"model"') > 1 or b"\\u00" in body:
        values = {bytes(body[start:stop]) for start, stop in json_spans(body)}
        if (
            len({msgspec.json.decode(value) if value[:1] == b'"' else value for value in values})
            > 1
        ):
            raise BadRequest("The request names two models: the key 'model' stands twice")
    return name if isinstance(name, str) else None


# Strings whole, so that nothing inside one counts; brackets for the depth; commas and colons to
# tell keys from values; and everything else that is not white space.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def json_spans(body: bytes) -> list[Span]:
    """Where the values of the top-level key `model` stand in a body that is valid JSON."""
    spans: list[Span] = []
    depth = 0
    key_next = False
    span_start: int | None = None  # of the value that is being passed, if it is a wanted one
    is_wanted = False
    end = 0
    for token in _JSON_TOKEN.finditer(body):
        text = token.group()
        if depth == 1 and is_wanted:
            if text == b":":
                span_start = None
            elif text in (b",", b"}"):
                assert span_start is not None
                spans.append((span_start, end))
                is_wanted = False
            elif span_start is None:
                span_start = token.start()
        elif depth == 1 and key_next and text != b"}":
            is_wanted = msgspec.json.decode(text) == "model"
        depth += (text in (b"{", b"[")) - (text in (b"}", b"]"))
        key_next = depth == 1 and text in (b"{", b",")
        end = token.end()
    return spans


def _form_model(headers: Headers, body: bytes) -> str | None:
    kind = header(headers, b"content-type")
    values = {name for name, _ in form_fields(kind, body, b"model") if name}
    if len(values) > 1:
        raise BadRequest("The request names two models: the form field 'model' stands twice")
    return values.pop() if values else None


def _query_model(target: bytes) -> str | None:
    query = target.partition(b"?")[2]
    if b"model" not in query:
        return None
    return parse_qs(query.decode("latin-1"), encoding="utf-8").get("model", [None])[0]


def rewrite_model(body: bytes, headers: Headers, upstream_model: str) -> bytes:
    """The body with its field `model` replaced, and nothing else; as it is if it has none."""
    if json_model(body) is not None:
        value = msgspec.json.encode(upstream_model)
        return _splice(body, json_spans(body), value)
    kind = header(headers, b"content-type")
    fields = form_fields(kind, body, b"model")
    return _splice(body, [span for _, span in fields], _form_value(kind, upstream_model))


def _form_value(kind: bytes, text: str) -> bytes:
    if kind.lower().startswith(b"multipart/"):
        return text.encode()
    return b"".join(
        b"%%%02X" % byte if byte not in _UNRESERVED else bytes([byte]) for byte in text.encode()
    )


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:")


def _splice(body: bytes, spans: Iterable[Span], value: bytes) -> bytes:
    pieces: list[bytes] = []
    end = 0
    for start, stop in spans:
        pieces += (body[end:start], value)
        end = stop
    return b"".join([*pieces, body[end:]])


# ---- Headers ----


def request_headers(
    headers: Headers, *, client: str | None, scheme: str, extra: Mapping[str, str]
) -> list[tuple[bytes, bytes]]:
    """What the backend gets: end-to-end headers, where the request came from, the config's own."""
    own = [(name.lower().encode(), name.encode(), value.encode()) for name, value in extra.items()]
    dropped = NOT_FORWARDED | _named_by_connection(headers) | {lower for lower, _, _ in own}
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    present = {name.lower() for name, _ in kept}
    if client is not None:
        kept = _append_forwarded_for(kept, client.encode())
    if b"x-forwarded-proto" not in present:
        kept.append((b"X-Forwarded-Proto", scheme.encode()))
    host = header(headers, b"host")
    if host and b"x-forwarded-host" not in present:
        kept.append((b"X-Forwarded-Host", host))
    return [*kept, *((name, value) for _, name, value in own)]


def _append_forwarded_for(headers: Headers, client: bytes) -> list[tuple[bytes, bytes]]:
    name = b"X-Forwarded-For"
    earlier = [value for key, value in headers if key.lower() == name.lower()]
    others = [(key, value) for key, value in headers if key.lower() != name.lower()]
    return [*others, (name, b", ".join([*earlier, client]))]


def response_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What the client gets: end-to-end headers, and with event streams a word against buffering."""
    dropped = HOP_BY_HOP | _named_by_connection(headers)
    kept = [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped and not lower.startswith(b"x-llmux-")
    ]
    is_stream = header(headers, b"content-type").lower().startswith(b"text/event-stream")
    if is_stream and not header(headers, b"x-accel-buffering"):
        kept.append((b"X-Accel-Buffering", b"no"))
    return kept


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    )


# ---- llmux's answers ----


def error_answer(error: LlmuxError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer that an error carries."""
    message = error.message.encode("utf-8", "replace").decode()
    detail = {"message": message, "type": "llmux_error", "param": None, "code": error.code}
    body = msgspec.json.encode({"error": detail})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    return error.status, headers, body


def model_object(name: str, created: int, facts: Mapping[str, Any]) -> bytes:
    """One model as OpenAI's API shows it, with llmux's facts beside."""
    return msgspec.json.encode(_model(name, created, facts))


def model_list(models: Iterable[tuple[str, int, Mapping[str, Any]]]) -> bytes:
    """OpenAI's list of models, sorted by id; each from name, creation time and llmux's facts."""
    return msgspec.json.encode(
        {"object": "list", "data": [_model(*model) for model in sorted(models, key=_name)]}
    )


def _name(model: tuple[str, int, Mapping[str, Any]]) -> str:
    return model[0]


def _model(name: str, created: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "llmux", "llmux": facts}
