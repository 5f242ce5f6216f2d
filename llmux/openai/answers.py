"""Responses that llmux writes itself: errors, and models in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import msgspec

from llmux.errors import LlmuxError
from llmux.openai.dialects import OPENAI, Dialect, error_info


def error_answer(
    error: LlmuxError, dialect: Dialect = OPENAI, *, to_operator: bool = False
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of an error's response; operators get its details."""
    body = msgspec.json.encode(dialect.body(error_info(error, to_operator=to_operator)))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if not error.may_be_repeated:
        headers.append((b"x-should-retry", b"false"))  # stops the retries of OpenAI's libraries
    if error.accepts:
        headers.append((b"accept-encoding", error.accepts.encode()))
    if error.challenge:
        headers.append((b"www-authenticate", error.challenge.encode()))
    return error.status, headers, body


def model_object(name: str, created: int, facts: Mapping[str, Any]) -> bytes:
    """Encode a model object of OpenAI's API, with `facts` as its additional member `llmux`."""
    return msgspec.json.encode(_model(name, created, facts))


def model_list(models: Iterable[tuple[str, int, Mapping[str, Any]]]) -> bytes:
    """Encode OpenAI's list of models, sorted by id; the tuples hold `model_object`'s arguments."""
    data = [_model(*model) for model in sorted(models, key=itemgetter(0))]
    return msgspec.json.encode({"object": "list", "data": data})


def _model(name: str, created: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "llmux", "llmux": facts}
