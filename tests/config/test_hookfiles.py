"""What is said of hooks whose files cannot be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmux.config import hook_remarks, parse_config

SH = "#!/bin/sh\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name, text, mode in (
        ("good.sh", SH, 0o755),
        ("plain.sh", SH, 0o644),
        ("dos.sh", "#!/bin/sh\r\necho\r\n", 0o755),
        ("lone-r.sh", "#!/bin/sh\necho\r\n", 0o755),
    ):
        (hooks / name).write_bytes(text.encode())
        (hooks / name).chmod(mode)
    return tmp_path


def remarks(folder: Path, script: str) -> list[str]:
    model = {"port": 1, "wake": script, "sleep": "true", "alive": "true"}
    return hook_remarks(parse_config({"models": {"a.b": model}}, directory=folder))


@pytest.mark.parametrize(
    ("script", "remark"),
    [
        ("./nope.sh", "there is no ./nope.sh in {folder}, where hooks run"),
        ("hooks/nope.sh --rate 20", "there is no hooks/nope.sh in {folder}, where hooks run"),
        ("A=1 B=x/y ./nope.sh; true", "there is no ./nope.sh in {folder}, where hooks run"),
        ("/nowhere/x", "there is no /nowhere/x"),
        ("./hooks", "./hooks is not a file"),
        (
            "./hooks/plain.sh",
            "./hooks/plain.sh is not executable: chmod +x {folder}/hooks/plain.sh",
        ),
        (
            "./hooks/dos.sh",
            "./hooks/dos.sh has Windows line ends (CRLF), with which it does not run",
        ),
    ],
)
def test_a_file_that_cannot_be_run(folder: Path, script: str, remark: str) -> None:
    assert remarks(folder, script) == [f'models["a.b"].wake: {remark.format(folder=folder)}']


@pytest.mark.parametrize(
    "script",
    [
        "./hooks/good.sh",
        "./hooks/lone-r.sh",
        "A=$B ./nope.sh",
        "cd nope && ./nope.sh",
        "$HOOKS/nope.sh",
        "~/nope.sh",
        "./nope*.sh",
        "docker start a",
        "curl -sf http://localhost:8001/health",
        "if ./nope.sh; then true; fi",
    ],
)
def test_what_is_left_to_the_shell(folder: Path, script: str) -> None:
    assert remarks(folder, script) == []
