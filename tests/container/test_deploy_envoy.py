"""The files of deploy/envoy: configs, what is made from them, and units."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llmux.config import load_config, recipe_remarks
from llmux.config.remarks import address_remarks
from llmux.pick.bootstrap import bootstrap_text
from llmux.pick.config import PickConfig, load_pick_config, split_address
from tests.certificates import authority, write_pair
from tests.containerfile import ROOT

FOLDER = ROOT / "deploy" / "envoy"
HOME = "/etc/llmux/fleet"
KEYS = {"read-key": "change-me-too\n", "client-keys": "change-me-1\nchange-me-2\n"}
UNITS = ("envoy", "llmux-pick", "llmux@")


def fleet_folder(folder: Path) -> Path:
    """Make what README.md puts into /etc/llmux/fleet; returns its pick.yaml."""
    for name, text in KEYS.items():
        (folder / name).write_text(text)
    pair = write_pair(folder)
    Path(pair["cert"]).rename(folder / "fullchain.pem")
    Path(pair["key"]).rename(folder / "privkey.pem")
    authority().cert_pem.write_to_path(str(folder / "hosts-ca.pem"))
    config = folder / "pick.yaml"
    config.write_text((FOLDER / "pick.yaml").read_text().replace(HOME, str(folder)))
    return config


@pytest.fixture
def config(tmp_path: Path) -> PickConfig:
    return load_pick_config(fleet_folder(tmp_path))


def test_the_config_of_envoy_is_what_the_command_prints(config: PickConfig, tmp_path: Path) -> None:
    made = bootstrap_text(config).replace(str(tmp_path), HOME)
    example = FOLDER / "envoy.yaml"
    if "LLMUX_RENEW" in os.environ:
        example.write_text(made)
    assert example.read_text() == made, "run this test with LLMUX_RENEW=1"


def test_keys_are_those_that_say_that_they_must_be_changed(config: PickConfig) -> None:
    text = (FOLDER / "envoy.yaml").read_text()
    for key in config.envoy.api_keys.texts:
        assert key.startswith("change-me")
        assert f"key: {key}\n" in text
    assert config.read_keys.texts[0] not in text  # the picker's, not Envoy's


def test_a_host_is_as_the_picker_and_envoy_expect(config: PickConfig, tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    (tmp_path / "read-key").write_text(KEYS["read-key"])
    text = (FOLDER / "llmux.yaml").read_text()
    for name, path in {"tls/host.pem": pair["cert"], "tls/host-key.pem": pair["key"]}.items():
        text = text.replace(f"/etc/llmux/{name}", path)
    file = tmp_path / "llmux.yaml"
    file.write_text(text.replace("/etc/llmux/read-key", str(tmp_path / "read-key")))
    host = load_config(file)
    assert {split_address(each.address)[1] for each in config.addresses} == {host.port}
    assert (config.hosts_tls is None) == (host.tls is None)
    assert config.read_keys.texts == host.read_keys.texts
    assert host.metrics_access == "control_key"
    assert list(recipe_remarks(host)) == []
    (remark,) = address_remarks(host, host.host)  # README.md: a firewall, since Envoy has the keys
    assert "api_keys" in remark
    assert set(config.envoy.homes) == set(host.models)


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / f"{name}.service").read_text())
    return parser


def test_the_unit_of_a_group_is_that_of_one_llmux() -> None:
    """Everything that docs/llmux.service says, with the instance's name."""
    lines = (ROOT / "docs" / "llmux.service").read_text().partition("\n[Unit]")[2].splitlines()
    mine = (FOLDER / "llmux@.service").read_text().partition("\n[Unit]")[2].splitlines()
    added = [line for line in mine if line == "EnvironmentFile=-/etc/llmux/%i.env"]
    assert len(added) == 1
    mine.remove(added[0])
    for line, other in zip(mine, lines, strict=True):
        if "%i" in line and not line.startswith("Description="):
            general = line.replace("/%i.yaml", "/llmux.yaml").replace("llmux/%i", "llmux")
            assert general == other
        elif "%i" not in line:
            assert line == other
    assert float(unit("llmux@")["Service"]["WatchdogSec"]) > 0


@pytest.mark.parametrize("name", ["envoy", "llmux-pick"])
def test_units_of_the_edge_may_do_little(name: str) -> None:
    service = unit(name)["Service"]
    assert service["User"] == "llmux-edge"
    assert service["Restart"] == "always"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    may = service["CapabilityBoundingSet"]
    assert may == ("CAP_NET_BIND_SERVICE" if name == "envoy" else "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    """But for the programs, which are not here."""
    text = (FOLDER / f"{name}.service").read_text()
    for program in (
        "/usr/local/bin/llmux",
        "/usr/local/bin/envoy",
        "/usr/local/lib/llmux/envoy-parent.sh",
    ):
        text = text.replace(program, "/bin/true")
    copy = tmp_path / f"{name.replace('@', '@x')}.service"
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if copy.name in line]
    assert said == []


@pytest.mark.parametrize("name", ["envoy-parent.sh", "upgrade.sh"])
def test_scripts_can_be_run(name: str) -> None:
    assert os.access(FOLDER / name, os.X_OK)
    assert (FOLDER / name).read_text().startswith("#!/bin/sh\n")
