"""Rewrite a request for its backend: no other model's name in its body or query, no codings."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from llmux.base.names import shown
from llmux.errors import BadRequest
from llmux.http.syntax import Headers
from llmux.openai.codings import CONTENT_ENCODING, Bounds, decoded
from llmux.openai.fields import Fields
from llmux.openai.forms import urlencoded_fields
from llmux.openai.jsonbody import Value
from llmux.openai.naming import Meanings


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


def decoded_headers(headers: Headers, codings: Sequence[str]) -> Headers:
    """The headers that are right for a body once its codings have been undone."""
    kept = [field for field in headers if field[0].lower() != CONTENT_ENCODING]
    if any(coding.startswith("utf") for coding in codings):
        return [_without_charset(field) for field in kept]
    return kept


def _without_charset(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = field
    return (name, value.partition(b";")[0]) if name.lower() == b"content-type" else field


def decoded_text(body: bytes, codings: Sequence[str], bounds: Bounds) -> bytes:
    """A body without its codings, as `read_coded` has read it."""
    return decoded(body, codings, bounds.for_utf8())
