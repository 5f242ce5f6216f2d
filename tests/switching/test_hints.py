"""What a request may ask of the policy, in headers."""

from __future__ import annotations

import math

import pytest

from llmux.errors import BadRequest
from llmux.switching.hints import NO_HINTS, Hints, read_hints


@pytest.mark.parametrize(
    ("headers", "hints"),
    [
        ([], NO_HINTS),
        ([(b"X-LLMux-Priority", b"2.5")], Hints(weight=2.5)),
        ([(b"x-llmux-max-wait", b"10")], Hints(max_wait_s=10)),
        ([(b"x-llmux-switch", b"Never")], Hints(never_switch=True)),
        ([(b"x-llmux-priority", b"")], NO_HINTS),
    ],
)
def test_hints(headers: list[tuple[bytes, bytes]], hints: Hints) -> None:
    assert read_hints(headers) == hints
    assert NO_HINTS.max_wait_s == math.inf


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            b"x-llmux-priority",
            b"0",
            "x-llmux-priority: expected a positive number from 0.001 to 1000",
        ),
        (b"x-llmux-priority", b"-1", "x-llmux-priority: expected"),
        (b"x-llmux-priority", b"1e9", "x-llmux-priority: expected"),
        (b"x-llmux-priority", b"1e-14", "x-llmux-priority: expected"),
        (b"x-llmux-priority", b"nan", "x-llmux-priority: expected"),
        (b"x-llmux-max-wait", b"soon", "x-llmux-max-wait: expected a positive number"),
        (b"x-llmux-max-wait", b"0", "x-llmux-max-wait: expected a positive number"),
        (b"x-llmux-max-wait", b"-inf", "x-llmux-max-wait: expected a positive number"),
        (b"x-llmux-switch", b"maybe", "x-llmux-switch: expected 'never'"),
    ],
)
def test_hints_that_say_nothing(name: bytes, value: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_hints([(name, value)])
