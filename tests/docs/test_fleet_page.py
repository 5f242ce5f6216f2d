"""What docs/fleet.md and the README of deploy/envoy say of the picker's config, and of times and limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmux.errors import ConfigError
from llmux.pick.bootstrap import PICK_TIMEOUT, bootstrap
from llmux.pick.config import EnvoyConfig, load_pick_config
from tests.documents import ROOT, Block, blocks

PAGE = ROOT / "docs" / "fleet.md"
TEXT = PAGE.read_text()
PICKERS = [block for block in blocks(PAGE) if block.mark == "not a config of llmux: the picker's"]


@pytest.mark.parametrize("block", PICKERS, ids=str)
def test_configs_of_the_picker_are_good(block: Block, tmp_path: Path) -> None:
    (tmp_path / "client-keys").write_text("a\nb\n")
    file = tmp_path / "pick.yaml"
    file.write_text(block.code)
    config = load_pick_config(file)
    assert config.addresses
    assert bootstrap(config)["static_resources"]
    file.write_text(block.code.replace("hosts:", "host:"))
    with pytest.raises(ConfigError, match="host"):
        load_pick_config(file)


def test_there_are_such_configs() -> None:
    assert len(PICKERS) == 2


def test_times_and_limits_are_those_of_the_code() -> None:
    assert f"for it {PICK_TIMEOUT.removesuffix('s')} s at most" in TEXT
    assert f"{EnvoyConfig().max_body_bytes >> 20} MiB at most" in TEXT


def test_the_readme_names_each_file_of_its_folder() -> None:
    folder = ROOT / "deploy" / "envoy"
    text = (folder / "README.md").read_text()
    files = {path.name for path in folder.iterdir()} - {"README.md"}
    assert set(re.findall(r"^    ([\w@.-]+\.\w+) {2,}", text, re.MULTILINE)) == files - {
        "envoy-parent.sh"  # with envoy.service
    }
    assert "envoy-parent.sh" in text


def test_the_readme_upgrades_as_the_script_does() -> None:
    folder = ROOT / "deploy" / "envoy"
    (block,) = (each for each in blocks(folder / "README.md") if "llmux cordon" in each.code)
    script = (folder / "upgrade.sh").read_text().partition("for host")[2]
    steps = [
        "llmux cordon",
        "requests --json",
        "pip install --upgrade",
        "systemctl restart",
        "sleep ",
    ]
    for text in (block.code, script):
        places = [text.rindex(step) for step in steps]
        assert places == sorted(places)
