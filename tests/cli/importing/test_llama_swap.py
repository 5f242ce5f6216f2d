"""`llmux import llama-swap`: each thing that its configs say, in a config of ours or in a note."""

from __future__ import annotations

import random
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llmux.cli.importing.coexistence import allowed_by_groups, allowed_by_sets, make_groups
from llmux.cli.importing.commandlines import port_of, shell_words
from llmux.cli.importing.draft import Draft, ModelDraft
from llmux.cli.importing.llama_swap import read_llama_swap
from llmux.cli.importing.matrix import read_matrix
from llmux.cli.importing.writing import write_draft
from llmux.cli.main import main
from llmux.config import load_config
from llmux.config.files import decode
from llmux.errors import ConfigError


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(text: str) -> Draft:
        path = tmp_path / "swap.yaml"
        path.write_text(text)
        return read_llama_swap(path)

    return read


# ---- Models ----


def test_two_models_take_three_lines_each(read: Any) -> None:
    draft = read("""
models:
  qwen:
    cmd: llama-server -m /models/qwen.gguf --port ${PORT}
  gemma:
    cmd: |
      # a comment with ${NO_MACRO}
      llama-server \\
        -m "/models/gemma 3.gguf" --port ${PORT}
""")
    assert {name: model.values for name, model in draft.models.items()} == {
        "qwen": {
            "recipe": "process",
            "with": {"command": "llama-server -m /models/qwen.gguf --port ${PORT}"},
        },
        "gemma": {
            "recipe": "process",
            "with": {"command": "llama-server -m '/models/gemma 3.gguf' --port ${PORT}"},
        },
    }
    assert not draft.notes
    assert not any(model.notes for model in draft.models.values())
    lines = [line for line in write_draft(draft).splitlines() if line and not line.startswith("#")]
    assert len(lines) == 7


EVERYTHING = """
healthCheckTimeout: 5
globalTTL: 600
startPort: 7000
sendLoadingState: true
logLevel: debug
apiKeys: ["sk-1", "${env.KEY}"]
macros:
  bin: /opt/llama-server
  ctx: 4096
  base: ${bin} --port ${PORT} -c ${ctx}
hooks: {on_startup: {preload: [small]}}
models:
  big:
    macros: {ctx: 8192, flash: true}
    cmd: ${base} -m ${env.HOME}/${MODEL_ID}.gguf --flash ${flash}
    env: ["CUDA_VISIBLE_DEVICES=0,1", "NAME=two words"]
    aliases: [small, gpt-4o]
    checkEndpoint: /ready
    ttl: 0
    unlisted: true
    useModelName: org/big
    concurrencyLimit: 4
    unloadTimeout: 20
    compat: {ignoreWebsockets: true}
    filters:
      stripParams: "temperature, model,top_p"
      setParams: {seed: 1, model: no}
      setParamsByID:
        ${MODEL_ID}:high: {effort: high}
        gpt-4o: {ctx: "${ctx}"}
  stopped:
    cmd: docker run --name ${MODEL_ID} -p 9001:8080 image
    cmdStop: docker stop ${MODEL_ID}
    proxy: http://127.0.0.1:9001
  elsewhere:
    cmd: serve --port ${PORT}
    cmdStop: kill ${PID}
    proxy: http://127.0.0.1:${PORT}/api
    ttl: -1
  guessed:
    cmd: sd-server --listen-port=9002
  unknown:
    cmd: serve
peers:
  far:
    proxy: https://far.example/api/
    apiKey: ${env.FAR_KEY}
    models: [m/x, big]
    filters: {stripParams: top_k, setParams: {zdr: true}}
"""


def test_every_key_of_a_model(read: Any) -> None:
    draft = read(EVERYTHING)
    models = {name: model.values for name, model in draft.models.items()}
    timeouts = {"wake": 15}
    assert models == {
        "big": {
            "recipe": "process",
            "with": {
                "command": "env CUDA_VISIBLE_DEVICES=0,1 'NAME=two words' /opt/llama-server --port ${PORT} -c 8192 "
                "-m ${env:HOME}/big.gguf --flash true",
                "health": "/ready",
                "stop_secs": 20,
            },
            "aliases": [
                "small",
                {"name": "gpt-4o", "force": {"ctx": 8192}},
                {"name": "big:high", "force": {"effort": "high"}},
            ],
            "upstream_model": "org/big",
            "drop": ["temperature", "top_p"],
            "force": {"seed": 1},
            "max_in_flight": 4,
            "websocket": "ignore",
            "hook_timeouts": timeouts,
        },
        "stopped": {
            "recipe": "process",
            "with": {"command": "docker run --name stopped -p 9001:8080 image"},
            "port": 9001,
            "sleep": "docker stop stopped || true",
            "idle_sleep_secs": 600,
            "hook_timeouts": timeouts,
        },
        "elsewhere": {
            "recipe": "process",
            "with": {"command": "serve --port 7001"},
            "url": "http://127.0.0.1:7001/api",
            "idle_sleep_secs": 600,
            "hook_timeouts": timeouts,
        },
        "guessed": {
            "recipe": "process",
            "with": {"command": "sd-server --listen-port=9002"},
            "port": 9002,
            "idle_sleep_secs": 600,
            "hook_timeouts": timeouts,
        },
        "unknown": {
            "recipe": "process",
            "with": {"command": "serve"},
            "idle_sleep_secs": 600,
            "hook_timeouts": timeouts,
        },
        "far/m/x": {
            "url": "https://far.example/api",
            "group": "far/m/x",
            "upstream_model": "m/x",
            "wake": "true",
            "sleep": "true",
            "alive": "true",
            "headers": {"Authorization": "Bearer ${env:FAR_KEY}"},
            "drop": ["top_k"],
            "force": {"zdr": True},
            "aliases": ["m/x"],
        },
        "far/big": {  # the model of this machine has the short name
            "url": "https://far.example/api",
            "group": "far/big",
            "upstream_model": "big",
            "wake": "true",
            "sleep": "true",
            "alive": "true",
            "headers": {"Authorization": "Bearer ${env:FAR_KEY}"},
            "drop": ["top_k"],
            "force": {"zdr": True},
        },
    }
    assert draft.values == {
        "groups": {"default": {"preload": "big"}},
        "api_keys": ["sk-1", "${env:KEY}"],
        "policy": {"waiting_keepalive_secs": 10},
    }
    notes = {name: " ".join(model.notes) for name, model in draft.models.items()}
    assert "requests wait" in notes["big"]
    assert "unlisted" in notes["big"]
    assert "${PID}" in notes["elsewhere"]
    assert "$PORT" in notes["unknown"]
    assert any(note.startswith("logLevel:") for note in draft.notes)


@pytest.mark.parametrize(
    ("endpoint", "health"),
    [("ready", "/ready"), ("v1/models", "/v1/models"), ("none", "none"), ("/x", "/x")],
)
def test_a_health_path_may_lack_its_slash_there(read: Any, endpoint: str, health: str) -> None:
    model = f"{{cmd: 'serve --port ${{PORT}}', checkEndpoint: {endpoint}}}"
    draft = read(f"models: {{m: {model}}}")
    assert draft.models["m"].values["with"]["health"] == health


def test_each_key_that_is_left_out_is_named(read: Any) -> None:
    draft = read("""
newInFuture: 1
profiles: {a: {pins: {b: c}}}
x-anchors: &a {ttl: 5}
models:
  m: {<<: *a, cmd: serve --port 1, brandNew: 2, metadata: {a: 1}}
""")
    assert [note.partition(":")[0] for note in draft.notes] == ["newInFuture", "profiles"]
    assert [note.partition(":")[0] for note in draft.models["m"].notes] == ["brandNew", "metadata"]
    assert draft.models["m"].values["idle_sleep_secs"] == 5


def test_fields_that_no_filter_may_change_are_left_out_and_named(read: Any) -> None:
    draft = read("""
models:
  m:
    cmd: serve --port 1
    filters:
      stripParams: model, stream, top_k, Model.x
      setParams: {model: a, stream: true, "1": 1}
      setParamsByID: {"m:fast": {Stream: false, n: 1}, "m:plain": {stream: true}}
peers:
  p: {proxy: "https://p.example", models: [q], filters: {stripParams: stream}}
""")
    values, notes = draft.models["m"].values, draft.models["m"].notes
    assert values["drop"] == ["top_k"]
    assert values["force"] == {"1": 1}
    assert values["aliases"] == [{"name": "m:fast", "force": {"n": 1}}, {"name": "m:plain"}]
    named = [note.partition(": ")[0] for note in notes if note.startswith("filters")]
    assert named == ["filters, stream", "filters, Stream", "filters, Model.x"]
    (peer,) = (model for name, model in draft.models.items() if name != "m")
    assert "drop" not in peer.values
    assert any(note.startswith("filters, stream:") for note in peer.notes)


# ---- Command lines ----


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("a  b\n c", ["a", "b", "c"]),
        ("a \\\n  b \\\n", ["a", "b"]),
        ("a\n# not this\n  # nor this\nb", ["a", "b"]),
        ("a 'b c' \"d;e\" f\\ g", ["a", "'b c'", "'d;e'", "'f g'"]),
        ("a $HOME `x` *", ["a", "'$HOME'", "'`x`'", "'*'"]),  # llama-swap runs no shell
        ("a --url=http://x:${PORT}/y", ["a", "--url=http://x:${PORT}/y"]),
        ("a 'x ${PORT} $y \"z\"'", ["a", '"x ${PORT} \\$y \\"z\\""']),
        ("a ''", ["a", "''"]),
    ],
)
def test_words_are_quoted_for_a_shell(command: str, words: list[str]) -> None:
    assert shell_words(command, "here") == words


@pytest.mark.parametrize("command", ["", "  \n# only a comment", "a 'b"])
def test_no_command(command: str) -> None:
    with pytest.raises(ConfigError, match="here: "):
        shell_words(command, "here")


def test_ports_are_found() -> None:
    assert port_of("a --port 80") == 80
    assert port_of("a --listen-port=81 b") == 81
    assert port_of("a --report 80 --port x --port 8x") is None


# ---- What may be awake together ----


@pytest.mark.parametrize(
    ("expression", "sets"),
    [
        ("a", ["a"]),
        ("a & b", ["ab"]),
        ("a | b & c", ["a", "bc"]),
        ("(a|b)&(c|d)", ["ac", "ad", "bc", "bd"]),
        ("+other & v", ["cX", "dX"]),
        ("a & a", ["a"]),
    ],
)
def test_expressions_of_the_matrix(expression: str, sets: list[str]) -> None:
    matrix = {"vars": {"v": "X"}, "sets": {"it": expression, "other": "c | d"}}
    found = read_matrix(matrix, dict.fromkeys("abcdX"))
    assert found[: len(sets)] == [frozenset(each) for each in sets]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "missing"), ("a &", "missing"), ("a b", "'b' is not expected"), ("(a", "bracket"),
        ("a @ b", "cannot read '@ b'"), ("nobody", "'nobody' is neither"), ("+it", "itself"),
        ("+none", "no set 'none'"), ("&".join(["(a|b|c|d)"] * 8), "10,000"),
    ],
)  # fmt: skip
def test_mistakes_in_the_matrix(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
        read_matrix({"sets": {"it": expression}}, dict.fromkeys("abcd"))


def test_groups_allow_nothing_that_the_matrix_forbids() -> None:
    rng = random.Random(1)
    for _ in range(300):
        models = "abcdef"[: rng.randint(1, 6)]
        sets = [
            frozenset(rng.sample(models, rng.randint(1, len(models))))
            for _ in range(rng.randint(1, 5))
        ]
        rule = allowed_by_sets(sets)
        groups = make_groups(models, rule, pairs_decide=False)
        assert sorted(model for group in groups for model in group) == list(models)
        for choice in product(*groups):
            assert len(choice) == 1 or any({*choice} <= each for each in sets)


def test_groups_allow_nothing_that_groups_forbid() -> None:
    rng = random.Random(2)
    for _ in range(300):
        models = "abcdef"
        homes = [rng.choice(["", "g", "h", "i"]) for _ in models]
        theirs: dict[str, dict[str, Any]] = {
            name: {
                "members": [m for m, home in zip(models, homes, strict=True) if home == name],
                **{key: rng.random() < 0.5 for key in ("swap", "exclusive", "persistent")},
            }
            for name in "ghi"
        }
        rule = allowed_by_groups(theirs, models)
        ours = make_groups(models, rule, pairs_decide=True)
        for first, second in combinations(ours, 2):
            assert all(rule(pair) for pair in product(first, second))


def test_groups_in_both_forms(read: Any) -> None:
    models = "".join(f"  {name}: {{cmd: 'serve --port ${{PORT}}'}}\n" for name in "abcde")
    groups = """
  chat: {members: [a, b], exclusive: false}
  always: {members: [c, d], swap: false, exclusive: false, persistent: true}
"""
    old = read(f"models:\n{models}groups:{groups}")
    inner = groups.replace("\n  ", "\n      ")
    new = read(f"models:\n{models}routing:\n  router:\n    settings:\n     groups:{inner}")
    for draft in (old, new):
        found = {name: model.values["group"] for name, model in draft.models.items()}
        # e is in no group, so in one that unloads all others that are not persistent.
        assert found == {"a": "chat", "b": "chat", "c": "always", "d": "d", "e": "chat"}
        assert not draft.notes


SERVERS = """
models:
  a: {cmd: serve --port 1}
  b: {cmd: serve --port 2}
  c: {cmd: serve --port 3}
  d: {cmd: serve --port 4}
  e: {cmd: serve --port 5}
"""


def test_a_matrix_becomes_sets(read: Any, tmp_path: Path) -> None:
    draft = read(
        SERVERS
        + """
matrix:
  sets: {one: "a & b", two: "b & c", three: "c & a | d"}
  evict_costs: {a: 3}
hooks: {on_startup: {preload: [a, b]}}
"""
    )
    assert not any("group" in model.values for model in draft.models.values())
    assert draft.values["sets"] == [["a", "b"], ["b", "c"], ["a", "c"]]
    assert draft.values["groups"] == {"default": {"preload": "a"}}
    cost, preload = draft.notes
    assert cost.startswith("matrix.evict_costs")
    assert preload.endswith("preload: b: of its group, a is woken at the start")
    path = tmp_path / "llmux.yaml"
    path.write_text(write_draft(draft))
    assert load_config(path).sets == (("a", "b"), ("b", "c"), ("a", "c"))


def test_a_matrix_that_needs_no_sets_becomes_groups(read: Any) -> None:
    draft = read(SERVERS + "matrix: {sets: {one: '(a | b) & (c | d | e)'}}")
    found = [model.values["group"] for model in draft.models.values()]
    assert (found, draft.values) == (["a", "a", "c", "c", "c"], {})


def test_sets_too_many_for_llmux_become_turns_with_a_note(read: Any) -> None:
    models = [f"m{n}" for n in range(20)]
    text = "".join(f"  {name}: {{cmd: 'serve --port ${{PORT}}'}}\n" for name in models)
    halves = (" & ".join(models[:10]), " & ".join(models[10:]))
    draft = read(f"models:\n{text}matrix: {{sets: {{one: '{halves[0]}', two: '{halves[1]}'}}}}")
    assert "sets" not in draft.values
    (note,) = draft.notes
    assert "here they take turns: m" in note
    assert note.endswith(" and 84 more")


def allows(draft: Draft, models: tuple[str, ...]) -> bool:
    """Whether the models may be awake together by a draft, as `llmux.switching.memory` reads it."""
    by_group: dict[str, set[str]] = {}
    for name in models:
        by_group.setdefault(draft.models[name].values.get("group", "default"), set()).add(name)
    sets = draft.values.get("sets", ())
    return all(len(e) < 2 or any(e <= {*each} for each in sets) for e in by_group.values())


def subsets() -> list[tuple[str, ...]]:
    return [chosen for size in range(6) for chosen in combinations("abcde", size)]


def test_what_a_matrix_allows_is_allowed_and_nothing_else(read: Any) -> None:
    rng = random.Random(3)
    for _ in range(60):
        sets = [rng.sample("abcde", rng.randint(1, 4)) for _ in range(rng.randint(1, 5))]
        expressions = {f"s{n}": " & ".join(each) for n, each in enumerate(sets)}
        draft = read(SERVERS + yaml.safe_dump({"matrix": {"sets": expressions}}))
        rule = allowed_by_sets([*map(frozenset, sets)])
        assert not draft.notes
        assert [rule(each) for each in subsets()] == [allows(draft, each) for each in subsets()]


def test_what_groups_allow_is_allowed_and_nothing_else(read: Any) -> None:
    rng = random.Random(4)
    for _ in range(60):
        homes = {model: rng.choice(["", "g", "h", "i"]) for model in "abcde"}
        theirs: dict[str, dict[str, Any]] = {
            name: {
                "members": [model for model, home in homes.items() if home == name],
                **{key: rng.random() < 0.5 for key in ("swap", "exclusive", "persistent")},
            }
            for name in "ghi"
        }
        draft = read(SERVERS + yaml.safe_dump({"groups": theirs}))
        rule = allowed_by_groups(theirs, "abcde")
        assert not draft.notes
        assert [rule(each) for each in subsets()] == [allows(draft, each) for each in subsets()]


def test_sets_are_written_one_a_line_if_they_are_long(tmp_path: Path) -> None:
    sets = [[f"model-{n}", f"model-{n + 1}"] for n in range(9)]
    for long in (sets, sets[:2]):
        path = tmp_path / "out.yaml"
        path.write_text(write_draft(Draft("x", {"sets": long})))
        assert yaml.safe_load(path.read_text())["sets"] == long
        assert ("\n  - [model-0, model-1]\n" in path.read_text()) == (long is sets)


# ---- Writing ----


def test_what_is_written_means_the_same(read: Any, tmp_path: Path) -> None:
    draft = read(EVERYTHING)
    odd = ["on", "1e3", "0o7", "12:30", "~", "null", "- a", "a: b", "# c", "é\u2028", "x\ny", "", "a" * 300]  # fmt: skip
    draft.models["1.0"] = ModelDraft({"aliases": odd, "force": {text: text for text in odd}})
    draft.models["no"] = ModelDraft(
        {"with": {"command": "a " + " ".join(f"--option{i} '{i}  -x'" for i in range(40))}},
        ["a note\nwith lines"],
    )
    path = tmp_path / "out.yaml"
    path.write_text(write_draft(draft))
    expected = draft.values | {"models": {name: m.values for name, m in draft.models.items()}}
    assert decode(path) == expected
    assert yaml.safe_load(path.read_text()) == expected
    assert all(len(line) <= 100 for line in path.read_text().splitlines() if line.startswith("#"))


def test_a_config_of_any_shape_gives_a_draft_or_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = yaml.safe_load(EVERYTHING) | {
        "groups": {"g": {"members": ["big"], "swap": False}},
        "routing": {"router": {"use": "x"}, "scheduler": {"settings": {"fifo": 1}}},
    }
    junk: list[Any] = [None, True, 3, -1, 1.5, "", "x y", "${no}", "'", [], [1], [[1]], [{}], {}, {"a": 1}, {1: [2]}]  # fmt: skip

    def variants(value: Any) -> Any:
        yield from junk
        items = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        for key, inner in items:
            for changed in variants(inner):
                copy = dict(value) if isinstance(value, dict) else list(value)
                copy[key] = changed
                yield copy

    outcomes: set[type] = set()
    for variant in variants(data):
        monkeypatch.setattr("llmux.cli.importing.llama_swap.decode", lambda _, it=variant: it)
        try:
            draft = read_llama_swap(Path("swap.yaml"))
            outcomes.add(type(draft))
            write_draft(draft)
        except ConfigError as error:
            outcomes.add(type(error))
    assert outcomes == {Draft, ConfigError}


def test_what_is_written_is_a_config(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEY", "FAR_KEY", "HOME"):
        monkeypatch.setenv(name, "a-value")
    path = tmp_path / "llmux.yaml"
    path.write_text(write_draft(read(EVERYTHING)))
    config = load_config(path)
    assert [*config.models] == ["big", "stopped", "elsewhere", "guessed", "unknown", "far/m/x", "far/big"]  # fmt: skip
    assert config.models["big"].chooses_port
    assert config.models["stopped"].base_url == "http://127.0.0.1:9001"
    assert config.models["big"].alias_names == ("small", "gpt-4o", "big:high")
    assert config.models["far/m/x"].headers == {"Authorization": "Bearer a-value"}


# ---- The command ----


def test_the_command_prints_or_writes(tmp_path: Path) -> None:
    source, made = tmp_path / "swap.yaml", tmp_path / "llmux.yaml"
    source.write_text(EVERYTHING)
    result = CliRunner().invoke(main, ["import", "llama-swap", str(source)])
    assert result.exit_code == 0
    assert result.stdout == write_draft(read_llama_swap(source))
    arguments = ["import", "llama-swap", str(source), "-o", str(made)]
    told = CliRunner().invoke(main, arguments)
    assert told.output.startswith(f"Wrote {made}: 7 models; ")
    assert made.read_text() == result.stdout
    made.write_text("mine")
    refused = CliRunner().invoke(main, arguments)
    assert (refused.exit_code, made.read_text()) == (1, "mine")
    assert "--force" in refused.output
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    assert made.read_text() == result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "it has no 'models'"),
        ("models: {a: {cmd: 'x ${NONE}'}}", "models.a.cmd: the macro ${NONE} is not declared"),
        ("models: {a: {proxy: http://x}}", "models.a.cmd: the command is empty"),
        ("models: {a: {cmd: x, ttl: soon}}", "models.a.ttl: expected a whole number, got 'soon'"),
        ("models: [", "swap.yaml:1:"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    source = tmp_path / "swap.yaml"
    source.write_text(text)
    result = CliRunner().invoke(main, ["import", "llama-swap", str(source)])
    assert result.exit_code == 1
    assert message in result.output
    assert str(source) in result.output
