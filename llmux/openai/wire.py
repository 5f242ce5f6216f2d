"""Wire facts, pure functions: the model that a request names, what passes on, llmux's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

from llmux.base.names import MAX_NAME_BYTES, folded, overlong, shown
from llmux.base.wildcards import Names, Patterns, is_pattern
from llmux.errors import BadRequest, LlmuxError, NoModel, NotJson
from llmux.http.paths import UPSTREAM, merged
from llmux.openai.codings import CONTENT_ENCODING, Bounds, decoded
from llmux.openai.dialects import MAX_MESSAGE as MAX_MESSAGE  # noqa: PLC0414 - its old place
from llmux.openai.dialects import OPENAI, Dialect, told
from llmux.openai.forms import (
    MAX_ENCODED_BYTES,
    form_mistake,
    form_value,
    has_later_field,
    model_fields,
    urlencoded_fields,
)
from llmux.openai.jsonbody import (
    LARGE_BYTES,
    Value,
    find_values,
    is_plain_object,
    names_inside,
    read_json,
    read_mentions,
    read_plain,
    wide_codec,
)
from llmux.openai.scanning import Pause, TooLong, no_pause

Headers = Sequence[tuple[bytes, bytes]]

OVERRIDE = b"model-override"
FORWARDED_FOR = b"x-forwarded-for"

HINTS = frozenset({b"x-llmux-switch", b"x-llmux-priority", b"x-llmux-max-wait"})
"""What a request says to llmux only; see `llmux.switching.hints`."""

# RFC 9110, section 7.6.1, and what older agents send. `Connection` may name more.
HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip

# llmux's own to set (the framing, the name of the backend's host), and what is meant for llmux.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", OVERRIDE} | HINTS


# ---- Which model ----


class Named(NamedTuple):
    """What a request names.

    Attributes:
        name: The model, as the client wrote it: a name, an alias, or nothing known.
        target: The raw path and query to forward.
    """

    name: str
    target: bytes


class Fields:
    """The fields of a body that a backend may take for the model's name.

    Attributes:
        name: The one that counts; empty if there is none.
        is_ambiguous: Whether there are two names, and readers differ on which counts.
        suspects: Names that only another parser may see: a more lenient one, or one of forms.
        elsewhere: Without a name: those of other keys, in an object inside or in other letters, or
            in a file of a form; None: there are too many to look at.
        asks_for_stream: Whether it is JSON that says `"stream": true`.
        stores: Whether it is JSON that says `"store": true`.
        mentions: Without a name: the ids of stored objects that it goes on with.
        mistake: Why it could not be read, though it looks like JSON or a form; else empty.
        is_read: Whether it could be: it is JSON, or a form, or there is none.
        codings: What has to be undone before a name can be replaced, for `decoded`.
        decoded: The text without them, as long as nobody has decided to keep it; None: it was too
            large to be held beside the body, or is not needed any more.
    """

    __slots__ = (
        "_values", "_written", "asks_for_stream", "codings", "decoded", "elsewhere", "is_ambiguous",
        "is_read", "mentions", "mistake", "name", "stores", "suspects",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        written: Callable[[str], bytes],
        values: list[Value] | None,
        *,
        asks_for_stream: bool = False,
        stores: bool = False,
    ) -> None:
        """Note what was found.

        Args:
            name: See above.
            written: A name as the body has it.
            values: All names, in order; None: they have not been looked for, in plain JSON.
            asks_for_stream: See above.
            stores: See above.
        """
        self.name = name
        self.asks_for_stream = asks_for_stream
        self.stores = stores
        self.mentions: Sequence[str] = ()
        self.is_ambiguous = False
        self.is_read = True
        self.mistake = ""
        self.suspects: Sequence[str] = ()
        self.elsewhere: Sequence[str] | None = ()
        self.codings: tuple[str, ...] = ()
        self.decoded: bytes | None = None
        self._written = written
        self._values = values

    def names(self, is_wanted: Callable[[str], bool]) -> bool:
        """Whether it says anything, in the place of a name, that is wanted."""
        if self._values is None:
            return is_wanted(self.name)
        return any(is_wanted(value.name) for value in self._values)

    def check_stranger(self, is_here: Callable[[str], bool], *, names_model: bool) -> None:
        """Raise BadRequest unless it is known that no server reads a model that is here.

        Batches name models in objects inside, and so do sessions; Go's parser ignores case.

        Args:
            is_here: Whether a name is that of a model.
            names_model: Whether the request names one that is not.
        """
        self.check_read(names_model=names_model)
        if self.elsewhere is None and not names_model:
            raise BadRequest(
                "body has more keys 'model' than are looked at, and one may name a model that is "
                "here: it does not go to the fallback. Name its model in a header 'model-override'"
            )
        seen = self.suspects if names_model else [*self.suspects, *(self.elsewhere or ())]
        if (name := next(filter(is_here, seen), None)) is not None:
            raise BadRequest(
                f"body names {shown(name)!r}, which is here, where only some servers look for it: "
                "it does not go to the fallback. Name its model in a header 'model-override'"
            )

    def check_read(self, *, names_model: bool) -> None:
        """Raise BadRequest unless it is known that the body names no model.

        Args:
            names_model: Whether the request names one elsewhere.
        """
        if self.mistake:
            raise BadRequest(self.mistake)
        if not self.is_read and not names_model:
            raise BadRequest(
                "body is neither JSON nor a form, so that it may name a model that is here: what "
                "cannot be read goes to no fallback and no default model. Name its model in a "
                "header 'model-override'"
            )

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
        body: The whole body; not compressed: see `read_coded`.
        pause: Called between two slices of a large one.

    Raises:
        BadRequest: It is not what it is said to be, or has more fields than can be looked at.
    """
    # Plain `curl -d` sends JSON as a form, and a backend may read it as one.
    may_be_form = len(body) > LARGE_BYTES or has_later_field(body)
    if not may_be_form and (plain := read_plain(body)) is not None:
        name, asks_for_stream, stores = plain
        fields = Fields(name, _as_json, None, asks_for_stream=asks_for_stream, stores=stores)
        if not name:
            fields.mentions = read_mentions(body)
            fields.elsewhere = names_inside(body, pause)
        return fields
    if not body:
        return _no_fields()
    must_be_json = _says_json(headers)
    if wide_codec(body, pause, must_be=must_be_json):
        return read_coded(headers, body, (), Bounds(len(body), pause))
    return _read_text(headers, body, pause, must_be_json=must_be_json)


MOST_GROWTH = 2
"""Bytes of UTF-8 for each byte of UTF-16: three for two, rounded up."""


def read_coded(headers: Headers, body: bytes, codings: tuple[str, ...], bounds: Bounds) -> Fields:
    """The fields of a body that has to be decompressed, or is JSON that is not in UTF-8.

    Args:
        headers: As received.
        body: The whole body.
        codings: As `content_codings` has them.
        bounds: Of what it is without them.

    Raises:
        TooLong: It is longer.
        BadRequest: As for `read_fields`; also if it is not what its codings say.
    """
    if codings and is_plain_object(body):
        # A backend that ignores the header would read another body than one that does not.
        raise BadRequest("body is not what its Content-Encoding says, but plain JSON")
    text = decoded(body, codings, bounds) if codings else body
    if len(text) > bounds.most_bytes:
        raise TooLong
    if not text:
        return _no_fields()
    must_be_json = _says_json(headers)
    if codec := wide_codec(text, bounds.pause, must_be=must_be_json):
        codings = (*codings, codec)
        text = decoded(text, (codec,), _with_room(bounds))
    fields = _read_text(headers, text, bounds.pause, must_be_json=must_be_json)
    fields.codings = codings
    if len(text) <= LARGE_BYTES:
        fields.decoded = text
    return fields


def _no_fields() -> Fields:
    return Fields("", _as_json, [])


def _with_room(bounds: Bounds) -> Bounds:
    return bounds._replace(most_bytes=MOST_GROWTH * bounds.most_bytes)


def _read_text(headers: Headers, body: bytes, pause: Pause, *, must_be_json: bool) -> Fields:
    found = read_json(body, pause, must_be=must_be_json)
    if found is not None and not found.mistake:
        values = [each for each in found.values if each.start < each.stop]
        name = next((each.name for each in values if each.is_exact and each.name), "")
        fields = Fields(
            name, _as_json, values, asks_for_stream=found.asks_for_stream, stores=found.stores
        )
        if not name:
            fields.mentions = read_mentions(body)
            fields.elsewhere = names_inside(body, pause)
        fields.is_ambiguous = len({each.name for each in found.values}) > 1
        if len(body) > LARGE_BYTES or has_later_field(body):
            fields.suspects = [each.name for each in _form_values(headers, body, pause)]
        return fields
    if found is not None and must_be_json:
        raise NotJson(found.mistake)
    fields = _read_form(headers, body, pause)
    if found is not None:
        fields.suspects = [each.name for each in found.values]
        fields.mistake = fields.mistake or NotJson(found.mistake).message
    return fields


def _read_form(headers: Headers, body: bytes, pause: Pause) -> Fields:
    values = _form_values(headers, body, pause)
    content_type = header(headers, b"content-type")
    names = {each.name: None for each in values if each.name}
    fields = Fields(next(iter(names), ""), lambda name: form_value(content_type, name), values)
    fields.is_ambiguous = len(names) > 1
    if not names:
        mistake = form_mistake(content_type, body, pause)
        fields.is_read = mistake == ""
        fields.mistake = f"body is not multipart/form-data: {mistake}" if mistake else ""
        fields.elsewhere = _names_in_files(body, pause) if fields.is_read else ()
    return fields


def _names_in_files(body: bytes, pause: Pause) -> Sequence[str] | None:
    """What a form's JSON says: a file of requests, for a batch, names the model of each."""
    try:
        return names_inside(body, pause)
    except BadRequest:
        return None


def _says_json(headers: Headers) -> bool:
    kinds = (value for name, value in headers if name.lower() == b"content-type")
    return any(is_json_type(kind) for kind in kinds)


def is_json_type(content_type: bytes) -> bool:
    """Whether a Content-Type says JSON (RFC 6839, section 3.1, for the suffix)."""
    kind = content_type.partition(b";")[0].strip().lower()
    return kind in {b"application/json", b"text/json"} or kind.endswith(b"+json")


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
        BadRequest: Its body names two, or may name one but cannot be read.
    """
    if fields.is_ambiguous:
        # Parsers differ in which of two equal keys they take, and whether case matters, so that a
        # backend could see another model than llmux.
        raise BadRequest("The request names two models: its body has two different 'model'")
    if override := _override(headers):
        return Named(_text(override), target)
    if (named := _named_by_path(target, names)) is not None:
        return named
    if name := fields.name or _model_of_query(target):
        return Named(name, target)
    if fields.mistake:
        raise BadRequest(fields.mistake)
    raise NoModel


def _override(headers: Headers) -> bytes:
    for name, value in headers:
        if len(name) == 14 and name.lower() == OVERRIDE:  # a constant: half the time of `header`
            return value.strip()
    return b""


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
        wild: dict[str, str] = {}
        for model, aliases, backend, upstream_model in models:
            self._backends[model] = backend
            for name in (model, *aliases):
                if name != model and is_pattern(name):
                    wild[folded(name)] = model
                else:
                    self._meant.setdefault(folded(name), set()).add(model)
            if upstream_model is not None:
                key = (backend, folded(upstream_model))
                self._meant_at.setdefault(key, set()).add(model)
        self._patterns = Patterns(wild) if wild else None

    def _meant_by(self, key: str, backend: str | None) -> Collection[str]:
        """The models that a folded name means, by a pattern only those at one backend.

        No other backend can know what a name means that is not even written out here.
        """
        meant = self._meant.get(key)
        if meant is None and self._patterns is not None:
            model = self._patterns.find(key)
            if model is not None and self._backends[model] == backend:
                return (model,)
        return meant or _NOBODY

    def is_own(self, name: str, model: str) -> bool:
        """Whether a name is one of a model's own."""
        return model in self._meant_by(folded(name), self._backends.get(model))

    def is_other(self, name: str, model: str) -> bool:
        """Whether a model's backend may take a name for another of llmux's models."""
        key = folded(name)
        backend = self._backends.get(model, "")
        meant = self._meant_by(key, backend)
        meant_there = self._meant_at.get((backend, key), _NOBODY)
        return bool(meant or meant_there) and model not in meant and model not in meant_there


_NOBODY: frozenset[str] = frozenset()


def disagrees(fields: Fields, meanings: Meanings, model: str, upstream_model: str | None) -> bool:
    """Whether `agreed_body` is another one; arguments and errors are the same."""
    for name in fields.suspects:
        if meanings.is_other(name, model):
            raise BadRequest(
                f"The request is for {model!r}, but some servers would read {shown(name)!r} in its "
                "body: send valid JSON, or a form, with its own Content-Type"
            )
    if upstream_model is not None:
        return fields.names(lambda name: name != upstream_model)
    return fields.names(lambda name: meanings.is_other(name, model))


def agreed_body(
    body: bytes, fields: Fields, meanings: Meanings, model: str, upstream_model: str | None
) -> bytes:
    """The body as a model's backend gets it: it names no other model.

    Args:
        body: As it was read, or returned from here; decoded first if it disagrees.
        fields: Of it.
        meanings: Which names are other models'.
        model: The model that the request is for.
        upstream_model: What its backend calls it, to be written in place of any name; None: only
            another model's name is replaced, by this one's.

    Raises:
        BadRequest: Another model is named where it cannot be replaced.
    """
    if not disagrees(fields, meanings, model, upstream_model):
        return body
    assert not fields.codings, "decoded before"
    if upstream_model is not None:
        return fields.replace(body, upstream_model, lambda name: name != upstream_model)
    return fields.replace(body, model, lambda name: meanings.is_other(name, model))


def decoded_headers(headers: Headers, codings: Sequence[str]) -> Headers:
    """The headers that are right for a body once its codings have been undone."""
    kept = [field for field in headers if field[0].lower() != CONTENT_ENCODING]
    if any(coding.startswith("utf") for coding in codings):
        return [_without_charset(field) for field in kept]
    return kept


def decoded_text(body: bytes, codings: Sequence[str], bounds: Bounds) -> bytes:
    """A body without its codings, as `read_coded` has read it."""
    return decoded(body, codings, _with_room(bounds))


def _without_charset(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = field
    return (name, value.partition(b";")[0]) if name.lower() == b"content-type" else field


def agreed_target(
    target: bytes, meanings: Meanings, model: str, upstream_model: str | None
) -> bytes:
    """Path and query as a model's backend gets them: the query names no other model.

    With `upstream_model`, that stands in place of the model's own names, too; of a `model` that is
    none of llmux's names nobody knows what it means.
    """
    path, mark, query = target.partition(b"?")
    if not query:
        return target
    values = [Value(name, *span, is_exact=True) for name, span in urlencoded_fields(query)]
    fields = Fields("", lambda name: quote(name, safe="/:").encode(), values)
    if upstream_model is None:
        return (
            path + mark + fields.replace(query, model, lambda name: meanings.is_other(name, model))
        )

    def is_wrong(name: str) -> bool:
        return meanings.is_own(name, model) or meanings.is_other(name, model)

    return path + mark + fields.replace(query, upstream_model, is_wrong)


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
    path, mark, query = target.partition(b"?")
    found: Named | None = None
    if path.startswith(UPSTREAM):
        found, is_known = _named_segments(path.removeprefix(UPSTREAM), mark + query, names)
        if is_known or b"//" not in path:
            return found
    elif not path.startswith(b"//"):
        return None
    # Slashes that are too many count only where no name has them.
    path = merged(path)
    if not path.startswith(UPSTREAM):
        return found
    tidied, is_known = _named_segments(path.removeprefix(UPSTREAM), mark + query, names)
    return tidied if is_known or not target.startswith(UPSTREAM) else found


def _named_segments(path: bytes, query: bytes, names: Collection[str]) -> tuple[Named | None, bool]:
    """The model that a path's first segments name, and whether it is known."""
    patterns = names.patterns if isinstance(names, Names) else None
    most = 1 + max((name.count("/") for name in names), default=0)
    if patterns is not None:
        most = max(most, 1 + patterns.most_slashes)
    segments = path.split(b"/", most)
    counts = range(min(most, len(segments)), 0, -1)
    found = [
        _text(unquote_to_bytes(b"/".join(segments[:n])[: MAX_ENCODED_BYTES + 3])) for n in counts
    ]
    known = next((each for each in zip(counts, found, strict=True) if each[1] in names), None)
    if known is None and patterns is not None:  # a name that is written out wins
        known = next(
            (each for each in zip(counts, found, strict=True) if patterns.find_in_path(each[1])),
            None,
        )
    count, name = known or (1, found[-1])
    rest = b"/" + b"/".join(segments[count:])
    return (Named(name, rest + query) if name else None), known is not None


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


def error_answer(
    error: LlmuxError, dialect: Dialect = OPENAI, *, to_operator: bool = False
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer that an error carries.

    Args:
        error: The error.
        dialect: How its client words it.
        to_operator: The answer is the control API's, which tells more.
    """
    body = msgspec.json.encode(dialect.body(told(error, to_operator=to_operator)))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if not error.may_be_repeated:
        headers.append((b"x-should-retry", b"false"))  # OpenAI's clients obey it
    if error.accepts:
        headers.append((b"accept-encoding", error.accepts.encode()))
    if error.challenge:
        headers.append((b"www-authenticate", error.challenge.encode()))
    return error.status, headers, body


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
