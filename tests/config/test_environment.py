"""`${env:NAME}` in the values of a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmux.api.masked import masked_config
from llmux.cli.terminal.target import find_url
from llmux.config import load_config, parse_config
from llmux.errors import ConfigError
from tests.config.test_config import LLAMA, mistakes, model, one_model, write
from tests.config.test_places import lines

SECRET = "sk-0123456789"


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "A": "alpha", "B": "beta", "PORT_": "8005", "NOTHING": "", "YES": "true", "TIME": "1h30m",
        "TEMPERATURE": "0.7", "NULL": "null", "WORD": "eight thousand", "MY_TOKEN": SECRET,
        "COLON": "a: [b", "DOLLAR": "${env:A}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


TEXTS = {
    "${env:A}": "alpha",
    "x ${env:A}/${env:B} y": "x alpha/beta y",
    "${env:UNSET:-c d}": "c d",
    "${env:NOTHING:-c}": "c",
    "-${env:NOTHING}-": "--",
    "${env:UNSET:-}.": ".",
    "${env:A:-c}": "alpha",
    "${env:UNSET:-${env:B}}": "beta",
    "${env:UNSET:-${env:UNSET:-x}}": "x",
    '${env:UNSET:-{"a": 1}}': '{"a": 1}',
    "${env:UNSET:-${PORT}}": "${PORT}",
    # Not ours
    "$${env:A} $A ${A} $$ ${env.A} ${PORT} ${x:-y} $${PORT}": "${env:A} $A ${A} $$ ${env.A} ${PORT} ${x:-y} $${PORT}",
    # Values are not looked into
    "${env:COLON}": "a: [b",
    "${env:DOLLAR}": "${env:A}",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert model(wake=text).wake == TEXTS[text]


def test_the_type_is_that_of_the_key(tmp_path: Path) -> None:
    text = """\
x-spare: ${env:UNSET}
x-hooks: &hooks {wake: "up ${env:A}", sleep: s, alive: a}
port: ${env:UNSET:-3456}
access_log: ${env:YES}
on_shutdown: ${env:UNSET:-sleep}
cors_origins: ["http://${env:A}"]
state_dir: state/${env:B}
policy: {max_wait_secs: "${env:TIME}", drain_timeout_secs: "${env:UNSET:-90}"}
models:
  a:
    <<: *hooks
    port: "${env:PORT_}"
    max_in_flight: ${env:NULL}
    aliases: ["${env:B}", "${env:PORT_}"]
    headers: {Authorization: "Bearer ${env:A}"}
    set: {temperature: "${env:TEMPERATURE}", name: "x${env:PORT_}", list: ["${env:YES}"]}
  b: {<<: *hooks, url: "http://${env:A}:${env:PORT_}"}
"""
    config = load_config(write(tmp_path, text))
    assert (config.port, config.access_log, config.on_shutdown) == (3456, True, "sleep")
    assert config.cors_origins == ("http://alpha",)
    assert config.state_dir == (tmp_path / "state/beta").resolve()
    assert (config.policy.max_wait_secs, config.policy.drain_timeout_secs) == (5400, 90)
    a, b = config.models.values()
    assert (a.port, a.max_in_flight, a.wake) == (8005, None, "up alpha")
    assert a.aliases == ("beta", "8005")
    assert a.headers == {"Authorization": "Bearer alpha"}
    assert a.set == {"temperature": 0.7, "name": "x8005", "list": [True]}
    assert b.base_url == "http://alpha:8005"
    for value in (config.on_shutdown, a.wake, *a.aliases, b.url, *config.cors_origins):
        assert type(value) is str
    json.dumps(masked_config(config))


def test_mistakes_have_places(tmp_path: Path) -> None:
    text = """\
host: ${env:UNSET}
port: ${env:WORD}
access_log: x${env:YES}
api_keys: ["${env:UNSET}"]
policy: {options: {deep: ["${env:}", "${env:A", "${env:A-b}"]}}
models:
  a: {port: "${env:UNSET:-0}", wake: w, sleep: s, alive: a, url: "${env:NULL}"}
"""
    form = "expected ${env:NAME} or ${env:NAME:-default}"
    assert lines(write(tmp_path, text)) == [
        "@1:1: host: the environment variable UNSET is not set (a default: ${env:UNSET:-...})",
        "@4:12: api_keys[0]: the environment variable UNSET is not set (a default: ${env:UNSET:-...})",
        f"@5:27: policy.options.deep[0]: {form}",
        f"@5:38: policy.options.deep[1]: {form}",
        f"@5:49: policy.options.deep[2]: {form}",
        "@2:1: port: expected int, got str (from WORD)",
        "@3:1: access_log: expected bool, got str (from YES)",
        "@7:7: models.a.port: expected int >= 1",
    ]


def test_a_missing_variable_is_one_mistake_wherever_it_is_repeated(tmp_path: Path) -> None:
    text = """\
models:
  a: &a {port: "${env:UNSET}", wake: w, sleep: s, alive: a}
  b: *a
"""
    (line,) = lines(write(tmp_path, text))
    assert line.startswith("@2:10: models.a.port: the environment variable UNSET is not set")


def test_odd_values_stay_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("9" * 1000, ".inf", ".NaN", ""):
        monkeypatch.setenv("ODD", text)
        assert model(set={"t": "${env:ODD}"}).set == {"t": text}
        assert len(mistakes(one_model(port="${env:ODD}"))) == 1


def test_short_values_are_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "a"):
        monkeypatch.setenv("MY_TOKEN", text)
        config = parse_config(one_model(wake="up a ${env:MY_TOKEN}"))
        assert masked_config(config)["models"]["llama"]["wake"] == f"up a {text}"


def test_conflicts_see_the_values() -> None:
    data = one_model() | {"port": 8005, "control": {"port": "${env:PORT_}"}}
    assert mistakes(data) == ["control.port: is the main listener's port"]
    assert mistakes(one_model(aliases=["x"]) | {"default_model": "${env:A}"}) == [
        "default_model: 'alpha' is no model, nor an alias of one"
    ]
    assert data["control"] == {"port": "${env:PORT_}"}  # the caller's data is as it was


def test_secrets_are_not_shown() -> None:
    data = one_model(
        headers={"X-Key": "k ${env:MY_TOKEN}"},
        wake="HF=${env:MY_TOKEN} ./up ${env:A}",
        url=None,
    )
    config = parse_config(data | {"api_keys": ["${env:MY_TOKEN}", "pre-${env:B}"]})
    assert config.api_keys.texts == (SECRET, "pre-beta")
    assert config.secret_variables >= {"MY_TOKEN", "B"}
    assert SECRET in config.secrets
    assert "alpha" not in config.secrets
    assert SECRET not in repr(config.hidden)
    shown = masked_config(config)
    assert SECRET not in json.dumps(shown)
    assert shown["models"]["llama"]["wake"] == "HF=*** ./up alpha"


def test_mistakes_do_not_quote_values() -> None:
    found = mistakes(one_model() | {"cors_origins": ["${env:MY_TOKEN}"]})
    assert found == [
        "cors_origins[0]: expected an origin such as https://example.org, got '${env:MY_TOKEN}' (from MY_TOKEN)"
    ]
    assert SECRET not in "".join(
        mistakes(one_model() | {"api_keys": ["${env:MY_TOKEN}", "${env:WORD}"]})
    )


def test_one_anchor_used_twice_is_replaced_for_both(tmp_path: Path) -> None:
    text = f"""\
models:
  a: &a {{port: "${{env:PORT_}}", wake: w, sleep: s, alive: a, set: &s {{t: "${{env:TEMPERATURE}}"}}}}
  b: *a
  c: {{<<: *a, force: {{u: *s}}, port: 1}}
  d: {json.dumps(LLAMA)}
"""
    models: Any = load_config(write(tmp_path, text)).models
    assert [each.port for each in models.values()] == [8005, 8005, 1, 8001]
    assert models["b"].set == {"t": 0.7}
    assert models["c"].force == {"u": {"t": 0.7}}


def test_commands_find_the_running_llmux(tmp_path: Path) -> None:
    path = write(tmp_path, 'port: "${env:PORT_}"\nhost: ${env:UNSET:-127.0.0.2}\n')
    assert find_url(None, path, {}) == "http://127.0.0.2:8005"


def test_a_mistake_in_json(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(one_model(wake="${env:UNSET}")), "a.json")
    with pytest.raises(ConfigError, match=r"a\.json:1:37: models\.llama\.wake: the environment"):
        load_config(path)
