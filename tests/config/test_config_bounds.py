"""What a config file may cost: little, whatever is in it, and it says where it is too much."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llmux.config import load_config, parse_config
from llmux.config.bounds import MOST_MISTAKES, MOST_VALUES
from llmux.errors import ConfigError

MODEL = "{port: 1, wake: up, sleep: down, alive: ping}"
MODELS = f"models: {{m: {MODEL}}}\n"

LONG_S = 20.0
"""Far more than any of these takes, on a busy machine, and far less than they took."""


def refused(tmp_path: Path, text: str, name: str = "llmux.yaml") -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    began_at = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert time.perf_counter() - began_at < LONG_S
    assert all(len(line) < 2000 for line in caught.value.mistakes)
    return [line.removeprefix(f"{path}: ") for line in caught.value.mistakes]


def merges(levels: int, sources: str = "[*l{0}, *l{0}]", first: str = "{k: v}") -> str:
    lines = [f"x-l0: &l0 {first}"]
    lines += [f"x-l{n + 1}: &l{n + 1} {{<<: {sources.format(n)}}}" for n in range(levels)]
    return "\n".join(lines) + "\n"


def test_merge_keys_nested_deep_cost_nothing(tmp_path: Path) -> None:
    """Fourteen levels took 30 s; each level doubles it."""
    path = tmp_path / "llmux.yaml"
    path.write_text(merges(40) + "models:\n  m:\n    <<: *l40\n    k: w\n")
    began_at = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert time.perf_counter() - began_at < LONG_S
    assert "models.m.k: unknown key" in caught.value.mistakes[0]


def test_too_many_merged_keys_are_refused(tmp_path: Path) -> None:
    wide = "{" + ", ".join(f"k{n}: v" for n in range(2000)) + "}"
    sources = "[" + ", ".join(["*l{0}"] * 100) + "]"
    (line,) = refused(tmp_path, merges(3, sources, wide) + MODELS)
    assert line.startswith("line 2, column ")
    assert line.endswith(f": the file merges more than {MOST_VALUES} keys")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x-a: &a {<<: *a}\n", "line 1, column 6: the mapping merges itself"),
        ("x-a: {<<: 1}\n", "line 1, column 11: expected a mapping or list of mappings"),
        ("x-a: {<<: [{}, []]}\n", "line 1, column 16: expected a mapping or list of mappings"),
        ("x-a: &a [*a]\n", "x-a[0]: holds itself, by an alias"),
        ("x-a: &a {b: [*a]}\n", "x-a.b[0]: holds itself, by an alias"),
        ("x-a: " + "[" * 120 + "]" * 120 + "\n", "x-a[0][0]: nested more than 100 deep"),
        ("x-a: " + "9" * 5000 + "\n", "line 1, column 6: a number of 5000 digits: 9999"),
        ("x-a: 0x" + "f" * 5000 + "\n", "line 1, column 6: a number of 5002 digits: 0xff"),
        ("0x" + "f" * 900 + ": 1\n", "line 1, column 1: a number of 902 digits"),
        pytest.param(
            "x-a: [" + "1," * 61_000 + "]\n",
            "line 1, column 120003: the file has",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_too_much_is_refused_and_its_place_told(
    tmp_path: Path, text: str, says: str
) -> None:
    assert refused(tmp_path, text + MODELS)[0].startswith(says)


@pytest.mark.parametrize("kind", ["list", "mapping"])
@pytest.mark.parametrize(
    "below", ["x-laughs: *l12", "policy: {options: {o: *l12}}", "models: *l12"]
)
def test_a_billion_laughs_are_refused(tmp_path: Path, kind: str, below: str) -> None:
    lines = ["x-l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for n in range(12):
        many = [f"*l{n}"] * 10
        keyed = [f"k{key}: {each}" for key, each in enumerate(many)]
        value = f"[{', '.join(many)}]" if kind == "list" else f"{{{', '.join(keyed)}}}"
        lines.append(f"x-l{n + 1}: &l{n + 1} {value}")
    (line,) = refused(tmp_path, "\n".join([*lines, below]))
    assert line == f"x-l4: stands for more than {MOST_VALUES} values (do aliases repeat it?)"


def test_models_that_are_one_many_times_are_counted(tmp_path: Path) -> None:
    headers = ", ".join(f"h{n}: v" for n in range(1000))
    model = f"x-m: &m {{port: 1, wake: u, sleep: d, alive: p, headers: {{{headers}}}}}\n"
    models = "".join(f"  m{n}: *m\n" for n in range(5000))
    (line,) = refused(tmp_path, f"{model}models:\n{models}")
    assert line.startswith(f"models: stands for more than {MOST_VALUES} values")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"models": ' + "[" * 500 + "]" * 500 + "}", "models"),
        ('{"port": ' + "1" * 5000 + "}", "a number of 5000 digits: 1111"),
        pytest.param(
            '{"models": [' + "{}," * 300_000 + "{}]}",
            f"models: has more than {MOST_VALUES} values",
            marks=pytest.mark.slow,
        ),
        ('{"models": {"a": 1, "a": 1}}', "models.a: duplicate key"),
    ],
)
def test_json_has_the_same_bounds(tmp_path: Path, text: str, says: str) -> None:
    assert refused(tmp_path, text, "llmux.json")[0].startswith(says)


def test_mistakes_are_cut_and_counted(tmp_path: Path) -> None:
    names = {f"{n}-" + "x" * 50_000: 1 for n in range(70)}
    lines = refused(tmp_path, json.dumps({"models": names}), "llmux.json")
    assert len(lines) == 2 * 70  # that a name is too long, and that its model is no object
    options = dict.fromkeys(map(str, range(5000)), 1)
    lines = refused(tmp_path, json.dumps({"models": {}, **options}), "llmux.json")
    assert len(lines) == MOST_MISTAKES + 1
    assert lines[-1].endswith("mistakes more")


def test_a_large_config_loads(tmp_path: Path) -> None:
    model = {"port": 1, "wake": "up " * 200, "sleep": "down", "alive": "ping"}
    path = tmp_path / "llmux.json"
    path.write_text(json.dumps({"models": dict.fromkeys(map(str, range(3000)), model)}))
    assert len(load_config(path).models) == 3000


def test_merge_keys_keep_their_order_and_strength(tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text(
        "x-a: &a {port: 1, wake: a, sleep: a}\nx-b: &b {wake: b, sleep: b, alive: b}\n"
        "models:\n  one: {<<: [*a, *b], sleep: own}\n  two: {<<: [*b, *a]}\n"
    )
    one, two = load_config(path).models.values()
    assert (one.wake, one.sleep, one.alive) == ("a", "own", "b")
    assert (two.wake, two.sleep, two.alive, two.port) == ("b", "b", "b", 1)


def test_data_of_a_program_has_the_same_bounds() -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(ConfigError, match=r"x-loop\.again: holds itself"):
        parse_config({"models": {}, "x-loop": loop})
