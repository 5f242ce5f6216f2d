"""Rates of a request, from what is known at its end."""

from __future__ import annotations

from typing import Any

import pytest

from llmux.observe.summary import RequestSummary


def summary(**fields: Any) -> RequestSummary:
    defaults = {
        "id": "x-1", "method": b"POST", "path": b"/v1/chat/completions", "model": "a", "client": None,
        "status": 200, "outcome": "done", "arrived_at": 100.0, "ended_at": 120.0, "wait_s": 8.0,
        "first_byte_s": 10.0, "bytes_in": 1, "bytes_out": 1, "admitted_at": 108.0,
    }  # fmt: skip
    return RequestSummary(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"tokens_out": 101, "is_token_stream": True}, 10.0),  # after the first token, at 110
        ({"tokens_out": 120, "first_byte_s": 20.0}, 10.0),  # since its admission, at 108
        ({"tokens_out": None, "is_token_stream": True}, None),
        ({"tokens_out": 0}, None),
        ({"tokens_out": 1, "is_token_stream": True}, None),  # one token has no rate
        ({"tokens_out": 5, "is_token_stream": True, "first_byte_s": 20.0}, None),  # in one piece
        ({"tokens_out": 5, "is_token_stream": True, "first_byte_s": None, "admitted_at": None}, None),
    ],
)  # fmt: skip
def test_tokens_per_second(fields: dict[str, Any], rate: float | None) -> None:
    assert summary(**fields).tokens_per_s == rate
