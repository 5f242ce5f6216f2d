"""What `llmux check` warns of, and the mistakes that have a message of their own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from llmux.config import (
    address_remarks,
    command_remarks,
    load_config,
    loop_mistakes,
    parse_config,
    recipe_remarks,
)
from llmux.config.own_address import is_here
from llmux.config.recipes import recipe_names, recipes_folder
from tests.config.test_config import HOOKS, mistakes, one_model, write
from tests.config.test_places import lines

# --- Commands ------------------------------------------------------------------------------------


def unknown(script: str, folder: Path) -> list[str]:
    data = one_model(wake=script, sleep="true", alive="true")
    return command_remarks(parse_config(data, directory=folder))


@pytest.mark.parametrize(
    "script",
    [
        "no-such-cmd start a",
        "no-such-cmd",
        "A=1 B=/x no-such-cmd; true",
        "exec no-such-cmd --x",
        "# starts it\n\n  # really\nno-such-cmd -d",
        "no-such-cmd&",
        "no-such-cmd>x",
    ],
)
def test_a_command_that_is_not_found(script: str, tmp_path: Path) -> None:
    assert unknown(script, tmp_path) == [
        "models.llama.wake: there is no command 'no-such-cmd' in $PATH"
    ]


@pytest.mark.parametrize(
    "script",
    [
        "sh -c x", "env A=1 no-such-cmd", "cd x && no-such-cmd", "set -eu\nno-such-cmd",
        "if no-such-cmd; then true; fi", "{ no-such-cmd; }", "(no-such-cmd)", "$RUN x", '"no-such-cmd" x',
        "PATH=/opt/x no-such-cmd", "A=$B no-such-cmd", "f() { true; }; f", "f () { true; }; f", "true;",
        "no-such-cmd'x'", ": x", ". ./env.sh", "[ -f x ]", "! no-such-cmd", "./no-such-cmd", "~/no-such-cmd",
    ],
)  # fmt: skip
def test_scripts_that_are_left_to_the_shell(script: str, tmp_path: Path) -> None:
    assert unknown(script, tmp_path) == []


def test_a_file_in_the_folder_is_no_command(tmp_path: Path) -> None:
    (tmp_path / "wake.sh").touch()
    (line,) = unknown("wake.sh x", tmp_path)
    assert line.endswith(f"'wake.sh' in $PATH; for the file in {tmp_path} write ./wake.sh")


def test_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-such-cmd").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unknown("no-such-cmd x", tmp_path) == []


# --- Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "gpu.lan"])
def test_other_machines_without_keys(host: str) -> None:
    config = parse_config(one_model())
    assert address_remarks(config, host) == [
        f"host: {host} is open to other machines, and anyone there may use the models: "
        "set api_keys, or listen on 127.0.0.1"
    ]
    assert address_remarks(parse_config(one_model() | {"api_keys": ["k"]}), host) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST."])
def test_this_machine_without_keys(host: str) -> None:
    assert address_remarks(parse_config(one_model()), host) == []


@pytest.mark.parametrize(
    ("url", "better"),
    [
        ("http://gpu:8000/v1", "http://gpu:8000"),
        ("http://gpu:8000/v1/", "http://gpu:8000"),
        ("https://x.org/openai/v1", "https://x.org/openai"),
    ],
)
def test_an_address_as_clients_need_it(url: str, better: str) -> None:
    config = parse_config({"models": {"a": HOOKS | {"url": url}}, "fallback": url})
    one, other = address_remarks(config, "127.0.0.1")
    assert one.startswith("models.a.url: ends in /v1, with which the paths of clients begin: ")
    assert one.endswith(f"/v1/v1/models. Write {better}")
    assert other == one.replace("models.a.url", "fallback")


@pytest.mark.parametrize(
    "url", ["http://gpu:8000", "http://gpu/v1/x", "http://gpu/xv1", "unix:/x/v1"]
)
def test_other_addresses(url: str) -> None:
    assert address_remarks(parse_config({"models": {"a": HOOKS | {"url": url}}}), "::1") == []


# --- llmux's own port ----------------------------------------------------------------------------

OWN = [
    ("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("127.0.0.1", "localhost"),
    ("::1", "localhost"), ("localhost", "::1"), ("LOCALHOST.", "localhost"), ("0.0.0.0", "127.0.0.1"),
    ("127.0.0.1", "0.0.0.0"), ("localhost", "0.0.0.0"), ("::1", "::"), ("::1", "0.0.0.0"),
    ("127.0.0.1", "::"), ("127.0.0.5", "0.0.0.0"), ("::ffff:127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "0.0.0.0"), ("gpu.lan", "GPU.lan"), ("10.0.0.5", "10.0.0.5"),
    (socket.gethostname(), "0.0.0.0"),
]  # fmt: skip
OTHER = [
    ("127.0.0.2", "127.0.0.1"), ("::1", "127.0.0.1"), ("127.0.0.1", "127.0.0.2"), ("localhost", "127.0.0.2"),
    ("gpu.lan", "127.0.0.1"), ("gpu.lan", "0.0.0.0"), ("192.0.2.7", "0.0.0.0"), ("2001:db8::7", "::"),
    ("10.0.0.5", "10.0.0.6"), ("127.0.0.1", "10.0.0.6"), ("localhost", "gpu.lan"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OWN)))
def test_what_is_llmux_itself(number: int) -> None:
    assert is_here(*OWN[number])


@pytest.mark.parametrize("number", range(len(OTHER)))
def test_what_is_not(number: int) -> None:
    assert not is_here(*OTHER[number])


def test_a_backend_on_llmuxs_own_port(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "models": {
            "a": HOOKS | {"port": 3000},
            "b": HOOKS | {"url": "http://localhost:3000/x"},
            "c": HOOKS | {"port": 3001},
            "d": HOOKS | {"url": "http://[::1]"},
            "e": HOOKS | {"url": "unix:/x/y.sock"},
        },
        "fallback": "http://0.0.0.0:3000",
        "control": {"port": 3001},
    }
    config = parse_config(data)
    own = "is llmux's own port (3000): give the port of the model's server"
    control = "is the port of llmux's control API (3001): give the port of the model's server"
    assert loop_mistakes(config, "127.0.0.1", 3000) == [
        (("models", "a", "port"), own),
        (("models", "b", "url"), own),
        (("models", "c", "port"), control),
        (("fallback",), own),
    ]
    assert loop_mistakes(config, "10.0.0.5", 3000) == [(("models", "c", "port"), control)]
    assert [keys[1] for keys, _ in loop_mistakes(config, "::", 80)] == ["c", "d"]
    assert [keys[1] for keys, _ in loop_mistakes(config, "::", 0)] == ["c"]


def test_a_backend_on_the_socket_of_the_control_api(tmp_path: Path) -> None:
    data = {
        "models": {"a": HOOKS | {"url": f"unix:{tmp_path}/x/../c.sock"}},
        "control": {"socket": "c.sock"},
    }
    config = parse_config(data, directory=tmp_path)
    ((keys, message),) = loop_mistakes(config, "127.0.0.1", 3000)
    assert (keys, message.partition(",")[0]) == (
        ("models", "a", "url"),
        "is the socket of llmux's control API",
    )


# --- A config of llama-swap ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("models:\n  a:\n    cmd: llama-server --port ${PORT}\n    ttl: 5\n", "@3:5: models.a.cmd"),
        (
            "healthCheckTimeout: 60\nmodels:\n  a: {proxy: http://x, cmd: [x]}\n",
            "@3:24: models.a.cmd",
        ),
        ("macros: {x: y}\nstartPort: 10\nmodels: {}\n", "@1:1: macros"),
    ],
)
def test_a_config_of_llama_swap(text: str, place: str, tmp_path: Path) -> None:
    says = "this is a config of llama-swap: `llmux import llama-swap FILE` makes one of llmux"
    assert lines(write(tmp_path, text)) == [f"{place}: {says}"]


def test_one_wrong_key_makes_no_other_program() -> None:
    assert mistakes(one_model(cmd="x"))[0].startswith("models.llama.cmd: unknown key, known are ")
    assert mistakes(one_model() | {"macros": {}})[0].startswith("macros: unknown key, known are ")
    assert mistakes({"models": {"a": {}}})[0] == "models.a.wake: required key is missing"


def test_remarks_have_places(tmp_path: Path) -> None:
    text = """\
host: 0.0.0.0
models:
  a: {url: http://x/v1, wake: no-such-cmd x, sleep: "true", alive: "true"}
"""
    config = load_config(path := write(tmp_path, text))
    found = command_remarks(config) + address_remarks(config, config.host)
    assert [line.removeprefix(str(path)).partition(" ")[0] for line in found] == [
        ":3:25:", ":1:1:", ":3:7:",
    ]  # fmt: skip


# --- Values of recipes ---------------------------------------------------------------------------


def about_recipe(tmp_path: Path, **model: Any) -> list[str]:
    config = parse_config({"models": {"m": {"recipe": "process"} | model}}, directory=tmp_path)
    return list(recipe_remarks(config))


LACKS = (
    "models.m.with.command: lacks ${PORT}, so its server does not listen where llmux looks for it: "
    "write ${PORT} in it, or give the model "
)


@pytest.mark.parametrize(
    ("command", "other"),
    [
        ("llama-server -m x.gguf", "'port' or 'url'"),
        ("llama-server --port 8080 -m x", "port: 8080"),
        ("llama-server --port=8080", "port: 8080"),
        (["llama-server", "--port", 8080], "port: 8080"),
        ("serve PORT", "'port' or 'url'"),
        ("serve $PORTS", "'port' or 'url'"),
        ("./plain.sh", "'port' or 'url'"),
        ("./missing.sh", "'port' or 'url'"),
    ],
)
def test_a_command_that_is_not_told_its_port(command: Any, other: str, tmp_path: Path) -> None:
    (tmp_path / "plain.sh").write_text("exec serve --port 8080\n")
    assert about_recipe(tmp_path, **{"with": {"command": command}}) == [LACKS + other]
    for address in ({"port": 8080}, {"url": "http://gpu:1"}):
        assert about_recipe(tmp_path, **{"with": {"command": command}}, **address) == []


@pytest.mark.parametrize(
    ("command", "address", "other"),
    [
        ("serve --port 8392", {"port": 8391}, "8392"),
        ("serve --port=8392 -m x", {"url": "http://localhost:8391"}, "8392"),
        (["serve", "--port", 8392], {"port": 8391}, "8392"),
        ("a --port 2 & b --port 1", {"port": 8391}, "1 and 2"),
        ("serve --port 8392", {"url": "http://gpu:8391"}, None),
        ("serve --port 8392", {"url": "unix:/run/s.sock"}, None),
        ("serve --port 8391", {"port": 8391}, None),
        ("serve --port 8392 --listen ${PORT}", {"port": 8391}, None),
        ("serve --metrics 1", {"port": 8391}, None),
        ("docker run --rm -p 8391:8080 image --port 8080", {"port": 8391}, None),
    ],
)
def test_a_command_that_names_another_port(
    command: Any, address: Any, other: str | None, tmp_path: Path
) -> None:
    why = (
        f"models.m.with.command: names port {other}, but the model's is 8391, where llmux looks "
        "for its server: write ${PORT} in place of the number"
    )
    remarks = about_recipe(tmp_path, **{"with": {"command": command}}, **address)
    assert remarks == ([why] if other else [])


@pytest.mark.parametrize(
    "command",
    [
        "serve --port ${PORT}", "serve --port $PORT", "serve --port ${PORT:-1}", "serve $LLMUX_PORT",
        "serve --url $LLMUX_URL", ["serve", "--listen=:${PORT}"], "./knows.sh", "exec sh ./knows.sh -x",
        "~/knows.sh", "$HOME/knows.sh",
    ],
)  # fmt: skip
def test_commands_that_take_their_port(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "knows.sh").write_text('exec serve --port "$PORT"\n')
    assert about_recipe(tmp_path, **{"with": {"command": command}}) == []


@pytest.mark.parametrize(
    ("stop_secs", "limit", "warns"),
    [(29, 30, False), (30, 30, True), (31, 30, True), (9999, None, False), (None, 30, True)],
)
def test_a_stop_that_takes_longer_than_its_hook_may(
    stop_secs: int | None, limit: float | None, warns: bool, tmp_path: Path
) -> None:
    given = {"command": "serve ${PORT}"} | ({"stop_secs": stop_secs} if stop_secs else {})
    remarks = about_recipe(tmp_path, **{"with": given}, hook_timeouts={"sleep": limit})
    said = "must be less than hook_timeouts.sleep, which is 30 s"
    at = f"at {stop_secs or 30} s llmux has ended the hook"
    assert remarks == ([f"models.m.with.stop_secs: {said}: {at}"] if warns else [])


def test_a_variable_of_llmux_may_set_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEEP_SECS", "200")
    (remark,) = about_recipe(tmp_path, **{"with": {"command": "serve ${PORT}"}})
    assert "at 200 s" in remark


def test_remarks_about_recipes_have_their_place(tmp_path: Path) -> None:
    text = "models:\n  m:\n    recipe: process\n    with:\n      command: serve\n"
    (remark,) = recipe_remarks(load_config(write(tmp_path, text)))
    assert remark.partition(": lacks")[0].endswith(":5:7: models.m.with.command")


@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_of_ours_has_such_a_remark(name: str) -> None:
    config = load_config(recipes_folder() / name / "init.yaml")
    assert list(recipe_remarks(config)) == []


# --- Ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ports", "room"),
    [
        ("29000-29000", 1),
        ("29000-29001", 2),
        ("29000-29002", 2),  # one is another model's
        ("2999-3001", 2),  # one is llmux's own
    ],
)
def test_more_models_than_ports(ports: str, room: int) -> None:
    automatic = {"recipe": "process", "with": {"command": "serve ${PORT}"}}
    models = {f"m{number}": automatic for number in range(3)}
    data = {"ports": ports, "models": models | {"other": HOOKS | {"port": 29002}}}
    told = f"llmux chooses the port of 3 models, and {ports} has {room} for them"
    assert mistakes(data) == [f"ports: {told}: widen the range, or give the models 'port' or 'url'"]
    del models["m0"]
    if room == 2:
        parse_config(data | {"models": models | {"other": HOOKS | {"port": 29002}}})


# --- What servers keep asleep --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"needs": {"gpu0": "9GiB"}}, "{gpu0: 1GiB}"),
        ({"needs": {"gpu0": 1, "gpu1": 1}, "needs_asleep": {"gpu1": 1}}, "{gpu0: 1GiB}"),
        ({"needs": {"gpu0": 1}, "needs_asleep": {"gpu0": "1GiB"}}, None),
        ({"needs": {"gpu0": 1}, "needs_asleep": {"gpu0": 0}}, None),
        ({"needs": {"ram": 1}}, None),
        ({"needs": "auto"}, "{gpu0: 1GiB, gpu1: 1GiB}"),
        ({"needs": "auto", "needs_asleep": {"gpu1": 1}}, None),
        ({"needs": {"gpu0": 1}, "with": {"model": "a", "level": "stop"}}, None),
        ({"needs": {"gpu0": 1}, "recipe": "llama-cpp"}, None),
        ({}, None),
    ],
)
def test_what_a_sleeping_server_keeps_is_asked_for(
    changes: dict[str, Any], missing: str | None, tmp_path: Path
) -> None:
    model = {"recipe": "vllm-sleep", "with": {"model": "a"}, "port": 8001} | changes
    data = {"models": {"m": model}, "resources": {"gpu0": "9GiB", "gpu1": "9GiB", "ram": "9GiB"}}
    remarks = list(recipe_remarks(parse_config(data, directory=tmp_path)))
    assert remarks == ([] if missing is None else [
        "models.m.needs: while it sleeps, its server keeps 0.8 GB of its GPU, or 2.4 to 7.4 GB of each "
        f"of two: say how much with needs_asleep, such as {missing}"
    ])  # fmt: skip
