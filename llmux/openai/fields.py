"""The fields of a request's body that may name its model: find, check and replace them."""

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
    """Read the JSON in a form: a batch's file of requests names the model of each."""
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
