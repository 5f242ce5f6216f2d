"""Durations with units, wherever the config has seconds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmux.config import HookTimeouts, config_schema, parse_config
from llmux.config.durations import DURATION_PATTERN, duration_s
from llmux.config.schema import SECTIONS
from llmux.config.section import file_keys
from llmux.policy import load_policy
from tests.config.test_config import mistakes, model, one_model

GOOD = {
    "250ms": 0.25, "1001ms": 1.001, "90s": 90, "1.5s": 1.5, "5m": 300, "1h30m": 5400, "2d": 172800,
    "1d2h3m4s5ms": 93784.005, "0s": 0, "007s": 7,
}  # fmt: skip
BAD = ["", " ", "30", "5 m", "5m ", "m", "30m1h", "1h1h", "5M", "5min", "1:30", "-5s", "+5s", "1e3s",
       ".5s", "5.s", "inf", "1\u0665s", "5s\n"]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_a_duration_stands_for(text: str) -> None:
    assert duration_s(text) == GOOD[text]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_anything_else_is_a_mistake(number: int) -> None:
    with pytest.raises(ValueError, match="a duration is written as 90s, 5m, 1h30m or 250ms"):
        duration_s(BAD[number])


def test_the_schema_allows_the_same() -> None:
    assert all(re.search(DURATION_PATTERN, text) for text in GOOD)
    # JSON Schema's `$` is the end of the text, Python's also the place before a last line break.
    assert not [text for text in BAD if re.search(DURATION_PATTERN.replace("$", r"\Z"), text)]


def test_every_key_in_seconds_takes_one() -> None:
    defs = config_schema()["$defs"]
    count = 0
    for section in SECTIONS:
        for key, shape in defs[section.__name__]["properties"].items():
            kinds = [each.get("type") for each in (shape, *shape.get("anyOf", ()))]
            takes = ["number", "string"] in kinds
            assert takes == (key.endswith("_secs") or section is HookTimeouts)
            assert "number" not in kinds or key == "memory_margin"  # a share
            count += takes
        assert all(
            "float" in str(file_keys(section)[key])
            for key in file_keys(section)
            if key.endswith("_secs")
        )
    assert count > 15


def test_in_a_config() -> None:
    config = parse_config(
        one_model(idle_sleep_secs="1h30m", hook_timeouts={"wake": "10m", "alive": None})
        | {"policy": {"max_wait_secs": "2m"}, "shutdown_grace_secs": "500ms"}
    )
    llama = config.models["llama"]
    assert (llama.idle_sleep_secs, llama.hook_timeouts) == (5400, HookTimeouts(alive=None))
    assert (config.policy.max_wait_secs, config.shutdown_grace_secs) == (120, 0.5)
    assert model(stream_idle_secs="1s").stream_idle_secs == 1


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("0s", "expected float > 0.0"),
        ("5 min", "expected float, got str: a duration is written as 90s"),
        ("9" * 400 + "d", "must be a finite number"),
    ],
)
def test_mistakes(value: str, line: str) -> None:
    (found,) = mistakes(one_model(idle_sleep_secs=value))
    assert found.startswith(f"models.llama.idle_sleep_secs: {line}")


def test_options_of_a_policy_take_one() -> None:
    def options(**given: Any) -> Any:
        data = one_model() | {"policy": {"name": "cost_aware", "options": given}}
        return load_policy(parse_config(data).policy)

    assert options(coalesce_secs="500ms")._coalesce_s == 0.5
    with pytest.raises(Exception, match="a duration is written as"):
        options(coalesce_secs="soon")
