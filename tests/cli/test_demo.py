"""`llmux demo`, and `llmux` without a config: on a terminal, without one, and however it ends."""

from __future__ import annotations

import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from click.testing import CliRunner

from llmux.cli import demo
from llmux.cli.main import main
from llmux.config import load_config

TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal the program's own, so that its Ctrl-C is a signal."""

CTRL_C = b"\x03"

PATIENCE_S = 90.0
"""The machine may be busy, and a stand-in is three Pythons away."""


class Started:
    """A `llmux` on a pseudo terminal, in an empty folder.

    Attributes:
        process: Its process.
        shown: All that it has shown, without colours.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "tmp"
        for new in (self.temporary, folder / "empty"):
            new.mkdir()
        kept = {name: text for name, text in os.environ.items() if not name.startswith("LLMUX_")}
        self.host, guest = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, sys.executable, "-m", "llmux", *arguments],
            stdin=guest, stdout=guest, stderr=guest, start_new_session=True, cwd=folder / "empty",
            env={**kept, "TMPDIR": str(self.temporary), "NO_COLOR": "1", "TERM": "xterm"},
        )  # fmt: skip
        os.close(guest)
        self.shown = ""

    def press(self, keys: bytes) -> None:
        os.write(self.host, keys)

    def read(self, seconds: float) -> bool:
        """Read what it shows within a time; returns whether there was anything."""
        if not select.select([self.host], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.host, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", data.decode())
        return bool(data)

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self.shown, re.MULTILINE)) is None:
            assert time.monotonic() < deadline, self.shown
            if not self.read(0.1):
                assert self.process.poll() is None, self.shown
        return found

    def end(self, again: bytes = b"") -> int:
        """Its exit code, once it has ended and all is read; keys may be pressed until then."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            if not self.read(0.5 if again else 0.05) and again:
                self.press(again)
            assert time.monotonic() < deadline, self.shown
        while self.read(0):
            pass
        assert self.process.returncode is not None
        return self.process.returncode

    def ask(self, root: str, *models: str) -> None:
        for model in models:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 3,
            }
            answer = httpx.post(f"{root}/v1/chat/completions", json=body, timeout=PATIENCE_S)
            assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text

    def standins(self) -> list[int]:
        """The ids of the stand-ins that it has started and that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (
                    (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                )
                if b"llmux.standin" in words and str(self.temporary) in str(
                    (entry / "cwd").readlink()
                ):
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                pass
        return found

    def wait_until_nothing_is_left(self) -> None:
        """A stand-in that has stopped lets go of its pid file, and then ends."""
        deadline = time.monotonic() + PATIENCE_S
        while self.standins():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Started]:
    running = Started(folder, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        os.close(running.host)


needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")


@needs_proc
def test_without_a_config_a_terminal_is_offered_the_demo(tmp_path: Path) -> None:
    with started(tmp_path, "--port", "0") as llmux:
        llmux.wait_for(r"Start the demo now\? \[y/N\]: $")
        assert f"./llmux.yaml or ./config.yaml in {tmp_path / 'empty'}" in llmux.shown
        assert "$LLMUX_CONFIG is not set" in llmux.shown
        assert "llmux init RECIPE" in llmux.shown
        llmux.press(b"y\n")
        root = llmux.wait_for(r"API  (http://127\.0\.0\.1:\d+)/v1\n")[1]
        llmux.wait_for(rf"UI   {root}/ui\n(.*\n)*.*Ctrl-C ends the demo\.\n")
        assert f"curl {root}/v1/chat/completions" in llmux.shown
        llmux.ask(root, "llama")
        # The first one is a process that has been stopped; a look at it may still be running.
        assert llmux.standins()
        (folder,) = llmux.temporary.iterdir()
        assert list(folder.glob("*.pid"))
        llmux.press(CTRL_C)
        assert llmux.end() == 0
        llmux.wait_until_nothing_is_left()
        assert list(llmux.temporary.iterdir()) == []
        assert "Traceback" not in llmux.shown


@pytest.mark.parametrize("keys", [b"\n", CTRL_C], ids=["enter", "ctrl-c"])
def test_without_a_config_the_demo_may_be_declined(keys: bytes, tmp_path: Path) -> None:
    with started(tmp_path) as llmux:
        llmux.wait_for(r"Start the demo now\? \[y/N\]: $")
        llmux.press(keys)
        # Python misses a signal that comes just before it waits for a line.
        assert llmux.end(again=keys if keys == CTRL_C else b"") == 2
        assert "Traceback" not in llmux.shown
        assert list(llmux.temporary.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["serve"], ["--log-format", "json"]], ids=" ".join)
def test_without_a_config_and_a_terminal_the_text_is_an_error(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMUX_CONFIG", raising=False)
    monkeypatch.setattr("llmux.server.signals.hold_back", lambda: None)
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "no config: $LLMUX_CONFIG is not set, and there is no ./llmux.yaml or ./config.yaml in "
        f"{tmp_path}; name one with -c FILE",
        "To begin:",
        "  llmux init RECIPE   writes a config for your model server",
        "  llmux demo          serves two stand-in models, without a GPU and without a config",
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_terminal_is_told_the_urls_when_llmux_serves(log_format: str, tmp_path: Path) -> None:
    config = tmp_path / "llmux.yaml"
    config.write_text(
        "port: 0\nstate_dir: state\nmodels: {a: {port: 1, wake: up, sleep: down, alive: ping}}\n"
    )
    with started(tmp_path, "-c", str(config), "--log-format", log_format) as llmux:
        root = llmux.wait_for(r"http://127\.0\.0\.1:\d+")[0]
        if log_format == "text":
            llmux.wait_for(rf"^API  {root}/v1\nUI   {root}/ui\n")
        else:  # every line is an object
            llmux.wait_for(r'"serving"')
        llmux.press(CTRL_C)
        assert llmux.end() == 0
        assert ("API" in llmux.shown) == (log_format == "text")


@needs_proc
def test_a_killed_demo_takes_its_stand_ins_along(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "-p", "0") as llmux:
        root = llmux.wait_for(r"API  (\S+)/v1\n")[1]
        llmux.ask(root, "llama")
        assert llmux.standins()
        llmux.process.kill()
        llmux.end()
        llmux.wait_until_nothing_is_left()


@needs_proc
def test_a_demo_ends_with_its_terminal(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "-p", "0") as llmux:
        llmux.ask(llmux.wait_for(r"API  (\S+)/v1\n")[1], "llama")
        assert llmux.standins()
        os.close(llmux.host)
        llmux.host = os.open(os.devnull, os.O_RDONLY)
        assert llmux.process.wait(PATIENCE_S) == 0
        llmux.wait_until_nothing_is_left()
        assert list(llmux.temporary.iterdir()) == []


@needs_proc
@pytest.mark.slow
def test_a_second_signal_ends_the_demo_at_once_and_its_stand_ins_too(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "-p", "0") as llmux:
        root = llmux.wait_for(r"API  (\S+)/v1\n")[1]
        body = {"model": "mistral", "prompt": "Hi", "stream": True, "max_tokens": 10_000}
        with httpx.stream(
            "POST", f"{root}/v1/completions", json=body, timeout=PATIENCE_S
        ) as answer:
            next(answer.iter_raw())
            llmux.press(CTRL_C)
            llmux.wait_for("stopping")
            llmux.press(CTRL_C)
            assert llmux.end() == 4
        llmux.wait_until_nothing_is_left()
        assert list(llmux.temporary.iterdir()) == []


def test_a_demo_on_a_port_in_use_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with started(tmp_path, "demo", "-p", str(port)) as llmux:
            assert llmux.end() == 1
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in llmux.shown
            assert list(llmux.temporary.iterdir()) == []


def test_a_demo_takes_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.server.signals.hold_back", lambda: None)
    done = CliRunner().invoke(main, ["-c", "llmux.yaml", "demo"])
    assert done.exit_code == 2
    assert "llmux demo has a config of its own: leave out -c" in done.stderr


def test_the_config_of_the_demo_is_that_of_make_run_without_its_scripts(tmp_path: Path) -> None:
    config = load_config(demo._write_config(tmp_path))
    shown = yaml.safe_load((Path(__file__).parents[2] / "llmux.yaml").read_text())
    assert set(config.models) == set(shown["models"]) == set(demo.MODELS)
    assert len({model.port for model in config.models.values()}) == 2
    for name, model in config.models.items():
        for hook in ("wake", "sleep", "alive"):
            script = model.script(hook)
            assert script is not None
            done = subprocess.run(["sh", "-n", "-c", script], check=False)
            assert done.returncode == 0, (name, hook, script)
            assert "./" not in script, "there are no scripts beside it"


def test_a_python_with_a_space_in_its_path_is_quoted(tmp_path: Path) -> None:
    code = (
        "import sys; sys.executable = '/a b/python'; from llmux.cli import demo; print(demo.AWAKE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("'/a b/python' -m llmux.standin wait")


def test_a_demo_without_a_terminal_ends_with_0(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llmux", "demo", "-p", "0"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " serving" in line:
                break
        process.terminate()
        lines += process.stderr.readlines()
    assert process.wait(PATIENCE_S) == 0, lines
    assert "API" not in "".join(lines)
    assert list(tmp_path.iterdir()) == []
