"""The command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from llmux import __version__
from llmux.cli.check import config_table
from llmux.cli.examples import EXAMPLES
from llmux.cli.main import main
from llmux.config import load_config, parse_config
from llmux.server.listening import server_config
from llmux.standin.cli import main as standin

ROOT = Path(__file__).parents[2]

CONFIG = """
port: 4000
models:
  facebook/opt-125m: {port: 8001, wake: sh, sleep: sh, alive: sh, aliases: [opt, tiny]}
  far: {url: "http://10.0.0.5:8000", wake: sh, sleep: sh, alive: sh, verify_asleep: sh}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def _leave_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.server.signals.hold_back", lambda: None)
    monkeypatch.setattr("llmux.observe.logs.configure", lambda *_, **__: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llmux.yaml"
    path.write_text(CONFIG)
    return path


def test_version() -> None:
    assert run("--version").output == f"llmux, version {__version__}\n"


@pytest.mark.parametrize("command", ["", *main.list_commands(click.Context(main))])
def test_h_is_help(command: str) -> None:
    words = command.split()
    short, long = run(*words, "-h"), run(*words, "--help")
    assert (short.exit_code, short.output) == (0, long.output)
    assert short.output.startswith(f"Usage: main {command}".rstrip())


def test_h_is_help_of_the_stand_in() -> None:
    for words in ([], ["serve"], ["stop"], ["wait"], ["call"]):
        short = CliRunner().invoke(standin, [*words, "-h"])
        assert (short.exit_code, short.output[:6]) == (0, "Usage:"), words


def test_check_shows_what_it_found(config: Path) -> None:
    result = run("check", "-c", str(config))
    assert result.exit_code == 0
    *_, head, opt, far = result.output.splitlines()
    assert head.split() == ["model", "group", "backend", "aliases", "hooks"]
    assert opt.split() == [
        "facebook/opt-125m", "default", "http://127.0.0.1:8001", "opt,", "tiny",
        "wake", "sleep", "alive",
    ]  # fmt: skip
    assert far.split()[-4:] == ["wake", "sleep", "alive", "verify_asleep"]
    assert config_table(load_config(config)) in result.output


def test_check_takes_the_file_as_an_argument(config: Path) -> None:
    assert run("check", str(config)).output == run("check", "-c", str(config)).output
    # Beside the command, it counts more than what stands before.
    assert run("-c", "nowhere.yaml", "check", str(config)).exit_code == 0
    missing = run("check", str(config.with_name("none.yaml")))
    assert missing.exit_code == 2
    assert (
        missing.stderr == f"{config.parent}/none.yaml: cannot be read: No such file or directory\n"
    )


def test_check_takes_one_config(config: Path) -> None:
    result = run("check", str(config), "-c", str(config))
    assert result.exit_code == 2
    assert "name one config: FILE or -c FILE, not both" in result.stderr


def test_a_file_for_a_command_is_told_how_it_is_served(config: Path) -> None:
    result = run(str(config))
    assert result.exit_code == 2
    assert f"To serve this file: llmux -c {config}" in result.stderr
    assert "No such command 'chek'" in run("chek").stderr


def test_check_warns_of_hooks_that_cannot_run(config: Path) -> None:
    config.write_text(
        CONFIG.replace("wake: sh, sleep: sh, alive: sh, al", "wake: ./up, sleep: sh, alive: sh, al")
    )
    result = run("check", "-c", str(config))
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: {config}:4:35: models.facebook/opt-125m.wake: "
        f"there is no ./up in {config.parent}, where hooks run\n"
    )


def test_options_may_stand_before_the_command(config: Path) -> None:
    assert run("-c", str(config), "check").exit_code == 0
    assert run("-c", "nowhere.yaml", "check", "-c", str(config)).exit_code == 0


@pytest.mark.parametrize("command", [["check"], ["serve"], []])
def test_a_bad_config_is_told_line_by_line(config: Path, command: list[str]) -> None:
    config.write_text(CONFIG.replace("port: 8001", "port: x").replace("4000", "-1"))
    result = run(*command, "-c", str(config))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"{config}:2:1: port: expected int >= 0",
        f"{config}:4:23: models.facebook/opt-125m.port: expected int, got str",
    ]


def test_check_knows_the_policies(config: Path) -> None:
    config.write_text(CONFIG + "policy: {name: fifoo}")
    result = run("check", "-c", str(config))
    assert result.exit_code == 2
    line = CONFIG.count("\n") + 1
    assert result.stderr.startswith(
        f"{config}:{line}:10: policy.name: unknown policy 'fifoo', did you mean 'fifo'?"
    )


def test_no_config_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMUX_CONFIG", raising=False)
    result = run("serve")
    assert result.exit_code == 2
    assert result.stderr.startswith("no config: ")


def test_examples_are_listed_and_printed() -> None:
    listed = run("examples").output
    for name, (source, what) in EXAMPLES.items():
        assert re.search(rf"^{re.escape(name)} +{what}$", listed, re.MULTILINE)
        assert run("examples", name).output == (ROOT / source).read_text()
    result = run("examples", "llmux.servic")
    assert result.exit_code == 2
    assert "llmux.service" in result.stderr


def test_schema_is_json() -> None:
    schema = json.loads(run("schema").output)
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_ipv6_addresses_are_bound_in_brackets() -> None:
    models = {"a": {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}}
    config = parse_config({"models": models, "state_dir": "state"}, directory=Path())
    assert server_config("::1", 3000, config).bind == ["[::1]:3000"]


GOOD = """
host: HOST
port: 4000
models:
  a: {url: "http://10.0.0.5:8000", wake: "sh -c up", sleep: "true", alive: "true"}
"""


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (("HOST", "127.0.0.1"), 0, ""),
        (
            ("sh -c up", "no-such-cmd x"),
            1,
            "5:36: models.a.wake: there is no command 'no-such-cmd'",
        ),
        (("sh -c up", "./no-such-file"), 1, "5:36: models.a.wake: there is no ./no-such-file in "),
        (
            ("sh -c up", "./plain.sh"),
            1,
            "5:36: models.a.wake: ./plain.sh is not executable: chmod +x",
        ),
        (("HOST", "0.0.0.0"), 1, "2:1: host: 0.0.0.0 is open to other machines"),
        ((":8000", ":8000/v1"), 1, "5:7: models.a.url: ends in /v1"),
        (("10.0.0.5:8000", "localhost:4000"), 2, "5:7: models.a.url: is llmux's own port (4000)"),
    ],
)
def test_check_strict(tmp_path: Path, change: tuple[str, str], code: int, says: str) -> None:
    path = tmp_path / "llmux.yaml"
    (tmp_path / "plain.sh").write_text("#!/bin/sh\n")
    path.write_text(GOOD.replace(*change).replace("HOST", "127.0.0.1"))
    strict, lax = run("check", "--strict", "-c", str(path)), run("check", "-c", str(path))
    assert (strict.exit_code, lax.exit_code) == (code, 2 if code == 2 else 0)
    assert strict.stderr == lax.stderr
    prefix = "" if code == 2 else "warning: "
    assert strict.stderr.startswith(f"{prefix}{path}:{says}" if says else "")
    assert len(strict.stderr.splitlines()) == (1 if says else 0)


@pytest.mark.parametrize("arguments", [[], ["-p", "8000", "-H", "0.0.0.0"], ["-p", "4001"]])
def test_serve_refuses_to_forward_to_itself(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "llmux.yaml"
    port = arguments[1] if arguments else "4000"
    path.write_text(GOOD.replace("10.0.0.5:8000", f"127.0.0.1:{port}").replace("HOST", "127.0.0.1"))
    result = run("serve", "-c", str(path), *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{path}:5:7: models.a.url: is llmux's own port ({port})")
