"""The memory that the models of a group share, as the config says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmux.config import Config, parse_config
from llmux.errors import ConfigError
from llmux.policy.room import Needs, covers, less, more, total
from llmux.switching.ledger import Ledger
from llmux.switching.memory import GroupMemory, Measured, memory_of

GIB = 1 << 30
TWO_GPUS = {"gpu0": "80GiB", "gpu1": "80GiB", "ram": "256GiB"}


def config(models: Mapping[str, Any], **keys: Any) -> Config:
    hooks = {"wake": "up", "sleep": "down", "alive": "ping"}
    return parse_config(
        {
            "models": {
                name: {"port": 8001 + at, **hooks, **model}
                for at, (name, model) in enumerate(models.items())
            },
            **keys,
        }
    )


def shared(config: Config, measured: Measured | None = None) -> GroupMemory:
    found = memory_of(config, "default", measured)
    assert found is not None
    return found


def fits(found: GroupMemory, awake: Iterable[str]) -> bool:
    memory, awake = found.memory, {*awake}
    held = (needs.awake if name in awake else needs.asleep for name, needs in memory.needs.items())
    return covers(memory.amounts, total(held, (0,) * len(memory.amounts)))


def test_a_group_that_says_nothing_has_one_model_awake() -> None:
    assert memory_of(config({"a": {}, "b": {}}, resources=TWO_GPUS), "default") is None
    mixed = config({"a": {"group": "x"}, "b": {"needs": {"ram": 1}}}, resources=TWO_GPUS)
    assert memory_of(mixed, "x") is None
    assert memory_of(mixed, "default") is not None


def test_needs() -> None:
    models = {
        "chat": {"needs": {"gpu0": "60GiB"}, "needs_asleep": {"ram": "60GiB"}},
        "embed": {"needs": {"gpu0": "4GiB"}, "needs_waking": {"gpu0": "5GiB", "ram": "1GiB"}},
        "big": {"needs": {"gpu0": "80GiB", "gpu1": "80GiB"}},
        "far": {"needs": {}},
    }
    found = shared(config(models, resources=TWO_GPUS, overlapping_hooks=True))
    memory = found.memory
    assert (memory.resources, found.resources) == (("gpu0", "gpu1", "ram"),) * 2
    assert memory.amounts == (80 * GIB, 80 * GIB, 256 * GIB)
    chat, embed = memory.needs["chat"], memory.needs["embed"]
    assert (chat.awake, chat.asleep) == ((60 * GIB, 0, 0), (0, 0, 60 * GIB))
    assert chat.moving == (60 * GIB, 0, 60 * GIB)
    assert embed.moving == (5 * GIB, 0, GIB)
    assert found.touches == {
        "chat": {"gpu0"},
        "embed": {"gpu0", "ram"},
        "big": {"gpu0", "gpu1"},
        "far": frozenset(),
    }
    assert found.overlapping_hooks
    assert fits(found, ["chat", "embed", "far"])
    assert not fits(found, ["embed", "big"])


def test_resources_of_other_groups_are_left_out() -> None:
    models = {"a": {"needs": {"gpu0": 1}}, "b": {"group": "x", "needs": "auto"}}
    two = config(models, resources=TWO_GPUS)
    other = memory_of(two, "x", {"b": {"gpu0": 5, "gpu1": 7, "disk": 9}})
    assert other is not None
    assert shared(two).resources == ("gpu0",)
    assert other.resources == ("gpu1", "ram")  # those that no model names
    assert other.memory.needs["b"].awake == (8, 0)
    assert other.touches == {"b": {"gpu1"}}


def test_who_says_nothing_is_awake_alone() -> None:
    models = {"a": {"needs": {"gpu0": 1}}, "b": {"needs": {"gpu0": 1}}, "c": {}}
    found = shared(config(models, resources=TWO_GPUS))
    assert found.memory.resources == ("gpu0", "#alone")
    assert found.touches["c"] == {"gpu0", "#alone"}
    assert fits(found, "ab")
    assert fits(found, "c")
    assert not fits(found, "ac")


def test_what_is_not_measured_is_awake_alone() -> None:
    models = {"a": {"needs": "auto", "needs_asleep": {"ram": "1GiB"}}, "b": {"needs": "auto"}}
    auto = config(models, resources=TWO_GPUS)
    found = shared(auto, {"a": {"gpu0": 10 * GIB}})
    assert found.memory.resources == ("gpu0", "gpu1", "ram", "#alone")
    assert not fits(found, "ab")
    assert fits(found, "b")
    assert found.memory.needs["a"].asleep == (0, 0, GIB, 0)
    measured = shared(auto, {"a": {"gpu0": 10 * GIB}, "b": {"gpu1": 3}})
    assert measured.resources == measured.memory.resources
    assert measured.memory.needs["a"].awake == (11 * GIB, 0, 0)
    assert measured.memory.needs["b"].awake == (0, 4, 0)  # the margin is rounded up
    assert measured.touches == {"a": {"gpu0"}, "b": {"gpu1"}}


def test_a_margin_is_no_more_than_there_is() -> None:
    models = {"a": {"needs": "auto"}, "b": {"needs": {}, "needs_asleep": {"gpu0": "1GiB"}}}
    auto = config(models, resources=TWO_GPUS, memory_margin=0.5)
    found = shared(auto, {"a": {"gpu0": 78 * GIB, "gpu1": 81 * GIB, "ram": 10}})
    assert found.memory.needs["a"].awake == (79 * GIB, 80 * GIB, 15)


def test_what_others_give_back_when_they_are_stopped_limits_no_measured_needs() -> None:
    others = {n: {"needs": {}, "needs_asleep": {"ram": "150GiB"}, "stop": "kill"} for n in "bc"}
    auto = config({"a": {"needs": "auto"}, **others}, resources=TWO_GPUS, memory_margin=0)
    found = shared(auto, {"a": {"ram": 100 * GIB}})
    assert found.memory.needs["a"].awake == (0, 0, 100 * GIB)


def test_needs_asleep_count_without_needs() -> None:
    models = {"a": {"needs_asleep": {"ram": "1GiB"}}, "b": {}}
    found = shared(config(models, resources=TWO_GPUS))
    assert not fits(found, "ab")
    assert [needs.asleep for needs in found.memory.needs.values()] == [(GIB, 0), (0, 0)]


def test_sets() -> None:
    models: dict[str, Any] = {name: {} for name in ("chat", "code", "embed", "big")}
    found = shared(config(models, sets=[["chat", "embed"], ["code", "embed"]]))
    assert found.resources == ()
    assert found.memory.resources == ("#sets1", "#alone")
    assert fits(found, ["chat", "embed"])
    assert not fits(found, ["chat", "code"])
    assert fits(found, ["big"])
    assert not fits(found, ["big", "embed"])
    assert set(found.touches.values()) == {frozenset(found.memory.resources)}


def test_one_set_of_all_has_a_resource_too() -> None:
    found = shared(config({"a": {}, "b": {}}, sets=[["a", "b"]]))
    assert found.memory.resources == ("#alone",)
    assert fits(found, "ab")


def test_sets_and_needs_both_count() -> None:
    models: dict[str, Any] = {n: {"needs": {"gpu0": "40GiB"}} for n in "abc"} | {"d": {}}
    found = shared(config(models, sets=[["a", "b", "c", "d"]], resources=TWO_GPUS))
    assert fits(found, "abd")
    assert not fits(found, "abc")
    assert found.touches["a"] == {"gpu0"}
    assert found.touches["d"] == {"gpu0"}


SETS = st.lists(
    st.lists(st.sampled_from("abcdef"), min_size=1, unique=True), min_size=1, max_size=6
)


@given(SETS)
def test_exactly_the_subsets_of_sets_and_single_models_fit(sets: list[list[str]]) -> None:
    found = shared(config({name: {} for name in "abcdef"}, sets=sets))
    for size in range(7):
        for awake in map(set, combinations("abcdef", size)):
            assert fits(found, awake) == (size < 2 or any(awake <= {*each} for each in sets))


SIZES = st.dictionaries(st.sampled_from(["gpu", "ram"]), st.integers(0, 9), max_size=2)


@given(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=4))
def test_what_a_config_may_say_the_ledger_can_do(sizes: list[tuple[dict[str, int], ...]]) -> None:
    """Every model of a config that loads can be woken; one that could not be is a mistake."""
    keys = ("needs", "needs_asleep", "needs_waking")
    models = {f"m{at}": dict(zip(keys, each, strict=True)) for at, each in enumerate(sizes)}
    memory = {"gpu": 8, "ram": 12}
    everyone = [Needs.of(*(tuple(e.get(n, 0) for n in memory) for e in each)) for each in sizes]
    asleep = total((needs.asleep for needs in everyone), (0, 0))
    can_all_wake = all(covers((8, 12), more(less(asleep, n.asleep), n.moving)) for n in everyone)
    try:
        found = shared(config(models, resources=memory))
    except ConfigError:
        assert not can_all_wake
        return
    assert can_all_wake
    ledger = Ledger(found.memory)
    for name in models:
        ledger.wake(ledger.plan(name, ()))
        ledger.woke(name)
        ledger.sleep(name)
        ledger.slept(name)
