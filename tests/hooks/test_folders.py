"""What holds for every folder of `hooks/`: what is in it, and that it stands alone."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmux.cli.main import main
from llmux.config import load_config
from tests.hooks.bench import HOOKS

FOLDERS = sorted(path.parent.name for path in HOOKS.glob("*/llmux.yaml"))
SERVERS = [
    "cuda-checkpoint", "docker", "llama-cpp", "ollama", "podman", "podman-criu", "process", "sglang",
    "systemd", "vllm-sleep",
]  # fmt: skip
NEEDED = {
    "wake.sh", "sleep.sh", "alive.sh", "verify_asleep.sh", "llmux.yaml", "README.md", "recipe.yaml",
    "init.yaml",
}  # fmt: skip


def scripts(folder: str) -> list[Path]:
    return sorted((HOOKS / folder).glob("*.sh"))


def test_every_server_has_its_folder() -> None:
    assert FOLDERS == SERVERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_all_that_it_needs(folder: str) -> None:
    assert {path.name for path in (HOOKS / folder).iterdir()} >= NEEDED
    for script in scripts(folder):
        text = script.read_text()
        if text.startswith("#!"):
            assert text.startswith("#!/bin/sh\n")
            assert "\nset -eu\n" in text
            assert os.access(script, os.X_OK), script
        else:  # it is sourced
            assert text.startswith("# shellcheck shell=sh\n")
        assert "../" not in text


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_says_what_it_must(folder: str) -> None:
    text = (HOOKS / folder / "README.md").read_text()
    for said in ("What it frees", "How fast", "What to watch for", "How it was tested"):
        assert f"**{said}" in text
    listed = set(re.findall(r"^    (?:hooks/[\w-]+/)?([\w.]+\.(?:sh|yaml))", text, re.MULTILINE))
    there = {path.name for path in (HOOKS / folder).iterdir() if path.suffix in (".sh", ".yaml")}
    assert listed == there
    settings = set(re.findall(r"\$\{([A-Z_]+):-", "".join(s.read_text() for s in scripts(folder))))
    assert set(re.findall(r"^\| `([A-Z_]+)`", text, re.MULTILINE)) == settings


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_config_passes_llmux_check(folder: str, tmp_path: Path) -> None:
    copy = tmp_path / folder
    shutil.copytree(HOOKS / folder, copy)
    checked = CliRunner().invoke(main, ["check", "-c", str(copy / "llmux.yaml")])
    assert checked.exit_code == 0, checked.output
    models = load_config(copy / "llmux.yaml").models.values()
    assert len(models) == 2
    for model in models:
        for hook in (model.wake, model.sleep, model.alive, model.verify_asleep):
            script = re.search(r"\./(\w+\.sh)", hook or "")
            assert script is not None
            assert (copy / script[1]).exists()


def test_the_scripts_of_podman_are_those_of_docker() -> None:
    """A fix in one belongs in the other, too."""
    for script in scripts("docker"):
        text = script.read_text().replace("${DOCKER:-docker}", "${PODMAN:-podman}")
        text = re.sub(r"\bdocker\b", "podman", text).replace("Docker", "Podman")
        assert text == (HOOKS / "podman" / script.name).read_text()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_says_how_to_validate_one_of_its_models(folder: str) -> None:
    text = (HOOKS / folder / "README.md").read_text()
    ((config, model),) = re.findall(r"`llmux validate -c (\S+) (\S+)`", text)
    copy = re.search(rf"cp -r hooks/{folder} (\S+)", text)
    assert config == (copy[1] if copy else f"hooks/{folder}") + "/llmux.yaml"
    assert model in load_config(HOOKS / folder / "llmux.yaml").models


# ---- What stands in several folders, since each can be copied alone ----


def functions(path: Path) -> dict[str, str]:
    """The functions of a script, each whole, by name."""
    found = re.finditer(
        r"^(\w+)\(\) \{(?:[^\n]*\}$|\n.*?^\}$)", path.read_text(), re.MULTILINE | re.DOTALL
    )
    return {each[1]: each[0] for each in found}


@pytest.mark.parametrize("name", ["known", "stat_of", "runs", "left", "wait_gone"])
def test_a_mend_of_one_copy_is_a_mend_of_all(name: str) -> None:
    servers = [
        HOOKS / folder / "server.sh" for folder in ("cuda-checkpoint", "sglang", "vllm-sleep")
    ]
    assert len({functions(path)[name] for path in servers}) == 1


@pytest.mark.parametrize("path", scripts("docker"), ids=lambda path: path.name)
def test_docker_and_podman_differ_in_their_names_only(path: Path) -> None:
    def unnamed(text: str) -> str:
        return re.sub("docker|podman", "engine", text, flags=re.IGNORECASE)

    assert unnamed(path.read_text()) == unnamed((HOOKS / "podman" / path.name).read_text())


@pytest.mark.parametrize("script", ["server.sh", "sleep.sh", "verify_asleep.sh"])
def test_llama_cpp_shares_the_scripts_of_process(script: str) -> None:
    shared = (HOOKS / "process" / script).read_text()
    assert (HOOKS / "llama-cpp" / script).read_text().replace("LLAMA_SLEEP", "SLEEP") == shared
