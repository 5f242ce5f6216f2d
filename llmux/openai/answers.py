"""llmux's own answers: errors, and lists of models in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import msgspec

from llmux.errors import LlmuxError
from llmux.openai.dialects import OPENAI, Dialect, told


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
