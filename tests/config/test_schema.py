"""The schema that editors get: it takes what the loader takes, and marks what the loader refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llmux.config import config_schema, editor_schema, parse_config
from llmux.config.policy import POLICY_NAMES
from llmux.errors import ConfigError
from llmux.policy.load import POLICIES
from tests.config.test_config import BAD_VALUES, HOOKS, one_model

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": (list, tuple), "string": str, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip

NAMES = {"if": "if_"}


class Validator:
    """As much of JSON Schema as the config's uses; an unknown keyword is an error."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def accepts(self, value: Any, shape: dict[str, Any] | None = None) -> bool:
        shape = self.schema if shape is None else shape
        return all(
            getattr(self, NAMES.get(key, key.strip("$")))(value, limit, shape)
            for key, limit in shape.items()
            if self.knows(key)
        )

    def knows(self, key: str) -> bool:
        ignored = {"$schema", "$defs", "title", "description", "default", "then"}
        assert key in ignored or hasattr(self, NAMES.get(key, key.strip("$"))), (
            f"unknown keyword {key}"
        )
        return key not in ignored

    def ref(self, value: Any, name: str, _: Any) -> bool:
        return self.accepts(value, self.schema["$defs"][name.rpartition("/")[2]])

    def type(self, value: Any, kinds: Any, _: Any) -> bool:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        is_bool = isinstance(value, bool)
        return any(
            isinstance(value, TYPES[kind]) and is_bool <= (kind == "boolean") for kind in kinds
        )

    def enum(self, value: Any, choices: list[Any], _: Any) -> bool:
        return value in choices

    def const(self, value: Any, only: Any, _: Any) -> bool:
        return bool(value == only)

    def if_(self, value: Any, condition: Any, shape: dict[str, Any]) -> bool:
        return not self.accepts(value, condition) or self.accepts(value, shape["then"])

    def allOf(self, value: Any, choices: list[Any], _: Any) -> bool:  # noqa: N802
        return all(self.accepts(value, choice) for choice in choices)

    def anyOf(self, value: Any, choices: list[Any], _: Any) -> bool:  # noqa: N802
        return any(self.accepts(value, choice) for choice in choices)

    def pattern(self, value: Any, pattern: str, _: Any) -> bool:
        return not isinstance(value, str) or re.search(pattern, value) is not None

    def maxLength(self, value: Any, most: int, _: Any) -> bool:  # noqa: N802
        return not isinstance(value, str) or len(value) <= most

    def minimum(self, value: Any, least: float, _: Any) -> bool:
        return not isinstance(value, int | float) or value >= least

    def maximum(self, value: Any, most: float, _: Any) -> bool:
        return not isinstance(value, int | float) or value <= most

    def exclusiveMinimum(self, value: Any, least: float, _: Any) -> bool:  # noqa: N802
        return not isinstance(value, int | float) or value > least

    def minProperties(self, value: Any, least: int, _: Any) -> bool:  # noqa: N802
        return not isinstance(value, dict) or len(value) >= least

    def required(self, value: Any, keys: list[str], _: Any) -> bool:
        return not isinstance(value, dict) or all(key in value for key in keys)

    def items(self, value: Any, shape: Any, _: Any) -> bool:
        return not isinstance(value, list | tuple) or all(
            self.accepts(item, shape) for item in value
        )

    def properties(self, value: Any, shapes: dict[str, Any], _: Any) -> bool:
        return not isinstance(value, dict) or all(
            self.accepts(value[key], shape) for key, shape in shapes.items() if key in value
        )

    def patternProperties(self, _: Any, __: Any, ___: Any) -> bool:  # noqa: N802
        return True

    def propertyNames(self, value: Any, shape: Any, _: Any) -> bool:  # noqa: N802
        return not isinstance(value, dict) or all(self.accepts(key, shape) for key in value)

    def additionalProperties(self, value: Any, shape: Any, around: Any) -> bool:  # noqa: N802
        if not isinstance(value, dict):
            return True
        others = [
            item
            for key, item in value.items()
            if key not in around.get("properties", {})
            and not any(re.search(each, str(key)) for each in around.get("patternProperties", {}))
        ]
        return not others if shape is False else all(self.accepts(each, shape) for each in others)


VALIDATOR = Validator(json.loads(json.dumps(editor_schema())))

GOOD: list[dict[str, Any]] = [
    one_model() | {"x-a": 1, "policy": {"name": "fifo", "max_wait_secs": "5m", "gate": False}},
    one_model() | {"policy": {"name": "my.package:Policy", "max_wait_secs": 5, "options": {"a": [1]}}},
    one_model(aliases=["a", {"name": "b", "set": {"t": 1}, "drop": ["x"]}], force={"a": {"b": None}}),
    one_model(hook_timeouts={"wake": "1h30m", "sleep": None}, websocket="cut", max_in_flight=2),
    {"models": {"a": HOOKS | {"url": "unix:/x.sock"}}, "api_keys": ["k"], "cors_origins": "*"},
]  # fmt: skip

FROM_VARIABLES = [
    one_model(port="${env:X:-8001}", url=None, websocket="${env:X:-cut}", max_in_flight="${env:X:-3}"),
    one_model(port=None, url="http://${env:X:-a}:1", idle_sleep_secs="${env:X:-5m}"),
    one_model(preserves_in_flight="${env:X:-true}", hook_timeouts={"wake": "${env:X:-5}"}),
    one_model() | {"port": "${env:X:-1}", "policy": {"name": "${env:X:-fifo}", "gate": "${env:X:-true}"}},
    one_model() | {"cors_origins": ["${env:X:-http://a}"], "api_keys": ["${env:X:-abc}"], "host": "${env:X:-::1}"},
    one_model() | {"passive": ["${env:X:-/x}"], "on_shutdown": "${env:X:-sleep}"},
]  # fmt: skip


@pytest.mark.parametrize("data", [*GOOD, *FROM_VARIABLES])
def test_good_configs(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X", raising=False)
    parse_config(data)
    assert VALIDATOR.accepts(data)


@pytest.mark.parametrize(
    "data",
    [
        one_model() | {"policy": {"name": "fifos"}},
        one_model() | {"policy": {"name": "adaptive", "max_wait_secs": "5 minutes"}},
        one_model() | {"policy": {"max_wait_secs": 0}},
        one_model(port="8001"),
        one_model(aliases=[{"set": {}}]),
        one_model(aliases=[{"name": "a", "sett": {}}]),
        one_model(drop="a"),
        one_model(set=[]),
        one_model(websocket="cuts"),
        one_model() | {"acces_log": True},
        {"models": {"a": {"port": 1, "wake": "w"}}},
        {},
    ],
)
def test_bad_configs(data: dict[str, Any]) -> None:
    assert not VALIDATOR.accepts(data)


def with_recipe(recipe: str, **values: Any) -> dict[str, Any]:
    return {"models": {"a": {"recipe": recipe, "with": values}}}


@pytest.mark.parametrize(
    "data",
    [
        *(with_recipe("process", command="x", health=each) for each in ("/", "/a?b", "none")),
        with_recipe("process", command="x", health="${env:X:-/health}", stop_secs="${env:X:-5}"),
        with_recipe("process", command=["${env:X:-x}", "--port", 5]),
        *(with_recipe("vllm-sleep", model="x", level=each) for each in (1, 2, "${env:X:-2}")),
    ],
)
def test_good_parameters_of_recipes(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X", raising=False)
    parse_config(data)
    assert VALIDATOR.accepts(data)


@pytest.mark.parametrize(
    "data",
    [
        *(with_recipe("process", command="x", health=each) for each in ("health", "nonesuch", 5)),
        *(with_recipe("process", command="x", stop_secs=each) for each in ("5", -1, True)),
        *(with_recipe("vllm-sleep", model="x", level=each) for each in (3, "2", "two")),
        with_recipe("process", command="x", comand="x"),
    ],
)
def test_bad_parameters_of_recipes(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_config(data)
    assert not VALIDATOR.accepts(data)


def test_most_mistakes_show_in_an_editor() -> None:
    """Not all: an editor does not compare values with each other."""
    found = [
        VALIDATOR.accepts(json.loads(json.dumps(data))) for data, _ in BAD_VALUES if is_json(data)
    ]
    assert found.count(False) > 0.5 * len(found)


def is_json(data: object) -> bool:
    try:
        return "NaN" not in (text := json.dumps(data)) and "Infinity" not in text
    except TypeError:
        return False


def test_the_names_of_policies_are_those_that_load() -> None:
    assert tuple(POLICIES) == POLICY_NAMES
    name = config_schema()["$defs"]["PolicyConfig"]["properties"]["name"]
    assert name["anyOf"][0] == {"enum": list(POLICIES)}
    with pytest.raises(ConfigError):
        parse_config(one_model() | {"policy": {"name": ""}})
