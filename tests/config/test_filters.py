"""Request filters in the config: what is a mistake, and what becomes of aliases."""

from __future__ import annotations

from typing import Any

import pytest

from llmux.api.masked import masked_config
from llmux.config import ModelConfig, config_schema, parse_config
from llmux.config.filters import AliasConfig
from tests.config.test_config import mistakes, model, one_model


def test_aliases_with_filters() -> None:
    found = model(aliases=["a", {"name": "b", "set": {"t": 1}, "drop": ["x.y"]}], force={"n": None})
    assert found.aliases == ("a", AliasConfig(name="b", set={"t": 1}, drop=("x.y",)))
    assert found.alias_names == ("a", "b")
    assert found.force == {"n": None}
    names = parse_config(one_model(aliases=["a", {"name": "b-*"}])).names
    assert names == {"llama": "llama", "a": "llama"}
    assert names.find("b-1") == "llama"


def test_a_changed_filter_is_a_changed_model() -> None:
    def with_temperature(value: float) -> ModelConfig:
        return model(aliases=[{"name": "b", "set": {"t": value}}])

    assert with_temperature(1) == with_temperature(1)
    assert with_temperature(1) != with_temperature(2)
    assert not with_temperature(1).needs_sleep_after(with_temperature(2))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"set": {"model": "x"}}, "set.model: llmux itself writes the model's name"),
        ({"force": {"Stream": True}}, "force.Stream: the client decides whether"),
        ({"drop": ["a", "stream"]}, "drop[1]: the client decides whether"),
        ({"drop": ["model.x"]}, "drop[0]: llmux itself writes"),
        ({"set": {"a": 1}, "force": {"a": 2}}, "force.a: is also in 'set': give one of them"),
        (
            {"set": {"a": {"b": 1, "c": 1}}, "force": {"a": {"b": {"d": 1}}}},
            "force.a.b: is also in 'set': give one of them",
        ),
        ({"set": {1: 2}}, "set[1]: the key must be a string: put it in quotes"),
        ({"set": {"a": [{1: 2}]}}, "set.a[0][1]: the key must be a string"),
        ({"set": {"a": {"b": float("nan")}}}, "set.a.b: must be a finite number"),
        ({"set": {"a": "\ud800"}}, "set.a: must not hold half a surrogate pair"),
        ({"force": {"a": [{"\udcff": 1}]}}, "force.a: must not hold half a surrogate pair"),
        ({"aliases": [{"name": "b", "set": {"a": "\ud800"}}]}, "aliases[0].set.a: must not hold"),
        ({"set": "a=1"}, "set: expected object, got str"),
        ({"drop": "a"}, "drop: expected array, got str"),
        ({"drop": [1]}, "drop[0]: expected str, got int"),
        ({"drop": [""]}, "drop[0]: expected the name of a field, or a path such as options.num_ctx"),
        ({"drop": ["a..b"]}, "drop[0]: expected the name of a field, or a path"),
        ({"aliases": [{}]}, "aliases[0].name: required key is missing"),
        ({"aliases": [{"name": "b", "sett": {}}]}, "aliases[0].sett: unknown key, did you mean 'set'?"),
        ({"aliases": [{"name": "b", "set": {"model": 1}}]}, "aliases[0].set.model: llmux itself"),
        ({"aliases": [{"name": "llama"}]}, "aliases[0].name: 'llama' is the name of a model"),
        ({"aliases": ["b", {"name": "b"}]}, "aliases[1].name: 'b' is an alias of 'llama' already"),
        ({"aliases": [None]}, "aliases[0]: expected str, got null"),
    ],
)  # fmt: skip
def test_mistakes(keys: dict[str, Any], line: str) -> None:
    (found,) = mistakes(one_model(**keys))
    assert found.startswith(f"models.llama.{line}")


def test_a_field_may_be_set_beside_forced_ones() -> None:
    found = model(set={"a": {"b": 1}}, force={"a": {"c": 2}, "d": 3}, drop=["d"])
    assert (found.set, found.force) == ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})


def test_the_control_api_shows_them() -> None:
    config = parse_config(one_model(aliases=["a", {"name": "b", "set": {"t": 1}}], set={"s": [1]}))
    shown = masked_config(config)["models"]["llama"]
    assert shown["set"] == {"s": [1]}
    assert shown["aliases"] == ("a", {"name": "b", "set": {"t": 1}, "force": {}, "drop": ()})


def test_the_schema() -> None:
    keys = config_schema()["$defs"]["ModelConfig"]["properties"]
    assert {"$ref": "#/$defs/AliasConfig"} in keys["aliases"]["items"]["anyOf"]
    assert keys["set"]["type"] == "object"
