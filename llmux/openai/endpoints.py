"""Paths that no model server has, since the client's base URL was wrong; pure functions.

A client appends `/chat/completions` to a base URL that should end in `/v1`, or `/v1/messages` to
one that should not. A model must not be woken for a path that its server answers with 404.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from llmux.openai.dialects import plain_path

USUAL = frozenset({
    b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/messages",
    b"/v1/responses", b"/api/chat", b"/api/generate",
})  # fmt: skip
"""The right paths of nearly all requests, which need no closer look."""

_ENDPOINTS = (
    rb"chat/completions|completions|responses|messages(?:/count_tokens)?|moderations|realtime"
    rb"|images/(?:generations|edits|variations)|audio/(?:speech|transcriptions|translations)"
)
"""Paths below `/v1` that few servers have without it; llama.cpp, MLX and LocalAI do.

`/embeddings`, `/rerank`, `/tokenize` and others are missing: servers have them without a version.
"""

_OLLAMA = (
    rb"chat|generate|embed|embeddings|tags|show|ps|version|pull|push|create|copy|delete|blobs/.+"
)

_WITHOUT_VERSION = re.compile(rb"/(?:%b)" % _ENDPOINTS)
_TWICE = re.compile(
    rb"(?:/v\d+)+(?P<versioned>/v\d+/.+)"  # a base URL with /v1, a path with /v1
    rb"|(?:/v\d+|/api)+(?P<ollama>/api/(?:%(ollama)b))"
    rb"|(?:/v\d+)?/(?:%(openai)b|embeddings)(?:/v\d+)?/(?P<endpoint>%(openai)b|embeddings)"
    rb"|/api/(?:%(ollama)b)(?P<again>/(?:api|v1)/.+)" % {b"ollama": _OLLAMA, b"openai": _ENDPOINTS},
    re.DOTALL,
)


class WrongPath(NamedTuple):
    """A path that is surely, or most probably, not one of a model server.

    Attributes:
        right: The path that the client meant.
        is_sure: False if a few servers have the path.
    """

    right: bytes
    is_sure: bool


def wrong_path(target: bytes) -> WrongPath | None:
    """Return what is wrong with a target's path; None if a server may have the path."""
    if target in USUAL:
        return None
    path = plain_path(target)
    if _WITHOUT_VERSION.fullmatch(path):
        return WrongPath(b"/v1" + path, is_sure=False)
    found = _TWICE.fullmatch(path)
    if found is None:
        return None
    if (endpoint := found["endpoint"]) is not None:
        return WrongPath(b"/v1/" + endpoint, is_sure=True)
    return WrongPath(found["versioned"] or found["ollama"] or found["again"], is_sure=True)
