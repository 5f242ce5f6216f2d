"""Every message about a config file has the place of what it is about."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.config import hook_remarks, load_config
from llmux.config.places import Place, Source
from llmux.config.section import file_keys
from llmux.config.shape import Config
from llmux.errors import ConfigError
from llmux.policy import load_policy
from tests.config.test_config import LLAMA, write

HOOKS = "wake: w, sleep: s, alive: a"


def lines(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == "\n".join(caught.value.lines)
    assert len(caught.value.lines) == len(caught.value.mistakes)
    return [line.replace(f"{path}:", "@", 1) for line in caught.value.lines]


def test_yaml(tmp_path: Path) -> None:
    text = f"""\
prot: 1
models:
  a.b:
    port: x
    {HOOKS.replace(", ", chr(10) + "    ")}
    aliases:
      - ok
      -   3
  "c": {{port: 1, url: http://x, {HOOKS}, headers: {{te: x}}}}
  d: {{wake: w, port: 70000}}
policy: {{max_wait_secs: -1, on_drain_timeout: x}}
é: {{}}
"""
    assert lines(write(tmp_path, text)) == [
        "@1:1: prot: unknown key, did you mean 'port'?",
        '@4:5: models["a.b"].port: expected int, got str',
        '@10:11: models["a.b"].aliases[1]: expected str, got int',
        "@11:72: models.c.headers.te: this header is llmux's to set",
        "@11:3: models.c: give 'port' or 'url', not both",
        "@12:16: models.d.port: expected int <= 65535",
        "@12:3: models.d.sleep: required key is missing",
        "@12:3: models.d.alive: required key is missing",
        "@13:10: policy.max_wait_secs: expected float > 0.0",
        "@13:29: policy.on_drain_timeout: expected 'cut' or 'wait', got 'x'",
        "@14:1: é: unknown key, known are "
        + ", ".join(sorted(file_keys(Config))),
    ]  # fmt: skip


def test_json(tmp_path: Path) -> None:
    text = """{
  "models": {
    "a.b": {"port": 1, "wake": "w", "sleep": "s",  "port": "x", "alive": "\\ud83d\\ude00",
      "aliases": ["ok",
        5], "headers": {"x": "}]\\""}
    }
  },
  "é": [], "port" : null
}"""
    assert [each.partition(", known")[0] for each in lines(write(tmp_path, text, "a.json"))] == [
        '@3:52: models["a.b"].port: duplicate key',
        '@3:52: models["a.b"].port: expected int, got str',
        '@5:9: models["a.b"].aliases[1]: expected str, got int',
        "@8:3: é: unknown key",
        "@8:12: port: expected int, got null",
    ]


def test_a_merged_key_has_its_place_at_the_anchor(tmp_path: Path) -> None:
    text = """\
x-hooks: &hooks
  wake: 1
  sleep: s
  alive: a
x-more: &more {<<: *hooks, port: 0}
models:
  a: {<<: *hooks, port: 1}
  b:
    <<: *more
    sleep: 2
  c: {<<: [*more, *hooks], wake: w, port: 2, alive: 3}
"""
    assert lines(write(tmp_path, text)) == [
        "@2:3: models.a.wake: expected str, got int",
        "@2:3: models.b.wake: expected str, got int",
        "@10:5: models.b.sleep: expected str, got int",
        "@5:28: models.b.port: expected int >= 1",
        "@11:46: models.c.alive: expected str, got int",
    ]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.yaml", "- a\n", "@1:1: expected object, got array"),
        ("a.yaml", "\n# x\n  models: []\n", "@3:3: models: expected object, got array"),
        ("a.yaml", "a:\n  b: [1\nc: 2\n", "@3:2: expected ',' or ']', but got ':'"),
        ("a.yaml", "a: !!int x\n", "@1:4: not a YAML int"),
        (
            "a.yaml",
            "a:\n  b: \x07\n",
            "@2:6: unacceptable character #x0007: special characters are",
        ),
        ("a.yaml", "models: &m\n  llama: *m\n", "@2:3: models.llama: holds itself, by an alias"),
        ("a.json", ' [1,\n "NaN", NaN]', "@2:9: NaN is not JSON"),
        ("a.json", '{"port": -Infinity}', "@1:10: -Infinity is not JSON"),
        ("a.json", '{"port": ' + "1" * 500 + "}", "@1:10: a number of 500 digits"),
        ("a.json", '{"models": {},\n  ]', "@2:3: "),
        ("a.json", " 3", "@1:2: expected object, got int"),
        ("a.json", "{}", "@1:1: models: required key is missing"),
    ],
)
def test_the_file_itself(tmp_path: Path, name: str, text: str, line: str) -> None:
    (found,) = lines(write(tmp_path, text, name))
    assert found.startswith(line)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    assert lines(path) == ["@2:4: not UTF-8 text at byte 8"]


def test_remarks_and_policies(tmp_path: Path) -> None:
    text = f"models:\n  a: {{port: 1, {HOOKS.replace('wake: w', 'wake: ./no.sh')}}}\npolicy:\n  name: fifos\n"
    config = load_config(path := write(tmp_path, text))
    assert hook_remarks(config)[0].startswith(f"{path}:2:16: models.a.wake: there is no ./no.sh")
    with pytest.raises(ConfigError) as caught:
        load_policy(config.policy, config.directory, config.source)
    assert caught.value.lines[0].startswith(f"{path}:4:3: policy.name: unknown policy 'fifos'")
    assert caught.value.mistakes[0].startswith("policy.name: unknown policy 'fifos'")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_many_mistakes_take_no_time(tmp_path: Path, suffix: str) -> None:
    data = {"models": {"m": LLAMA | {"aliases": [5] * 1500}}}
    began = time.perf_counter()
    found = lines(write(tmp_path, json.dumps(data, indent=1), f"a.{suffix}"))
    assert found[-1].endswith("500 mistakes more")
    assert found[0].startswith("@9:5: models.m.aliases[0]")
    assert found[999].startswith("@1008:5: models.m.aliases[999]")
    assert time.perf_counter() - began < 30


# JSON of these is YAML, too.
TEXTS = st.text(alphabet='ab{}[]":, é\\#\n~', max_size=5)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def paths(value: Any, keys: tuple[Any, ...] = ()) -> Any:
    yield keys
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from paths(item, (*keys, key))


@settings(deadline=None)
@given(VALUES, st.sampled_from([None, 0, 2]))
def test_both_readers_find_the_same(data: Any, indent: int | None) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    one, other = (Source("a", text, is_yaml=is_yaml) for is_yaml in (True, False))
    for keys in paths(data):
        assert one.find(keys) == other.find(keys)
        assert other.find((*keys, "no such key")) == other.find(keys)
    assert other.find(()) == Place(1, 1)
