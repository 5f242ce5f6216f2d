"""The fields of a request's body that may name its model: find, check and replace them.

Backends differ in what they read: strict or lenient JSON, a form whatever the Content-Type says,
keys of any case. `Fields` therefore keeps what llmux reads apart from what another parser might.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from llmux.base.names import shown
from llmux.errors import BadRequest, NotJson
from llmux.http.syntax import Headers
from llmux.openai.codings import Bounds, decoded
from llmux.openai.forms import form_mistake, form_value, has_later_field, model_fields
from llmux.openai.headers import header
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


class Fields:
    """The fields of a body that a backend may take for the model's name.

    Attributes:
        name: Name that llmux reads; empty if there is none.
        is_ambiguous: True if there are two names, and parsers differ on which counts.
        suspects: Names that only another parser may see: a more lenient one, or one of forms.
        elsewhere: If there is no name: names in nested objects, in keys of another spelling, or in
            a file of a form. None if there are too many to search.
        asks_for_stream: True if it is JSON that contains `"stream": true`.
        stores: True if it is JSON that contains `"store": true`.
        mentions: If there is no name: ids of stored objects that the body refers to.
        mistake: Why it could not be read, although it looks like JSON or a form; else empty.
        is_read: True if it is JSON, a form, or empty.
        codings: Codings to undo, with `decoded`, before a name can be replaced.
        decoded: The body without its codings. None if that is too large to be kept beside the
            body, or no longer needed.
    """

    __slots__ = (
        "_encode_name", "_values", "asks_for_stream", "codings", "decoded", "elsewhere",
        "is_ambiguous", "is_read", "mentions", "mistake", "name", "stores", "suspects",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        encode_name: Callable[[str], bytes],
        values: list[Value] | None,
        *,
        asks_for_stream: bool = False,
        stores: bool = False,
    ) -> None:
        """Record what was found.

        `encode_name` encodes a name as the body does. `values` are all values, in order; None for
        plain JSON, in which they are searched for only if a name must be replaced.
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
        self._encode_name = encode_name
        self._values = values

    @property
    def is_json(self) -> bool:
        """True if the body is JSON, or empty."""
        return self._encode_name is _as_json

    def has_name(self, is_wanted: Callable[[str], bool]) -> bool:
        """Return whether any of the names satisfies a condition."""
        if self._values is None:
            return is_wanted(self.name)
        return any(is_wanted(value.name) for value in self._values)

    def check_foreign(self, is_here: Callable[[str], bool], *, names_model: bool) -> None:
        """Raise BadRequest if any server could read the name of one of llmux's models.

        Such a body must not go to the fallback. Batches and sessions name models in nested
        objects, and Go's parser ignores case. `names_model`: the request names a foreign model.
        """
        self.check_read(names_model=names_model)
        if self.elsewhere is None and not names_model:
            raise BadRequest(
                "body has too many keys 'model' to check that none names a local model: it does "
                "not go to the fallback. Name its model in a header 'model-override'"
            )
        seen = self.suspects if names_model else [*self.suspects, *(self.elsewhere or ())]
        if (name := next(filter(is_here, seen), None)) is not None:
            raise BadRequest(
                f"body names the local model {shown(name)!r}, where only some servers look for it: "
                "it does not go to the fallback. Name its model in a header 'model-override'"
            )

    def check_read(self, *, names_model: bool) -> None:
        """Raise BadRequest if the body could not be read, and so may name a model."""
        if self.mistake:
            raise BadRequest(self.mistake)
        if not self.is_read and not names_model:
            raise BadRequest(
                "body is neither JSON nor a form, so it may name a local model: it goes neither to "
                "the fallback nor to a default model. Name its model in a header 'model-override'"
            )

    def replace(self, body: bytes, name: str, is_wrong: Callable[[str], bool]) -> bytes:
        """Return the body with `name` in place of each wrong name, and no other byte changed.

        The body must be as it was read, or as this method last returned it.
        """
        if self._values is None:
            if not is_wrong(self.name):
                return body
            self._values = find_values(body, no_pause)
        written = self._encode_name(name)
        pieces: list[bytes | memoryview] = []
        rest = memoryview(body)  # slices of bytes would be copies
        end = grown = 0  # offsets of later values shift, so that the result can be replaced again
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

    def refind(self, body: bytes, pause: Pause) -> list[Value] | None:
        """Return the values of names in JSON that was changed around them, for `move`.

        A thread may do this; `move` belongs on the event loop.
        """
        return None if self._values is None else _with_bounds(find_values(body, pause))

    def move(self, values: list[Value] | None) -> None:
        """Use the result of `refind` from now on."""
        self._values = values


def _with_bounds(values: list[Value]) -> list[Value]:
    """Return the values that can be replaced: no objects and arrays."""
    return [each for each in values if each.start < each.stop]


def read_fields(headers: Headers, body: bytes, pause: Pause = no_pause) -> Fields:
    """Find the fields that may name a model in a body that is not compressed.

    Raises:
        BadRequest: The body is not what its Content-Type says, or has too many fields.
    """
    # A plain `curl -d` labels JSON as a urlencoded form, and a backend may parse it as one.
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


def read_coded(headers: Headers, body: bytes, codings: tuple[str, ...], bounds: Bounds) -> Fields:
    """Find the fields of a body that is compressed, or JSON in UTF-16 or UTF-32.

    Raises:
        TooLong: A limit is exceeded.
        BadRequest: As for `read_fields`; also if the body does not have these codings.
    """
    if codings and is_plain_object(body):
        # Backends that ignore the header would accept this body, and others would not.
        raise BadRequest("body is not what its Content-Encoding says, but plain JSON")
    text = decoded(body, codings, bounds) if codings else body
    if len(text) > bounds.most_bytes:
        raise TooLong
    if not text:
        return _no_fields()
    must_be_json = _says_json(headers)
    if codec := wide_codec(text, bounds.pause, must_be=must_be_json):
        codings = (*codings, codec)
        text = decoded(text, (codec,), bounds.for_utf8())
    fields = _read_text(headers, text, bounds.pause, must_be_json=must_be_json)
    fields.codings = codings
    if len(text) <= LARGE_BYTES:
        fields.decoded = text
    return fields


def _no_fields() -> Fields:
    return Fields("", _as_json, [])


def _read_text(headers: Headers, body: bytes, pause: Pause, *, must_be_json: bool) -> Fields:
    found = read_json(body, pause, must_be=must_be_json)
    if found is not None and not found.mistake:
        values = _with_bounds(found.values)
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
    """Return the names in JSON within a form: each request in a batch's file names its model."""
    try:
        return names_inside(body, pause)
    except BadRequest:
        return None


def _says_json(headers: Headers) -> bool:
    kinds = (value for name, value in headers if name.lower() == b"content-type")
    return any(is_json_type(kind) for kind in kinds)


def is_json_type(content_type: bytes) -> bool:
    """Return whether a Content-Type says JSON; RFC 6839, section 3.1, defines the suffix."""
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
