"""Recipes: what a model gets from one, what `with` takes, and what is said of mistakes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmux.config import Config, ModelConfig, config_schema, hook_remarks, load_config, parse_config
from llmux.config.recipes import find_recipe, recipe_names, recipes_folder
from llmux.errors import ConfigError

COMMAND = "llama-server --port ${PORT}"
PROCESS: dict[str, Any] = {"recipe": "process", "with": {"command": COMMAND}}


def config_of(directory: Path | None = None, **models: Any) -> Config:
    return parse_config({"models": models}, directory=directory)


def model(given: dict[str, Any] | None = None, **keys: Any) -> ModelConfig:
    parameters = {"with": given} if given else {}
    return config_of(m=PROCESS | parameters | keys).models["m"]


def mistakes(directory: Path | None = None, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_of(directory, m=keys)
    return caught.value.mistakes


# ---- What a model gets ----


def test_a_model_gets_its_hooks_from_its_recipe() -> None:
    found = model()
    assert found.wake == 'sh "$LLMUX_RECIPE_DIR/wake.sh" "$LLMUX_WITH_COMMAND"'
    assert all("LLMUX_RECIPE_DIR" in script for script in (found.sleep, found.alive))
    assert found.verify_asleep is not None
    assert found.variables == {
        "LLMUX_RECIPE_DIR": str(recipes_folder() / "process"),
        "LLMUX_WITH_COMMAND": COMMAND,
    }
    assert found.chooses_port
    assert found.address is None


def test_what_the_model_says_itself_wins() -> None:
    found = model(
        alive="curl x", verify_asleep=None, hook_timeouts={"wake": 1800}, port=8001, prefetch="cat"
    )
    assert found.alive == "curl x"
    assert found.verify_asleep is None
    assert found.prefetch == "cat"
    assert found.hook_timeouts.wake == 1800
    assert found.hook_timeouts.sleep == 120
    assert found.base_url == "http://127.0.0.1:8001"
    assert "wake.sh" in found.wake


def test_the_example_of_the_readme() -> None:
    text = """
models:
  qwen:   {recipe: process, with: {command: "llama-server -m qwen.gguf --port ${PORT}"}}
  mistral: {recipe: vllm-sleep, with: {model: mistralai/Mistral-Small, level: 1, args: "--gpu-memory-utilization 0.9"}}
"""
    models = parse_config(yaml.safe_load(text)).models
    assert models["mistral"].variables == {
        "LLMUX_RECIPE_DIR": str(recipes_folder() / "vllm-sleep"),
        "LLMUX_WITH_MODEL": "mistralai/Mistral-Small",
        "LLMUX_WITH_ARGS": "--gpu-memory-utilization 0.9",
        "LLMUX_WITH_LEVEL": "1",
    }
    assert models["mistral"].name_sent == "mistral"
    assert models["qwen"].name_sent is None


def test_ollamas_port_and_name() -> None:
    models = config_of(
        a={"recipe": "ollama"},
        b={"recipe": "ollama", "port": 1, "with": {"model": "mistral:7b"}},
        c={
            "recipe": "ollama",
            "url": "http://gpu:5",
            "with": {"model": "x"},
            "upstream_model": "y",
        },
    ).models
    assert [each.base_url for each in models.values()] == [
        "http://127.0.0.1:11434", "http://127.0.0.1:1", "http://gpu:5",
    ]  # fmt: skip
    assert [each.name_sent for each in models.values()] == [None, "mistral:7b", "y"]


def test_a_parameter_with_a_variable_of_its_own_is_set_only_if_given() -> None:
    assert "HEALTH_PATH" not in model().variables
    assert model({"command": "x", "health": "none"}).variables["HEALTH_PATH"] == "none"
    given = {"command": "x", "health": "/v1/models", "stop_secs": 5}
    variables = model(given).variables
    assert (variables["HEALTH_PATH"], variables["SLEEP_SECS"]) == ("/v1/models", "5")
    assert "SLEEP_SECS" not in model({"command": "x", "stop_secs": None}).variables


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("a 'b c' $D", "a 'b c' $D"),
        (["a", "b c", "it's", "$D", "", "--port", "${PORT}", "x=${PORT}!", 5, 0.5],
         """a 'b c' 'it'"'"'s' '$D' '' --port "${PORT}" x="${PORT}"'!' 5 0.5"""),
        ([], ""),
    ],
)  # fmt: skip
def test_words(given: Any, text: str) -> None:
    found = config_of(m={"recipe": "vllm-sleep", "with": {"model": "m", "args": given}})
    assert found.models["m"].variables["LLMUX_WITH_ARGS"] == text


def test_booleans() -> None:
    for value, text in ((True, "1"), (False, ""), (None, "")):
        found = config_of(m={"recipe": "systemd", "port": 1, "with": {"user": value}})
        assert found.models["m"].variables["LLMUX_WITH_USER"] == text


def test_a_changed_parameter_counts_once_the_model_sleeps() -> None:
    before = model(port=1)
    assert model({"command": "other"}, port=1).needs_sleep_after(before)
    assert not model(port=1, max_in_flight=3).needs_sleep_after(before)
    stop = model({"command": COMMAND, "stop_secs": 1}, port=1)
    assert stop.needs_sleep_after(before)


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ({"recipe": "proces"}, ["models.m.recipe: no recipe 'proces', did you mean 'process'?"]),
        ({"recipe": "vllm", "with": {"x": 1}},
         ["models.m.recipe: no recipe 'vllm', did you mean 'vllm-sleep'?"]),
        ({"recipe": 5, "port": 1, "wake": "a", "sleep": "b", "alive": "c"},
         ["models.m.recipe: expected str, got int"]),
        ({"recipe": "process"},
         ["models.m.with.command: the recipe 'process' needs it: command that starts the server in "
          "the foreground"]),
        ({"recipe": "process", "with": {"command": " "}}, ["models.m.with.command: must not be blank"]),
        ({"recipe": "process", "with": {"command": "x", "helth": "/"}},
         ["models.m.with.helth: the recipe 'process' has no such parameter, did you mean 'health'?"]),
        ({"recipe": "process", "with": {"command": "x", 5: "/"}},
         ["models.m.with[5]: the recipe 'process' has no such parameter, there are command, health, "
          "stop_secs", "models.m.with[5]: the key must be a string: put it in quotes"]),
        ({"recipe": "process", "with": "x"}, ["models.m.with: expected object, got str"]),
        ({"recipe": "process", "with": {"command": 5}},
         ["models.m.with.command: expected a command for the shell, or a list of words, got 5"]),
        ({"recipe": "process", "with": {"command": ["a", [1]]}},
         ["models.m.with.command: expected a command for the shell, or a list of words, got ['a', [1]]"]),
        ({"recipe": "process", "with": {"command": "a 'b"}},
         ["models.m.with.command: the shell cannot read it: No closing quotation"]),
        ({"recipe": "process", "with": {"command": "a\0b"}},
         ["models.m.with.command: must not hold NUL or half a surrogate pair"]),
        ({"recipe": "process", "with": {"command": "x", "stop_secs": "5"}},
         ["models.m.with.stop_secs: expected an integer, got '5'"]),
        ({"recipe": "process", "with": {"command": "x", "stop_secs": -1}},
         ["models.m.with.stop_secs: must be at least 0"]),
        ({"recipe": "process", "with": {"command": "x", "stop_secs": True}},
         ["models.m.with.stop_secs: expected an integer, got True"]),
        ({"recipe": "process", "with": {"command": "x", "health": "health"}},
         ["models.m.with.health: expected a path that begins with '/' or 'none', got 'health'"]),
        ({"recipe": "docker", "port": 1, "with": {"health": "none"}},
         ["models.m.with.health: expected a path that begins with '/', got 'none'"]),
        ({"recipe": "docker", "port": 1, "with": {"health": ["/"]}},
         ["models.m.with.health: expected a path that begins with '/', got ['/']"]),
        ({"recipe": "vllm-sleep", "with": {"model": "x", "level": 3}},
         ["models.m.with.level: expected 1 or 2 or stop, got 3"]),
        ({"recipe": "vllm-sleep", "with": {"model": "x", "level": "halt"}},
         ["models.m.with.level: expected an integer or 'stop', got 'halt'"]),
        ({"recipe": "systemd", "port": 1, "with": {"user": "yes"}},
         ["models.m.with.user: expected true or false, got 'yes'"]),
        ({"recipe": "docker"},
         ["models.m: give 'port' or 'url': the recipe 'docker' does not choose the port"]),
        ({"recipe": "process", "host": "gpu", "with": {"command": "x"}},
         ["models.m.host: goes with 'port': llmux chooses ports of this machine only"]),
        ({"recipe": "process", "host": "gpu", "url": "http://x", "with": {"command": "x"}},
         ["models.m.host: goes with 'port' only"]),
        ({"with": {"x": 1}, "port": 1, "wake": "a", "sleep": "b", "alive": "c"},
         ["models.m.with: goes with 'recipe' only"]),
        ({"recipe": "process", "wake": None, "with": {"command": "x"}},
         ["models.m.wake: expected str, got null"]),
        ({"recipe": "process", "wakes": "x", "with": {"command": "x"}},
         ["models.m.wakes: unknown key, did you mean 'wake'?"]),
    ],
)  # fmt: skip
def test_mistakes(keys: dict[str, Any], lines: list[str]) -> None:
    assert mistakes(**keys) == lines


@pytest.mark.parametrize(
    ("command", "is_wrong"),
    [
        ("llama-server\n--port 5\n", True),
        ("llama-server -m x\n  -ngl 99", True),
        ("llama-server \\\n  --port 5", False),
        ("cd /x\nllama-server --port 5", False),
        ("python3 -c '\n-1\n'", False),
        ("a |\n  b\n", False),
        ("# a comment\n--x", False),
    ],
)
def test_options_on_lines_of_their_own(command: str, *, is_wrong: bool) -> None:
    keys = PROCESS | {"with": {"command": command}}
    if is_wrong:
        (line,) = mistakes(**keys)
        assert "write it with '>-', which joins lines, in place of '|'" in line
    else:
        config_of(m=keys)


def test_a_value_that_is_too_long_for_a_variable() -> None:
    too_long: dict[str, Any] = PROCESS | {"with": {"command": "x" * 100_001}}
    (line,) = mistakes(None, **too_long)
    assert line.startswith("models.m.with.command: must have at most 100000 bytes")


def test_many_models_may_share_a_long_command() -> None:
    words = PROCESS | {"with": {"command": "'\n-'" * 20_000}}
    started_at = time.process_time()
    parse_config({"models": {f"m{n}": words for n in range(1000)}})
    assert time.process_time() - started_at < 10


def test_all_mistakes_show_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(a={"recipe": "x"}, b={"recipe": "process"}, c={"recipe": "vllm-sleep"})
    assert len(caught.value.mistakes) == 3


# ---- Recipes of one's own ----


def test_a_folder_is_a_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        "description: mine\nport: 9000\nhook_timeouts: {wake: 5}\nmodel: {max_in_flight: 2}\n"
        "hooks: {wake: up, sleep: down, alive: ping}\n"
        "parameters: {file-name: {doc: A file, required: true}}\n"
    )
    with_ = {"file-name": "x y"}
    found = config_of(tmp_path, m={"recipe": "./mine", "with": with_}).models["m"]
    assert (found.wake, found.port, found.max_in_flight) == ("up", 9000, 2)
    assert found.hook_timeouts.wake == 5
    assert found.variables == {"LLMUX_RECIPE_DIR": str(folder), "LLMUX_WITH_FILE_NAME": "x y"}
    (line,) = mistakes(tmp_path, recipe="./mine")
    assert line == "models.m.with.file-name: the recipe './mine' needs it: a file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no recipe './mine': "),
        ("a: [", "no recipe './mine': "),
        ("", "recipe.yaml: "),
        ("description: x", "missing required field `hooks`"),
        ("description: x\nhooks: {wak: x}", "recipe.yaml: Invalid enum value 'wak'"),
    ],
)
def test_a_broken_recipe_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    (tmp_path / "mine").mkdir()
    if text is not None:
        (tmp_path / "mine" / "recipe.yaml").write_text(text)
    (line,) = mistakes(tmp_path, recipe="./mine")
    assert line.startswith("models.m.recipe: ")
    assert said in line
    assert "\n" not in line


# ---- Those in the package ----

ROOT = Path(__file__).parents[2]


def test_an_installed_package_has_them(tmp_path: Path) -> None:
    """As the wheel has it, and with an installer that keeps no modes of files."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["hooks"] == "llmux/recipes"
    shutil.copytree(ROOT / "llmux", tmp_path / "llmux", ignore=shutil.ignore_patterns("ui"))
    shutil.copytree(ROOT / "hooks", tmp_path / "llmux/recipes", copy_function=shutil.copyfile)
    code = "from llmux.config.recipes import *; print(recipes_folder(), *recipe_names())"
    printed = subprocess.check_output(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    folder, *names = printed.decode().split()
    assert folder == str(tmp_path / "llmux/recipes")
    assert names == recipe_names()


OWN = recipe_names()


def test_every_folder_of_hooks_is_a_recipe() -> None:
    folders = [path.name for path in recipes_folder().iterdir() if path.is_dir()]
    assert sorted(folders) == OWN


@pytest.mark.parametrize("name", OWN)
def test_what_init_writes_is_a_config_of_two_models(name: str) -> None:
    path = recipes_folder() / name / "init.yaml"
    config = load_config(path)
    assert len(config.models) == 2
    assert {each.recipe for each in config.models.values()} == {name}
    text = path.read_text()
    parameters = find_recipe(name, Path()).parameters
    for parameter in parameters:
        if parameter not in {"address", "args"}:
            assert f"{parameter}:" in text, parameter
    commented = re.findall(r"^#   (\w+): ", text, re.MULTILINE)
    assert set(commented) <= {*parameters, "with", "command"}


@pytest.mark.parametrize("name", OWN)
def test_the_scripts_have_the_defaults_that_the_recipe_states(name: str) -> None:
    recipe = find_recipe(name, Path())
    scripts = "".join(path.read_text() for path in recipe.folder.glob("*.sh"))
    for key, parameter in recipe.parameters.items():
        if parameter.variable is not None:
            if f"${{{parameter.variable}:-$LLMUX_HOOK_SECS}}" in "".join(
                recipe.file.hooks.values()
            ):
                assert parameter.default is None
                continue
            stated = "" if parameter.default is None else str(parameter.default)
            found = set(re.findall(rf"\$\{{{parameter.variable}:-([^}}]*)\}}", scripts))
            assert found - {""} == {stated} - {""}, key
        else:
            hooks = "".join(recipe.file.hooks.values())
            assert recipe.variable_of(key) in hooks, key


@pytest.mark.parametrize("name", OWN)
def test_the_schema_describes_its_parameters(name: str) -> None:
    shape = config_schema()["$defs"]["ModelConfig"]
    (then,) = (
        each["then"]["properties"]["with"]
        for each in shape["allOf"]
        if each["if"]["properties"]["recipe"]["const"] == name
    )
    parameters = find_recipe(name, Path()).parameters
    assert set(then["properties"]) == set(parameters)
    assert then["required"] == [key for key, each in parameters.items() if each.required]
    assert all(each["description"] for each in then["properties"].values())


# ---- Remarks ----


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("no-such-server --port 5", "no-such-server on the PATH"),
        ("A=1 B='x y' no-such-server", "no-such-server on the PATH"),
        ("./no-such-server", "./no-such-server"),
        ("/bin/sh -c x", None),
        ("sh -c x", None),
        ("cd /x && no-such-server", None),
        ("$SERVER --port 5", None),
        ("(no-such-server)", None),
    ],
)
def test_a_program_that_is_not_there_is_remarked(command: str, program: str | None) -> None:
    remarks = hook_remarks(config_of(m=PROCESS | {"with": {"command": command}}))
    expected = [f"models.m.with.command: there is no {program}"] if program else []
    assert remarks == expected


def test_a_program_named_by_the_environment_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(m={"recipe": "vllm-sleep", "with": {"model": "x"}})
    monkeypatch.setenv("VLLM", "/no/vllm")
    assert hook_remarks(config) == ["models.m.with.program: there is no /no/vllm"]
    monkeypatch.setenv("VLLM", "/bin/sh")
    assert hook_remarks(config) == []


def test_a_file_that_is_not_there_is_remarked(tmp_path: Path) -> None:
    def remarks(model: str) -> list[str]:
        text = f"models:\n  m:\n    recipe: llama-cpp\n    with:\n      model: '{model}'\n"
        (tmp_path / "llmux.yaml").write_text(text)
        return hook_remarks(load_config(tmp_path / "llmux.yaml"))

    (tmp_path / "my model.gguf").write_text("")
    (tmp_path / "folder").mkdir()
    assert remarks("my model.gguf") == remarks(str(tmp_path / "my model.gguf")) == []
    for given, why in {
        "gone.gguf": f"there is no file gone.gguf in {tmp_path}",
        "/gone/x.gguf": "there is no file /gone/x.gguf",
        "folder": "folder is not a file",
        "~/x.gguf": "there is no ~/x.gguf: `~` is not expanded here",
    }.items():
        assert remarks(given) == [f"{tmp_path}/llmux.yaml:5:7: models.m.with.model: {why}"]


def test_a_program_may_have_a_space_in_its_path(tmp_path: Path) -> None:
    program = tmp_path / "my programs" / "vllm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    given = {"model": "x", "program": str(program)}
    assert hook_remarks(config_of(m={"recipe": "vllm-sleep", "with": given})) == []
    program.unlink()
    assert hook_remarks(config_of(m={"recipe": "vllm-sleep", "with": given})) != []
