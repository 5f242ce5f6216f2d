"""What a config says of memory that models share: its mistakes, and what `llmux check` warns of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmux.config import memory_remarks, parse_config
from llmux.config.memory import sharing_groups
from tests.config.test_config import HOOKS, mistakes, write
from tests.config.test_places import lines

GPUS = {"gpu0": "80GiB", "gpu1": "80GiB", "ram": "100GiB"}


def config(models: dict[str, dict[str, Any]], **keys: Any) -> dict[str, Any]:
    """A config with these models, and ports and hooks for them."""
    sections = {n: {"port": 8001 + at, **HOOKS, **m} for at, (n, m) in enumerate(models.items())}
    return {"models": sections, "resources": GPUS, **keys}


def gpu(size: str, **keys: Any) -> dict[str, Any]:
    return {"needs": {"gpu0": size}, **keys}


def ram(size: str, **keys: Any) -> dict[str, Any]:
    return {"needs": {}, "needs_asleep": {"ram": size}, **keys}


def test_the_config_of_the_issue() -> None:
    models: dict[str, Any] = {
        "chat": {"needs": {"gpu0": "60GiB"}, "needs_asleep": {"ram": "60GiB"}},
        "embed": {"needs": {"gpu0": "4GiB"}, "keep": True},
        "big": {"needs": {"gpu0": "76GiB", "gpu1": "80GiB"}},
        "one": {"group": "other"},
    }
    found = parse_config(config(models, overlapping_hooks=True, busy=2, memory_margin=0.2))
    assert [*sharing_groups(found)] == ["default"]
    assert (found.busy, found.overlapping_hooks, found.memory_margin) == (2, True, 0.2)
    assert found.models["embed"].keep
    assert memory_remarks(found) == []


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("data", "line"),
    [
        # names
        (config({"a": {"needs": {"gpu": 1}}}), "models.a.needs.gpu: 'resources' has no 'gpu', did you mean 'gpu"),
        (config({"a": {"needs_waking": {"x": 1}}}), "models.a.needs_waking.x: 'resources' has no 'x'; there are gpu0, gpu1, ram"),
        (config({"a": {"needs_asleep": {"x": 1}}}, resources={}), "models.a.needs_asleep.x: 'resources' has no 'x': there are none"),
        (config({"a": {"needs": "auto"}}, resources={}), "models.a.needs: 'auto' goes with 'resources' only"),
        (config({"a": gpu("1GB"), "b": gpu("1GB", group="x")}), "models.b.needs.gpu0: 'a' of the group 'default' uses 'gpu0', too: give both one group"),
        (config({"a": ram("1GB"), "b": {"needs_waking": {"ram": 5}, "group": "x"}}), "models.b.needs_waking.ram: 'a' of the group 'default' uses 'ram', too"),
        (config({"a": {"needs": "auto"}, "b": {"needs": "auto", "group": "x"}}), "models.b.needs: 'a' of the group 'default' may use 'gpu0', too: give both one group"),
        (config({"a": {}}, sets=[["a"], []]), "sets[1]: names no model"),
        (config({"chat": {}}, sets=[["chat", "chta"]]), "sets[0][1]: there is no model 'chta', did you mean 'chat'?"),
        (config({"a": {}, "b": {"group": "x"}}, sets=[["a", "b"]]), "sets[0]: 'a' is of the group 'default', 'b' of 'x': the models of a set share a group"),
        (config({"a": {}}, sets=[["a"]] * 1001), "sets: lists more than 1,000 sets"),
        # sizes
        (config({"a": gpu("81GiB")}), "models.a.needs.gpu0: is more than there is: there are 80GiB of 'gpu0'"),
        (config({"a": gpu("1GiB", needs_waking={"gpu0": "81GiB"})}), "models.a.needs_waking.gpu0: is more than there is"),
        (config({"a": ram("101GiB")}), "models.a.needs_asleep.ram: is more than there is"),
        (config({"a": ram("101GiB", stop="kill")}), "models.a.needs_asleep.ram: is more than there is"),
        (config({"a": ram("60GiB"), "b": ram("60GiB"), "c": ram("1GiB", stop="kill")}), "resources.ram: 'a', 'b' need 120GiB of it while they sleep, which is more than there is: without a 'stop' hook, they"),
        (config({n: ram("60GiB", stop="kill", preserves_in_flight=True) for n in "ab"}), "resources.ram: 'a', 'b' need 120GiB of it while they sleep, which is more than there is"),
        (config({"a": ram("60GiB"), "b": {"needs": {"ram": "41GiB"}}}), "models.b.needs.ram: it can never be awake: the others need 60GiB while they sleep, and there are 100GiB of 'ram'"),
        (config({"a": ram("60GiB"), "b": {"needs_waking": {"ram": "41GiB"}}}), "models.b.needs_waking.ram: it can never be awake"),
        # those that are kept awake
        (config({"a": {"keep": True}}), "models.a.keep: goes with 'needs' or 'sets': of its group, one model is awake at a time"),
        (config({"a": gpu("1GiB", keep=True, idle_sleep_secs=5)}), "models.a.idle_sleep_secs: 'keep' keeps the model awake"),
        (config({"a": gpu("50GiB", keep=True), "b": gpu("31GiB", keep=True)}), "models.b.keep: 'a', 'b' need 81GiB of 'gpu0' together: there are 80GiB of 'gpu0'"),
        (config({"a": {"needs": {"ram": "40GiB"}, "keep": True}, "b": {"needs": {"ram": "40GiB"}, "keep": True}, "c": ram("30GiB")}), "models.b.keep: 'a', 'b' need 80GiB of 'ram' together, and the others 30GiB while they sleep: there"),
        (config({"a": gpu("1GiB", keep=True), "b": {"keep": True}}), "models.b.keep: goes not with that of 'a': 'b' is awake alone"),
        (config({"a": {"keep": True}, "b": gpu("1GiB", keep=True)}), "models.b.keep: goes not with that of 'a': 'a' is awake alone"),
        (config({"a": {"keep": True}, "b": {"keep": True}, "c": {}}, sets=[["a", "c"], ["c", "b"]]), "models.b.keep: no set holds all of 'a', 'b'"),
        # the policy
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(data: dict[str, Any], line: str) -> None:
    (found,) = mistakes(data)
    assert found.startswith(line)


def test_names_are_checked_beside_other_mistakes() -> None:
    data = config({"a": {"needs": {"x": "much"}, "port": "x"}, "b": {"needs": {"y": 1}}})
    assert len(mistakes(data)) == 4


@pytest.mark.parametrize(
    "data",
    [
        config({"a": ram("60GiB", stop="kill"), "b": ram("40GiB")}),
        config({"a": {"needs": "auto"}, "b": {"group": "x", "needs": dict.fromkeys(GPUS, 1)}}),
        config({"a": {"needs": "auto"}, "b": {"needs": "auto"}}),
        config({"a": gpu("40GiB", keep=True), "b": gpu("40GiB", keep=True)}),
        config({"a": {"keep": True}, "b": {"keep": True}}, sets=[["a", "b"]], resources={}),
        config({"a": gpu("1GiB")}, policy={"name": "my.module:Policy"}),
        config({"a": {}, "b": gpu("1GiB", group="x")}, sets=[["a"]]),
    ],
)
def test_what_is_no_mistake(data: dict[str, Any]) -> None:
    parse_config(data)


def test_mistakes_have_places(tmp_path: Path) -> None:
    text = """
resources: {gpu0: 80GiB}
sets:
  - [a, z]
models:
  a: {port: 1, wake: a, sleep: b, alive: c, needs: {gpu1: 1GiB}}
"""
    found = lines(write(tmp_path, text))
    assert [line.partition(" ")[0] for line in found] == ["@6:53:", "@4:9:"]


# ---- Remarks ----


@pytest.mark.parametrize(
    ("data", "remarks"),
    [
        (
            config({"a": {"needs": {"gpu0": 60}}}, resources={"gpu0": 80}),
            [
                "resources.gpu0: is 80 bytes: is a unit missing, as in 80GiB?",
                "models.a.needs.gpu0: is 60 bytes: is a unit missing, as in 60GiB?",
            ],
        ),
        (
            config({"a": gpu("1GiB")}),
            ["resources.gpu1: no model needs it", "resources.ram: no model needs it"],
        ),
        (config({"a": {"needs": "auto"}}), []),
        (
            config({"a": {}}, resources={}, busy=2, overlapping_hooks=True),
            [
                f"{key}: counts only for models with 'needs' or in 'sets', of which there are none"
                for key in ("busy", "overlapping_hooks")
            ],
        ),
        (
            config({"a": {}, "b": {}, "c": gpu("1GiB")}, sets=[["a", "b"]], resources={"gpu0": "2GB"}),
            ["models.c.needs: others of its group are in sets, and it is in none: it is awake alone"],
        ),
        (
            config({"a": gpu("1GiB", memory="x", stop="y")}, resources={"gpu0": "2GB"}),
            [
                "models.a.memory: is run for models with 'needs: auto' only",
                "models.a.stop: is run only where memory is short that the model needs asleep: "
                "see 'needs_asleep'",
            ],
        ),
    ],
)  # fmt: skip
def test_remarks(data: dict[str, Any], remarks: list[str]) -> None:
    assert memory_remarks(parse_config(data)) == remarks


def test_what_is_to_be_measured_beside_one_that_is_kept_awake() -> None:
    data = config({"a": gpu("60GiB", keep=True), "b": {"needs": "auto"}})
    assert memory_remarks(parse_config(data)) == [
        "models.b.needs: cannot be measured while 'a' is, which 'keep' keeps awake, for until "
        "then it is awake alone: `llmux switch b` once"
    ]


@pytest.mark.parametrize(
    ("data", "kept_out"),
    [
        (config({"a": gpu("60GiB", keep=True), "b": gpu("20GiB"), "c": gpu("21GiB")}), "c"),
        (config({"a": gpu("60GiB", keep=True), "b": gpu("1GiB", needs_waking={"gpu0": "21GiB"})}), "b"),
        (config({"a": gpu("1GiB", keep=True), "b": {}}), "b"),
        (config({"a": {"keep": True}, "b": {}, "c": {}}, sets=[["a", "b"], ["b", "c"]]), "c"),
        (config({"a": {"needs": {"ram": "50GiB"}, "keep": True}, "b": {"needs": {"ram": "41GiB"}}, "c": ram("10GiB")}), "b"),
    ],
)  # fmt: skip
def test_models_for_which_those_kept_awake_leave_no_room(
    data: dict[str, Any], kept_out: str
) -> None:
    found = [each for each in memory_remarks(parse_config(data)) if "awake" in each]
    assert found == [
        f"models.{kept_out}: can never be awake while 'a' is, which 'keep' keeps awake"
    ]
