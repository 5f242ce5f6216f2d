"""`tls` in the config: its paths, its mistakes with their places, what is warned of and shown."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from llmux.api.masked import masked_config
from llmux.cli.main import main
from llmux.config import Config, load_config, parse_config
from llmux.errors import ConfigError
from llmux.observe.events import Events
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.certificates import DAY, write_pair
from tests.fakes import FakeHooks

MODEL = "models:\n  a: {port: 8001, wake: 'true', sleep: 'true', alive: 'true'}\n"


def write(folder: Path, tls: str) -> Path:
    path = folder / "llmux.yaml"
    path.write_text(f"state_dir: state\ntls:{tls}\n{MODEL}")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return [line.removeprefix(f"{path.parent}/") for line in caught.value.lines]


def test_paths_are_relative_to_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path)
    monkeypatch.setenv("PLACE", "key")
    config = load_config(write(tmp_path, " {cert: ./cert.pem, key: '${env:PLACE}.pem'}"))
    assert config.tls is not None
    assert (config.tls.cert, config.tls.key) == (tmp_path / "cert.pem", tmp_path / "key.pem")
    assert config.tls.pair.cert == tmp_path / "cert.pem"


def test_null_is_plain_http(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")).tls is None


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        (" {cert: cert.pem}", "llmux.yaml:2:1: tls.key: required key is missing"),
        (" {cert: cert.pem, keys: key.pem}", "llmux.yaml:2:23: tls.keys: unknown key, did you mean 'key'?"),
        (" {cert: 1, key: key.pem}", "llmux.yaml:2:7: tls.cert: expected str, got int"),
        (" {cert: ' ', key: key.pem}", "llmux.yaml:2:7: tls.cert: must not be blank"),
        (" true", "llmux.yaml:2:1: tls: expected object, got bool"),
        (" {cert: cert.pem, key: '${env:NONE_SUCH}'}", "llmux.yaml:2:23: tls.key: the environment variable NONE_SUCH is not set"),
        ("\n  cert: key.pem\n  key: cert.pem", "llmux.yaml:3:3: tls.cert: this is the private key, and 'key' the certificate: swap them"),
        ("\n  cert: cert.pem\n  key: none.pem", "llmux.yaml:4:3: tls.key: the file '"),
    ],
)  # fmt: skip
def test_mistakes_with_their_places(tmp_path: Path, tls: str, expected: str) -> None:
    write_pair(tmp_path)
    found = mistakes(write(tmp_path, tls))
    assert any(line.startswith(expected) for line in found), found


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, " {cert: none.pem, key: key.pem}")
    path.write_text(path.read_text() + "prot: 1\n")
    assert len(mistakes(path)) == 2


def check(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["check", *arguments])
    return done.exit_code, done.output


def test_check_shows_and_warns(tmp_path: Path) -> None:
    write_pair(tmp_path, ["llm.example.org"])
    path = write(tmp_path, " {cert: cert.pem, key: key.pem}")
    code, said = check(str(path), "--strict")
    assert (code, "listens on 127.0.0.1:3000 (TLS: llm.example.org, until 20" in said) == (
        0,
        True,
    ), said
    write_pair(tmp_path, ends_in=timedelta(days=-3), key_mode=0o644)
    code, said = check(str(path), "--strict")
    assert code == 1
    assert "llmux.yaml:2:7: tls.cert: expired on 20" in said
    assert "llmux.yaml:2:23: tls.key: every user of this machine can read it: chmod o-rwx" in said
    assert check(str(path))[0] == 0


def test_the_key_stays_out_of_what_is_shown(tmp_path: Path) -> None:
    write_pair(tmp_path)
    config = load_config(write(tmp_path, " {cert: cert.pem, key: key.pem}"))
    shown = msgspec.json.decode(msgspec.json.encode(masked_config(config)))
    assert shown["tls"] == {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}


def reloader(config: Config) -> Reloader:
    return Reloader(config, Switchboard(config, FakeHooks(), Events()))


async def test_only_a_restart_turns_it_on_or_off(tmp_path: Path) -> None:
    def config(**settings: Any) -> Config:
        models = {"a": {"port": 8001, "wake": "up", "sleep": "down", "alive": "ping"}}
        return parse_config({"models": models, "state_dir": "s", **settings}, directory=tmp_path)

    plain, secured = config(), config(tls=write_pair(tmp_path))
    assert reloader(plain).apply(secured) == ["tls"]
    assert reloader(secured).apply(plain) == ["tls"]
    assert reloader(secured).apply(config(tls=write_pair(tmp_path, ends_in=80 * DAY))) == []


def test_the_helper_writes_keys_for_their_owner(tmp_path: Path) -> None:
    assert stat.S_IMODE(Path(write_pair(tmp_path)["key"]).stat().st_mode) == 0o600
