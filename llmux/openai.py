"""Wire facts, pure functions: the model that a request names, what passes on, llmux's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

from llmux.errors import BadRequest, LlmuxError, NoModel
from llmux.forms import (
    MAX_ENCODED_BYTES,
    form_value,
    has_later_field,
    model_fields,
    urlencoded_fields,
)
from llmux.jsonbody import (
    LARGE_BYTES,
    Value,
    find_values,
    is_wide_json,
    read_json,
    read_plain,
)
from llmux.names import MAX_NAME_BYTES, folded, overlong, shown
from llmux.scanning import Pause, no_pause

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


class Fields:
    """The fields of a body that a backend may take for the model's name.

    Attributes:
        name: The one that counts; empty if there is none.
        is_ambiguous: Whether there are two names, and readers differ on which counts.
        suspects: Names that only another parser may see: a more lenient one, or one of forms.
        is_wide: Whether it may be JSON that is not in UTF-8.
        asks_for_stream: Whether it is JSON that says `"stream": true`.
    """

    __slots__ = (
        "_values", "_written", "asks_for_stream", "is_ambiguous", "is_wide", "name", "suspects",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        written: Callable[[str], bytes],
        values: list[Value] | None,
        *,
        asks_for_stream: bool = False,
    ) -> None:
        """Note what was found.

        Args:
            name: See above.
            written: A name as the body has it.
            values: All names, in order; None: they have not been looked for, in plain JSON.
            asks_for_stream: See above.
        """
        self.name = name
        self.asks_for_stream = asks_for_stream
        self.is_ambiguous = self.is_wide = False
        self.suspects: Sequence[str] = ()
        self._written = written
        self._values = values

    def replace(self, body: bytes, name: str, is_wrong: Callable[[str], bool]) -> bytes:
        """The body with another name in it, and nothing else changed.

        Args:
            body: As it was read, or returned from here.
            name: What to write.
            is_wrong: Whether this is to be written in the place of a name.
        """
        if self._values is None:
            if not is_wrong(self.name):
                return body
            self._values = find_values(body, no_pause)
        written = self._written(name)
        pieces: list[bytes | memoryview] = []
        rest = memoryview(body)  # a slice of bytes would be a copy
        end = grown = 0
        for index, value in enumerate(self._values):
            start, stop = value.start + grown, value.stop + grown
            if is_wrong(value.name):
                pieces += (rest[end : value.start], written)
                end = value.stop
                grown += len(written) - (value.stop - value.start)
                stop = start + len(written)
                self._values[index] = Value(name, start, stop, value.is_exact)
            else:
                self._values[index] = value._replace(start=start, stop=stop)
        return b"".join([*pieces, rest[end:]]) if pieces else body


def read_fields(headers: Headers, body: bytes, pause: Pause = no_pause) -> Fields:
    """The fields of a body that may name a model.

    Args:
        headers: As received.
        body: The whole body.
        pause: Called between two slices of a large one.

    Raises:
        BadRequest: It has more fields than can be looked at.
    """
    # Plain `curl -d` sends JSON as a form, and a backend may read it as one.
    may_be_form = len(body) > LARGE_BYTES or has_later_field(body)
    if not may_be_form and (plain := read_plain(body)) is not None:
        return Fields(plain[0], _as_json, None, asks_for_stream=plain[1])
    found = read_json(body, pause)
    if found is not None and found.is_valid:
        values = [each for each in found.values if each.start < each.stop]
        name = next((each.name for each in values if each.is_exact and each.name), "")
        fields = Fields(name, _as_json, values, asks_for_stream=found.asks_for_stream)
        fields.is_ambiguous = len({each.name for each in found.values}) > 1
        if may_be_form:
            fields.suspects = [each.name for each in _form_values(headers, body, pause)]
        return fields
    form = _form_values(headers, body, pause)
    content_type = header(headers, b"content-type")
    names = {each.name: None for each in form if each.name}
    fields = Fields(next(iter(names), ""), lambda name: form_value(content_type, name), form)
    fields.is_ambiguous = len(names) > 1
    fields.suspects = [each.name for each in found.values] if found is not None else ()
    fields.is_wide = is_wide_json(body, pause)
    return fields


_as_json = msgspec.json.encode


def _form_values(headers: Headers, body: bytes, pause: Pause) -> list[Value]:
    kinds = {value.strip() for name, value in headers if name.lower() == b"content-type"}
    if len(kinds) > 1:
        raise BadRequest("The request has two different Content-Type headers")
    content_type = kinds.pop() if kinds else b""
    fields = model_fields(content_type, body, pause)
    return [Value(name, *span, is_exact=True) for name, span in fields]


def find_model(target: bytes, headers: Headers, fields: Fields, names: Collection[str]) -> Named:
    """The model that a request names; the first place that names one counts.

    Args:
        target: Raw path and query.
        headers: As received.
        fields: Of its body.
        names: Every name that clients may use; for paths, where a name may hold slashes.

    Raises:
        NoModel: It names none.
        BadRequest: Its body names two.
    """
    if fields.is_ambiguous:
        # Parsers differ in which of two equal keys they take, and whether case matters, so that a
        # backend could see another model than llmux.
        raise BadRequest("The request names two models: its body has two different 'model'")
    if override := header(headers, OVERRIDE):
        return Named(_text(override), target)
    if target.startswith(UPSTREAM) and (named := _named_by_path(target, names)):
        return named
    if name := fields.name or _model_of_query(target):
        return Named(name, target)
    raise NoModel


class Meanings:
    """Which models a name may mean, to llmux or to a backend that knows several.

    Args:
        models: For each its name, all others that clients may use, where its backend is, and what
            that calls it.
    """

    def __init__(self, models: Iterable[tuple[str, Iterable[str], str, str | None]]) -> None:
        self._meant: dict[str, set[str]] = {}
        self._meant_at: dict[tuple[str, str], set[str]] = {}
        self._backends: dict[str, str] = {}
        for model, aliases, backend, upstream_model in models:
            self._backends[model] = backend
            for name in (model, *aliases):
                self._meant.setdefault(folded(name), set()).add(model)
            if upstream_model is not None:
                key = (backend, folded(upstream_model))
                self._meant_at.setdefault(key, set()).add(model)

    def is_other(self, name: str, model: str) -> bool:
        """Whether a model's backend may take a name for another of llmux's models."""
        key = folded(name)
        meant = self._meant.get(key, _NOBODY)
        meant_there = self._meant_at.get((self._backends.get(model, ""), key), _NOBODY)
        return bool(meant or meant_there) and model not in meant and model not in meant_there


_NOBODY: frozenset[str] = frozenset()


def agreed_body(
    body: bytes, fields: Fields, meanings: Meanings, model: str, upstream_model: str | None
) -> bytes:
    """The body as a model's backend gets it: it names no other model.

    Args:
        body: As it was read, or returned from here.
        fields: Of it.
        meanings: Which names are other models'.
        model: The model that the request is for.
        upstream_model: What its backend calls it, to be written in place of any name; None: only
            another model's name is replaced, by this one's.

    Raises:
        BadRequest: Another model is named where it cannot be replaced.
    """
    if fields.is_wide:
        raise BadRequest("The body is JSON that is not in UTF-8 (RFC 8259, section 8.1)")
    for name in fields.suspects:
        if meanings.is_other(name, model):
            raise BadRequest(
                f"The request is for {model!r}, but some servers would read {shown(name)!r} in its "
                "body: send valid JSON, or a form, with its own Content-Type"
            )
    if upstream_model is not None:
        return fields.replace(body, upstream_model, lambda _: True)
    return fields.replace(body, model, lambda name: meanings.is_other(name, model))


def agreed_target(
    target: bytes, meanings: Meanings, model: str, upstream_model: str | None
) -> bytes:
    """Path and query as a model's backend gets them: the query names no other model."""
    path, mark, query = target.partition(b"?")
    if not query:
        return target
    values = [Value(name, *span, is_exact=True) for name, span in urlencoded_fields(query)]
    fields = Fields("", lambda name: quote(name, safe="/:").encode(), values)
    name = model if upstream_model is None else upstream_model
    return path + mark + fields.replace(query, name, lambda name: meanings.is_other(name, model))


def header(headers: Headers, wanted: bytes) -> bytes:
    """The first header of a lower-case name, stripped; empty if there is none."""
    length = len(wanted)
    for name, value in headers:
        if len(name) == length and name.lower() == wanted:
            return value.strip()
    return b""


def _text(raw: bytes) -> str:
    if len(raw) > MAX_NAME_BYTES:
        return overlong(raw)
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
        raw = b"/".join(segments[:count])
        name = _text(unquote_to_bytes(raw[: MAX_ENCODED_BYTES + 3]))
        if name in names:
            break
    rest = b"/" + b"/".join(segments[count:])
    return Named(name, rest + mark + query) if name else None


def _model_of_query(target: bytes) -> str:
    query = target.partition(b"?")[2]
    return next((name for name, _ in urlencoded_fields(query) if name), "")


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


def response_headers(headers: Headers, status: int = 200) -> list[tuple[bytes, bytes]]:
    """What the client gets: end-to-end headers, and for event streams no buffering on the way.

    Args:
        headers: As received from the backend.
        status: The answer's. Of one that has no body the length is not passed on (RFC 9110,
            section 8.6), nor that of one in chunks (RFC 9112, section 6.3).
    """
    fields = [(name.lower(), (name, value)) for name, value in headers]
    present = dict(fields)
    dropped = HOP_BY_HOP
    if b"connection" in present:
        dropped |= _named_by_connection(headers) - {b"content-length"}  # the body is sent as framed
    if status == 204 or status < 200 or b"transfer-encoding" in present:
        dropped |= {b"content-length"}
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


MAX_MESSAGE = 8192
"""Characters of one message: what is a client's is cut where it comes in, to much less."""


def error_answer(
    error: LlmuxError, *, to_operator: bool = False
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer that an error carries.

    Args:
        error: The error.
        to_operator: The answer is the control API's, which tells more.
    """
    told = error.details if to_operator else error.message
    message = shown(told, MAX_MESSAGE).encode("utf-8", "replace").decode()
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
