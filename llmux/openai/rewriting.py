"""Rewrite a request for its backend: no name of another model in its body or query, no codings.

llmux has chosen the model; a backend that serves several must not read a different one.
"""

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


def needs_rewrite(
    fields: Fields, meanings: Meanings, model: str, upstream_model: str | None
) -> bool:
    """Return whether `rewrite_body` would change the body; same arguments, same errors."""
    for name in fields.suspects:
        if meanings.is_other(name, model):
            raise BadRequest(
                f"The request is for {model!r}, but some servers would read {shown(name)!r} in its "
                "body: send valid JSON, or a form, with its own Content-Type"
            )
    if upstream_model is not None:
        return fields.has_name(lambda name: name != upstream_model)
    return fields.has_name(lambda name: meanings.is_other(name, model))


def rewrite_body(
    body: bytes, fields: Fields, meanings: Meanings, model: str, upstream_model: str | None
) -> bytes:
    """Return the body for a model's backend, which names no other model.

    Args:
        body: Body as it was read, or as this function last returned it. If it needs a rewrite, its
            codings must have been undone.
        fields: Fields of the body.
        meanings: The models that names stand for.
        model: Model that serves the request.
        upstream_model: Its name in the backend, which replaces every other name; None to replace
            only names of other models, by `model`.

    Raises:
        BadRequest: Another model is named where it cannot be replaced.
    """
    if not needs_rewrite(fields, meanings, model, upstream_model):
        return body
    assert not fields.codings, "names cannot be replaced in a compressed body"
    if upstream_model is not None:
        return fields.replace(body, upstream_model, lambda name: name != upstream_model)
    return fields.replace(body, model, lambda name: meanings.is_other(name, model))


def rewrite_target(
    target: bytes, meanings: Meanings, model: str, upstream_model: str | None
) -> bytes:
    """Return path and query for a model's backend, with no other model in the query.

    `upstream_model`, if set, also replaces the model's own names. Other values of a parameter
    `model` stay: they may mean something else to the backend.
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
    """Return the headers for a body whose codings have been undone."""
    kept = [field for field in headers if field[0].lower() != CONTENT_ENCODING]
    if any(coding.startswith("utf") for coding in codings):
        return [_without_charset(field) for field in kept]  # the text is UTF-8 now
    return kept


def _without_charset(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = field
    return (name, value.partition(b";")[0]) if name.lower() == b"content-type" else field


def decoded_text(body: bytes, codings: Sequence[str], bounds: Bounds) -> bytes:
    """Undo a body's codings, with the same result as in `read_coded`."""
    return decoded(body, codings, bounds.for_utf8())
