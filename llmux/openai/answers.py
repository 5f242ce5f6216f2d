"""Responses that llmux writes itself: errors, and models in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import msgspec

from llmux.errors import LlmuxError
from llmux.openai.dialects import OPENAI, Dialect, error_info

ELSEWHERE = (b"x-llmux-retry", b"elsewhere")
"""Header of a refusal whose request may be sent to another host, whatever its method."""


def error_answer(
    error: LlmuxError,
    dialect: Dialect = OPENAI,
    *,
    to_operator: bool = False,
    was_sent: bool = False,
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of an error's response.

    Args:
        error: The error.
        dialect: The form of the client's API.
        to_operator: True to give details. An operator's order is for this host.
        was_sent: True if any of the request may have reached a backend.
    """
    body = msgspec.json.encode(dialect.body(error_info(error, to_operator=to_operator)))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if not error.may_be_repeated:
        headers.append((b"x-should-retry", b"false"))  # stops the retries of OpenAI's libraries
    if error.may_be_served_elsewhere and not (to_operator or was_sent):
        headers.append(ELSEWHERE)
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
