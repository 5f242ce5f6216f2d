"""`llmux init`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmux.cli.main import main
from llmux.config import editor_schema, load_config, modeline
from llmux.config import schema as module
from llmux.config.recipes import recipe_names, recipes_folder
from tests.editors import schema_of_modeline


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_recipe_it_lists_them() -> None:
    result = run("init")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[: len(recipe_names())]] == recipe_names()
    assert all(len(line) <= 100 for line in lines)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("hooks", [[], ["--hooks"]])
def test_what_it_writes_can_be_checked(recipe: str, hooks: list[str]) -> None:
    result = run("init", recipe, *hooks)
    assert result.exit_code == 0, result.output
    assert "wrote llmux.yaml" in result.output
    checked = run("check")
    assert checked.exit_code == 0, checked.output
    config = load_config(Path("llmux.yaml"))
    folder = Path("hooks", recipe).resolve() if hooks else recipes_folder() / recipe
    for model in config.models.values():
        assert model.variables["LLMUX_RECIPE_DIR"] == str(folder)
    assert Path("hooks").exists() == bool(hooks)


def test_two_models_are_at_most_seven_lines() -> None:
    for recipe in ("process", "llama-cpp", "vllm-sleep", "sglang", "demo"):
        run("init", recipe, recipe)
        text = Path(recipe, "llmux.yaml").read_text()
        assert len([line for line in text.splitlines() if line and line[0] != "#"]) <= 7


def test_an_editor_finds_the_schema_by_the_first_line() -> None:
    run("init", "process", "a folder")
    text = Path("a folder", "llmux.yaml").read_text()
    schema = schema_of_modeline(text.splitlines()[0])
    assert schema == json.loads(json.dumps(editor_schema()))


def test_the_schema_s_path_may_have_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Path("my schemas #1 ü%20").resolve()
    odd.mkdir()
    shutil.copy(module.SCHEMA_FILE, odd)
    monkeypatch.setattr(module, "SCHEMA_FILE", odd / "llmux.schema.json")
    assert schema_of_modeline(modeline()) == json.loads(json.dumps(editor_schema()))


def test_a_directory_is_made_and_named(tmp_path: Path) -> None:
    result = run("init", "process", "a/b", "--hooks")
    assert "llmux check -c a/b/llmux.yaml" in result.output
    copied = {path.name for path in (tmp_path / "a/b/hooks/process").iterdir()}
    assert copied == {
        "README.md", "alive.sh", "recipe.yaml", "server.sh", "sleep.sh", "verify_asleep.sh", "wake.sh",
    }  # fmt: skip
    assert os.access("a/b/hooks/process/wake.sh", os.X_OK)


@pytest.mark.parametrize("hooks", [[], ["--hooks"]])
def test_nothing_is_overwritten_without_force(hooks: list[str]) -> None:
    mine = Path("hooks/process/wake.sh") if hooks else Path("llmux.yaml")
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    result = run("init", "process", *hooks)
    assert result.exit_code == 2
    assert f"{mine} is there already: --force overwrites it" in result.output
    assert mine.read_text() == "mine"
    assert Path("llmux.yaml").exists() == (not hooks)
    assert run("init", "process", "--force", *hooks).exit_code == 0
    assert mine.read_text() != "mine"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("vllm", "no recipe 'vllm', did you mean 'vllm-sleep'?"),
        ("nonsense", "no recipe 'nonsense', there are cuda-checkpoint, "),
        ("./x", "'./x' is a path"),
    ],
)
def test_an_unknown_recipe(recipe: str, said: str) -> None:
    result = run("init", recipe)
    assert result.exit_code == 2
    assert said in result.output


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("init", "process", "file/x")
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot write: ")


def test_check_shows_what_a_recipe_makes_of_a_model() -> None:
    run("init", "process")
    result = run("check", "--show")
    assert result.exit_code == 0
    assert 'wake: sh "$LLMUX_RECIPE_DIR/wake.sh" "$LLMUX_WITH_COMMAND"' in result.output
    assert "LLMUX_WITH_COMMAND: llama-server -m qwen.gguf --port ${PORT}" in result.output
    assert "a port of 29000-29999" in result.output


def test_check_shows_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_API_KEY", "sk-of-the-server")
    command = "llama-server --api-key ${env:SERVER_API_KEY} --port ${PORT}"
    model = {"recipe": "process", "with": {"command": command}}
    Path("llmux.yaml").write_text(json.dumps({"models": {"m": model}}))
    result = run("check", "--show")
    assert result.exit_code == 0
    assert "LLMUX_WITH_COMMAND: llama-server --api-key *** --port ${PORT}" in result.output


def test_check_warns_of_programs_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonesuch")
    run("init", "process")
    result = run("check")
    assert result.exit_code == 0
    said = "models.qwen.with.command: there is no llama-server on the PATH"
    assert f"warning: llmux.yaml:7:12: {said}" in result.stderr


def test_check_writes_nothing_and_shows_ports_chosen_before(tmp_path: Path) -> None:
    run("init", "process")
    with Path("llmux.yaml").open("a") as config:
        config.write("state_dir: state\n")
    run("check")
    assert not Path("state").exists()
    Path("state").mkdir()
    Path("state", "ports.json").write_text('{"ports": {"qwen": 29005}}')
    assert "http://127.0.0.1:29005" in run("check").output
