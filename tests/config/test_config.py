from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.config import (
    Config,
    GroupConfig,
    HookName,
    HookTimeouts,
    Limits,
    ModelConfig,
    PolicyConfig,
    config_schema,
    default_config_path,
    load_config,
    parse_config,
)
from llmux.errors import ConfigError

LLAMA: dict[str, Any] = {"port": 8001, "wake": "up", "sleep": "down", "alive": "ping"}
HOOKS = {key: LLAMA[key] for key in ("wake", "sleep", "alive")}


def one_model(**keys: Any) -> dict[str, Any]:
    """A config with one good model, changed by `keys`."""
    return {"models": {"llama": LLAMA | keys}}


def model(**keys: Any) -> ModelConfig:
    return parse_config(one_model(**keys)).models["llama"]


def mistakes(data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    return caught.value.mistakes


def write(tmp_path: Path, text: str, name: str = "llmux.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def load_mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value.mistakes


# --- Good configs --------------------------------------------------------------------------------


def test_defaults() -> None:
    config = parse_config({"models": {"llama": LLAMA}})
    assert (config.host, config.port, config.fallback, config.path) == (
        "127.0.0.1",
        3000,
        None,
        None,
    )
    assert config.directory == Path.cwd()
    assert config.policy == PolicyConfig(
        name="adaptive",
        request_timeout_secs=None,
        drain_before_switch=True,
        drain_timeout_secs=None,
        min_active_secs=0.0,
        options={},
    )
    assert config.limits == Limits(
        body_bytes=67108864,
        queued_per_model=1000,
        queued_bytes=1073741824,
        client_stall_secs=60.0,
        header_fields=128,
    )
    assert not config.http2
    llama = config.models["llama"]
    assert llama == ModelConfig(name="llama", **LLAMA)
    assert (llama.group, llama.aliases, llama.headers) == ("default", (), {})


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml", ".conf"])
def test_a_file_of_upstream_llmux_loads(tmp_path: Path, suffix: str) -> None:
    data = {
        "models": {"llama": LLAMA},
        "policy": {"request_timeout_secs": 30},
        "port": 3000,
    }
    text = yaml.safe_dump(data) if suffix.startswith(".y") else json.dumps(data)
    path = write(tmp_path, text, f"config{suffix}")
    config = load_config(path)
    assert config.models["llama"].port == 8001
    assert config.policy.request_timeout_secs == 30.0
    assert (config.path, config.directory) == (path, tmp_path)


def test_everything_the_contract_shows_loads(tmp_path: Path) -> None:
    text = """
        host: 0.0.0.0
        port: 0
        state_dir: state
        x-shared: &hooks {wake: ./wake.sh, sleep: ./sleep.sh, alive: "true"}
        models:
          facebook/opt-125m:
            <<: *hooks
            url: https://10.0.0.5:8000/prefix/
            prefetch: ./prefetch.sh
            verify_asleep: ./verify.sh
            aliases: [gpt-4o, "4"]
            upstream_model: meta-llama/Llama-3.1-8B
            headers: {Authorization: Bearer x}
            group: second
            hook_timeouts: {wake: 900, alive: null}
        policy: {name: "my.package:Policy", min_active_secs: 5, options: {weights: {a: 1}}}
        limits: {queued_per_model: 7}
        fallback: http://localhost:9000
    """
    config = load_config(write(tmp_path, text))
    opt = config.models["facebook/opt-125m"]
    assert (opt.name, opt.group, opt.wake) == ("facebook/opt-125m", "second", "./wake.sh")
    assert opt.hook_timeouts == HookTimeouts(wake=900.0, alive=None)
    assert opt.headers == {"Authorization": "Bearer x"}
    assert config.policy.options == {"weights": {"a": 1}}
    assert config.limits == Limits(queued_per_model=7)
    assert config.state_dir == (tmp_path / "state").resolve()
    assert config.names == {
        "facebook/opt-125m": "facebook/opt-125m",
        "gpt-4o": "facebook/opt-125m",
        "4": "facebook/opt-125m",
    }


def test_hooks_by_name() -> None:
    llama = model(prefetch="fetch", hook_timeouts={"sleep": 5})
    scripts: dict[HookName, str | None] = {
        "wake": "up",
        "sleep": "down",
        "alive": "ping",
        "prefetch": "fetch",
        "verify_asleep": None,
    }
    assert {hook: llama.script(hook) for hook in scripts} == scripts
    assert {hook: llama.timeout_s(hook) for hook in scripts} == {
        "wake": 600.0,
        "sleep": 5.0,
        "alive": 10.0,
        "prefetch": 600.0,
        "verify_asleep": 30.0,
    }


@pytest.mark.parametrize(
    ("keys", "url"),
    [
        ({"port": 8001}, "http://127.0.0.1:8001"),
        ({"port": 8001, "host": "gpu_box-1.lan"}, "http://gpu_box-1.lan:8001"),
        ({"port": 8001, "host": "::1"}, "http://[::1]:8001"),
        ({"url": "http://10.0.0.5:8000"}, "http://10.0.0.5:8000"),
        ({"url": "https://example.com/v2/"}, "https://example.com/v2"),
        ({"url": "http://[::1]:8001"}, "http://[::1]:8001"),
        ({"url": "http://box", "port": None}, "http://box"),
    ],
)
def test_base_url(keys: dict[str, Any], url: str) -> None:
    assert parse_config({"models": {"m": HOOKS | keys}}).models["m"].base_url == url


# --- Mistakes ------------------------------------------------------------------------------------

BAD_VALUES: list[tuple[object, str]] = [
    # top level
    ([], "config: expected object, got array"),
    (None, "config: expected object, got null"),
    ({}, "models: required key is missing"),
    ({"models": {}}, "models: needs at least one model"),
    ({"models": []}, "models: expected object, got array"),
    (one_model() | {"port": 65536}, "port: expected int <= 65535"),
    (one_model() | {"port": True}, "port: expected int, got bool"),
    (one_model() | {"on_shutdown": "nap"}, "on_shutdown: expected 'leave' or 'sleep', got 'nap'"),
    (one_model() | {"host": "a b"}, "host: expected a host name or IP address"),
    (one_model() | {"state_dir": 1}, "state_dir: expected str, got int"),
    (one_model() | {"state_dir": " "}, "state_dir: must not be blank"),
    (one_model() | {"fallback": "x:1"}, "fallback: must start with http:// or https://"),
    (one_model() | {"directory": "/"}, "directory: unknown key, known are"),
    (one_model() | {"polcy": {}}, "polcy: unknown key, did you mean 'policy'?"),
    (one_model() | {1: 2}, "[1]: unknown key, known are"),
    # a model's shape
    ({"models": {"llama": None}}, "models.llama: expected object, got null"),
    ({"models": {"a.b": LLAMA | {"port": ""}}}, 'models["a.b"].port: expected int, got str'),
    ({"models": {"a\nb": LLAMA}}, r'models["a\nb"]: must hold printable characters only'),
    ({"models": {"": LLAMA}}, 'models[""]: must not be blank'),
    ({"models": {7: LLAMA}}, "models[7]: the key must be a string: put it in quotes"),
    ({"models": {"org/opt": LLAMA | {"wake": 1}}}, "models.org/opt.wake: expected str, got int"),
    (one_model(prot=1), "models.llama.prot: unknown key, did you mean 'port'?"),
    (one_model(name="x"), "models.llama.name: unknown key"),
    # where the backend is
    (one_model(port="8001"), "models.llama.port: expected int, got str"),
    (one_model(port=8001.0), "models.llama.port: expected int, got float"),
    (one_model(port=0), "models.llama.port: expected int >= 1"),
    (one_model(url="http://a"), "models.llama: give 'port' or 'url', not both"),
    (one_model(port=None), "models.llama: give 'port' or 'url'"),
    (one_model(port=None, url="http://a", host="b"), "models.llama.host: goes with 'port' only"),
    *(
        (one_model(host=host), "models.llama.host: expected a host name or IP address")
        for host in ("", "-a", "a..b", "1.2.3", "1.2.3.456", "[::1]", "fe80::1%eth0", "a\n", "é")
    ),
    *(
        (one_model(port=None, url=url), f"models.llama.url: {message}")
        for url, message in [
            ("localhost:8001", "must start with http:// or https://"),
            ("ftp://a", "must start with http:// or https://"),
            ("http://", "expected a host name or IP address"),
            ("http://a b", "must be ASCII without spaces (percent-encode anything else)"),
            ("http://a\n", "must be ASCII without spaces (percent-encode anything else)"),
            ("http://a?b", "must not hold a query or fragment"),
            ("http://a/#", "must not hold a query or fragment"),
            ("http://a:99999", "not a URL: Port out of range 0-65535"),
            ("http://a:0", "the port must be 1 to 65535"),
            ("http://a:/", "the port must be 1 to 65535"),
            ("http://[::1", "not a URL: Invalid IPv6 URL"),
            (
                "http://u:p@a",
                "must not hold credentials (send an Authorization header instead)",
            ),
        ]
    ),
    # hooks, names, headers
    *(
        ({"models": {"m": {k: v for k, v in LLAMA.items() if k != hook}}}, f"models.m.{hook}: re")
        for hook in ("wake", "sleep", "alive")
    ),
    (one_model(wake=" \n"), "models.llama.wake: must not be blank"),
    (one_model(prefetch=""), "models.llama.prefetch: must not be blank"),
    (one_model(sleep="a\0b"), "models.llama.sleep: must not hold NUL or half a surrogate pair"),
    (one_model(wake="\ud800"), "models.llama.wake: must not hold NUL or half a surrogate pair"),
    (one_model(hook_timeouts={"wake": 0}), "models.llama.hook_timeouts.wake: expected float > 0.0"),
    (one_model(hook_timeouts={"wak": 1}), "models.llama.hook_timeouts.wak: unknown key, did you"),
    (one_model(hook_timeouts=[]), "models.llama.hook_timeouts: expected object, got array"),
    (one_model(aliases="a"), "models.llama.aliases: expected array, got str"),
    (one_model(aliases=["a", 1]), "models.llama.aliases[1]: expected str, got int"),
    (one_model(aliases=[""]), "models.llama.aliases[0]: must not be blank"),
    (one_model(aliases=["llama"]), "models.llama.aliases[0]: 'llama' is the name of a model"),
    (one_model(aliases=["a", "a"]), "models.llama.aliases[1]: 'a' is an alias of 'llama' already"),
    (one_model(headers={"a b": ""}), 'models.llama.headers["a b"]: not a legal header name'),
    (one_model(headers={"Host": "x"}), "models.llama.headers.Host: this header is llmux's to set"),
    (one_model(headers={"te": ""}), "models.llama.headers.te: this header is llmux's to set"),
    (one_model(headers={"a": 1}), "models.llama.headers.a: expected str, got int"),
    (
        one_model(headers={"a": "b\r\nc: d"}),
        "models.llama.headers.a: must not hold line breaks or control characters",
    ),
    # policy and limits
    *(
        (one_model() | {"policy": {key: value}}, f"policy.{key}: {message}")
        for key, value, message in [
            ("name", "", "must not be blank"),
            ("request_timeout_secs", -1, "expected float >= 0.0"),
            ("request_timeout_secs", "30", "expected float, got str"),
            ("request_timeout_secs", float("inf"), "must be a finite number"),
            ("request_timeout_secs", 10**400, "number out of range"),
            ("drain_before_switch", 1, "expected bool, got int"),
            ("min_active_secs", -1, "expected float >= 0.0"),
            ("min_active_secs", True, "expected float, got bool"),
            ("min_active_secs", None, "expected float, got null"),
            ("options", None, "expected object, got null"),
        ]
    ),
    (one_model() | {"limits": {"body_bytes": 0}}, "limits.body_bytes: expected int >= 1"),
    (
        one_model() | {"limits": {"x-no": 1}},
        "limits.x-no: unknown key, known are body_bytes, body_secs, client_stall_secs, connections, ",
    ),
]


@pytest.mark.parametrize(("data", "line"), BAD_VALUES)
def test_one_mistake_is_one_line(data: object, line: str) -> None:
    (found,) = mistakes(data)
    assert found.startswith(line)


def test_all_mistakes_show_at_once() -> None:
    data = {
        "models": {
            "a": {"port": "x", "url": "http://b", "wake": 1, "sleep": "", "aliases": ["b"]},
            "b": 5,
            "c": LLAMA | {"aliases": ["z", 3], "headers": {"host": "h", "ok": "1"}},
            "d": LLAMA | {"aliases": ["z"]},
        },
        "policy": [],
        "limits": {"client_stall_secs": -1, "bodybytes": 1},
        "x-yes": 1,
    }
    assert mistakes(data) == [
        "models.a.port: expected int, got str",
        "models.a.wake: expected str, got int",
        "models.a.sleep: must not be blank",
        "models.a.alive: required key is missing",
        "models.a: give 'port' or 'url', not both",
        "models.b: expected object, got int",
        "models.c.aliases[1]: expected str, got int",
        "models.c.headers.host: this header is llmux's to set",
        "policy: expected object, got array",
        "limits.client_stall_secs: expected float > 0.0",
        "limits.bodybytes: unknown key, did you mean 'body_bytes'?",
        "models.a.aliases[0]: 'b' is the name of a model",
        "models.d.aliases[0]: 'z' is an alias of 'c' already",
    ]


# --- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "", "the file is empty"),
        ("a.yaml", "# nothing\n", "the file is empty"),
        ("a.json", " \n", "the file is empty"),
        ("a.yaml", "- a\n", "expected object, got array"),
        ("a.json", "3", "expected object, got int"),
        ("a.json", '{"models": {},\n  ]', "line 2, column 3: "),
        ("a.json", '{"port": NaN}', "NaN is not JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.yaml", "[" * 5_000, "nested too deeply"),
        ("a.yaml", "a:\n  b: [1\nc: 2\n", "line 3, column 2: expected ',' or ']', but got ':'"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "line 2, column 1: but found another document"),
        (
            "a.yaml",
            "a:\n\tb: 1\n",
            "line 2, column 1: found character '\\t' that cannot start any token (YAML is "
            "indented with spaces)",
        ),
        (
            "a.yaml",
            "a:\n  b: 1\n c: 2\n",
            "line 3, column 2: expected <block end>, but found '<block mapping start>' (is the line "
            "indented like its neighbours?)",
        ),
        ("a.yaml", "a: *b\n", "line 1, column 4: found undefined alias 'b'"),
        ("a.yaml", "a: !!python/name:os.system\n", "line 1, column 4: could not determine"),
        ("a.yaml", "a: !!timestamp x\n", "line 1, column 4: could not determine"),
        ("a.yaml", "a: !!int x\n", "line 1, column 4: not a YAML int"),
        ("a.yaml", "a: !!bool [x]\n", "line 1, column 4: not a YAML bool"),
        ("a.yaml", "? [a]\n: b\n", "line 1, column 3: found unhashable key"),
        ("a.yaml", "a: \x07\n", "unacceptable character #x0007"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = write(tmp_path, text, name)
    (line,) = load_mistakes(path)
    assert line.startswith(f"{path}: {message}")
    assert "\n" not in line


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert load_mistakes(missing) == [f"{missing}: cannot be read: No such file or directory"]
    assert load_mistakes(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"{\xff}")
    assert load_mistakes(binary) == [f"{binary}: not UTF-8 text at byte 1"]


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(one_model()), encoding="utf-8-sig")
    assert load_config(path).names == {"llama": "llama"}


def test_duplicate_keys_show_beside_other_mistakes(tmp_path: Path) -> None:
    yaml_text = """
        port: 1
        models:
          a.b: {port: 1, wake: w, sleep: s, alive: a, port: 2, "wake": x}
          c: 5
        port: 2
        policy: {options: {deep: [{k: 1, k: 2}]}}
    """
    expected = [
        "port: duplicate key",
        'models["a.b"].port: duplicate key',
        'models["a.b"].wake: duplicate key',
        "policy.options.deep[0].k: duplicate key",
        "models.c: expected object, got int",
    ]
    assert load_mistakes(write(tmp_path, yaml_text)) == expected
    json_text = """{
        "port": 1,
        "models": {
            "a.b": {"port": 1, "wake": "w", "sleep": "s", "alive": "a", "port": 2, "wake": "x"},
            "c": 5
        },
        "port": 2,
        "policy": {"options": {"deep": [{"k": 1, "k": 2}]}}
    }"""
    assert load_mistakes(write(tmp_path, json_text, "a.json")) == expected


def test_a_merged_key_that_is_overridden_is_no_duplicate(tmp_path: Path) -> None:
    text = """
        x-a: {b: &late {<<: &base {wake: w, sleep: s, alive: a, port: 1}, port: 2}}
        models:
          first: {<<: *base, port: 3}
          second: {<<: *late}
          third: {<<: [*late, *base], wake: mine}
    """
    models = load_config(write(tmp_path, text)).models
    assert [(m.port, m.wake) for m in models.values()] == [(3, "w"), (2, "w"), (2, "mine")]


def test_a_mapping_that_holds_itself_does_no_harm(tmp_path: Path) -> None:
    text = "models: &m {llama: *m}\n"
    assert load_mistakes(write(tmp_path, text)) == ["models.llama: holds itself, by an alias"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("1:30", "yes", "no", "on", "off", "Yes", "2024-01-02", "=")),
        *((word, word) for word in ("1_000", "0b1", "1e", "0o8", "+0x1", "nULL", "inf", "'1'")),
        *((word, None) for word in ("~", "null", "Null", "NULL", "")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False", "FALSE")),
        *(("0o17", 15), ("0x1F", 31), ("017", 17), ("-3", -3), ("+3", 3)),
        *(("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), ("-1E-2", -0.01)),
        *((".inf", float("inf")), ("-.INF", -float("inf"))),
    ],
)
def test_yaml_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    file = f"models: {{m: {json.dumps(LLAMA)}}}\npolicy:\n  options:\n    it: {text}\n"
    found = load_config(write(tmp_path, file)).policy.options["it"]
    expected = "1" if text == "'1'" else value
    assert (found, type(found)) == (expected, type(expected))


# --- Where things are ----------------------------------------------------------------------------


def test_state_dir_is_the_configs_own_by_default(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(one_model()), "my.conf.json")
    link = tmp_path / "my.conf.link"
    link.symlink_to(path)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    root = platformdirs.user_state_path("llmux", appauthor=False)
    assert load_config(path).state_dir == root / f"my.conf-{digest}"
    assert load_config(link).state_dir == root / f"my.conf-{digest}"
    without_file = parse_config(one_model(), directory=tmp_path)
    assert without_file.state_dir.parent == root
    assert without_file.directory == tmp_path


def test_state_dir_of_a_service_is_below_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/llmux:/var/lib/other")
    path = write(tmp_path, json.dumps(one_model()), "llmux.json")
    assert load_config(path).state_dir.parent == Path("/var/lib/llmux")
    given_dir = parse_config(one_model() | {"state_dir": "/srv/s"}, path=path)
    assert given_dir.state_dir == Path("/srv/s").resolve()


def test_state_dir_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path.resolve()
    for given_dir, resolved in [
        ("state", folder / "state"),
        ("../state", folder.parent / "state"),
        ("~/state", folder / "home/state"),
        ("/var/lib/x", Path("/var/lib/x").resolve()),
    ]:
        data = one_model() | {"state_dir": given_dir}
        assert parse_config(data, path=tmp_path / "a.yaml").state_dir == resolved
    (line,) = mistakes(one_model() | {"state_dir": "~no-such-user/x"})
    assert line.startswith("state_dir: not a usable path: ")


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, json.dumps(one_model()), "config.json")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("config.json"))
    assert (config.path, config.directory) == (Path.cwd() / "config.json", Path.cwd())


def test_a_config_that_may_be_meant_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").mkdir()
    write(tmp_path, "", "llmux.yml")
    with pytest.raises(ConfigError) as caught:
        default_config_path({})
    lines = str(caught.value).splitlines()
    assert "$LLMUX_CONFIG is not set" in lines[0]
    assert "./config.yaml is there, but is not a file" in lines
    assert "./llmux.yml is there, but is not looked for: llmux -c llmux.yml" in lines


def test_default_config_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        default_config_path({"LLMUX_CONFIG": ""})
    (line,) = caught.value.mistakes
    assert all(part in line for part in ("$LLMUX_CONFIG", "./llmux.yaml", "./config.yaml", "-c"))
    assert f" in {tmp_path};" in line
    assert "$LLMUX_CONFIG is empty" in line
    assert "llmux init RECIPE" in line
    assert "llmux demo" in line
    write(tmp_path, "", "config.yaml")
    assert default_config_path({}) == Path("config.yaml")
    write(tmp_path, "", "llmux.yaml")
    assert default_config_path({}) == Path("llmux.yaml")
    assert default_config_path({"LLMUX_CONFIG": "other.json"}) == Path("other.json")


# --- The schema ----------------------------------------------------------------------------------


def test_schema_knows_every_key_and_no_other() -> None:
    schema = config_schema()
    json.dumps(schema)  # holds nothing that JSON cannot
    shapes = schema["$defs"]
    assert schema["$ref"] == "#/$defs/Config"
    assert set(shapes) == {
        "AliasConfig", "ErrorsConfig", "Config", "ControlConfig", "GroupConfig", "HookTimeouts", "Limits", "ModelConfig",
        "PolicyConfig", "TlsConfig",
    }  # fmt: skip
    for shape in shapes.values():
        assert shape["additionalProperties"] is False
        assert all(prop["description"] for prop in shape["properties"].values())
        assert "Attributes" not in shape["description"]
    assert {"path", "directory"}.isdisjoint(shapes["Config"]["properties"])
    assert "name" not in shapes["ModelConfig"]["properties"]
    assert "name" in shapes["PolicyConfig"]["properties"]
    assert shapes["Config"]["required"] == ["models"]
    own_hooks, recipe = shapes["ModelConfig"]["anyOf"]
    assert set(own_hooks["required"]) == {"wake", "sleep", "alive"}
    assert recipe["required"] == ["recipe"]
    assert shapes["Config"]["patternProperties"] == {"^x-": {}}
    assert shapes["Config"]["properties"]["state_dir"]["type"] == "string"


# --- Anything at all -----------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *Config.__struct_fields__,
        *ModelConfig.__struct_fields__,
        *GroupConfig.__struct_fields__,
        *PolicyConfig.__struct_fields__,
        *Limits.__struct_fields__,
        "with",
        "a.b",
        "x-y",
        "prot",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["http://a", "~root", "/x", "a", "process"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5)
        | st.dictionaries(st.integers() | st.none() | st.booleans(), inner, max_size=2)
    ),
    max_leaves=20,
)


def sections_of(keys: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, ANYTHING))


MODELS = st.dictionaries(
    st.text(max_size=4),
    sections_of(ModelConfig.__struct_fields__).map(lambda keys: LLAMA | keys) | ANYTHING,
    max_size=3,
)
CONFIGS = st.fixed_dictionaries(
    {"models": MODELS},
    optional={
        "policy": sections_of(PolicyConfig.__struct_fields__),
        "limits": sections_of(Limits.__struct_fields__),
        "resources": ANYTHING,
        "sets": ANYTHING,
        "state_dir": st.text(),
        "host": st.text(),
        "fallback": st.text().map("http://{}".format),
    },
)


@settings(deadline=None)
@given(ANYTHING | CONFIGS)
def test_any_data_loads_or_is_a_config_error(data: object) -> None:
    try:
        parse_config(data)
    except ConfigError as error:
        lines = error.mistakes
    else:
        return
    assert lines
    assert not any("\n" in line for line in lines)
    "".join(lines).encode()  # can be printed


@settings(deadline=None)
@given(st.text() | st.text(alphabet="{}[]:,&*!<-?|>\"' \n#%@`ab01.~x"))
def test_any_text_loads_or_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.yaml", "any.json"):
        path = folder / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        (line, *_) = load_mistakes(path)
        assert line
