"""The terminal against a real llmux, and `top` on a real (pseudo) terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.cli.test_terminal import complete
from tests.prefork import run_llmux
from tests.servers import LlmuxProcess, Rack, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"
KEY = "ck-5teering"

ENVIRON = {
    **{name: value for name, value in os.environ.items() if not name.startswith("LLMUX_")},
    "TERM": "xterm-256color",
    "PYTHONUNBUFFERED": "1",
}
for unwanted in ("NO_COLOR", "COLUMNS", "LINES"):
    ENVIRON.pop(unwanted, None)


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b/c") as rack:
        (tmp_path / "b").mkdir()
        yield rack


@pytest.fixture
async def llmux(rack: Rack) -> AsyncIterator[LlmuxProcess]:
    wake = {"wake": "echo 'waking b/c'; : > b/c.awake", "aliases": ["bee:1"]}
    config = rack.write_config(models={"b/c": wake})
    async with running_llmux(config) as llmux:
        yield llmux


async def run(llmux: LlmuxProcess, *arguments: str, exit_code: int = 0, **environ: str) -> str:
    """What a command prints; to standard error, if it is to fail."""
    env = {**ENVIRON, "LLMUX_URL": llmux.url, **environ}
    with trio.fail_after(30):
        code, printed, said = await run_llmux(*arguments, env=env)
    assert code == exit_code, said
    assert bool(said) == bool(exit_code)
    return said if exit_code else printed


async def test_orders_are_heeded(llmux: LlmuxProcess, rack: Rack) -> None:
    assert await run(llmux, "switch", "a") == "Switched to model: a\n"
    assert rack.backends["a"].awake.exists()
    assert await run(llmux, "wake", "bee:1") == "Model bee:1 woken\n"
    assert rack.backends["b/c"].awake.exists()
    text = await run(llmux, "status")
    assert re.search(r"^default  +b/c  +active ", text, re.MULTILINE)
    assert re.search(r"^b/c  +awake ", text, re.MULTILINE)
    assert await run(llmux, "sleep", "b/c") == "Model b/c sleeping\n"
    assert not rack.backends["b/c"].awake.exists()
    assert await run(llmux, "pin", "a", "--wait") == "Pinned to model: a\n"
    assert " yes, wait" in await run(llmux, "status")
    assert await run(llmux, "unpin", "--group", "default") == "Unpinned group: default\n"
    assert await run(llmux, "mode", "manual") == "Switched to manual mode\n"
    assert json.loads(await run(llmux, "status", "--json"))["mode"] == "manual"
    assert await run(llmux, "unpin") == "Unpinned. Switched to auto mode.\n"


@pytest.mark.slow
async def test_refusals(llmux: LlmuxProcess, rack: Rack) -> None:
    for command in (["switch", "x"], ["pin", "x"], ["logs", "x"], ["sleep", "x"]):
        assert await run(llmux, *command, exit_code=1) == (
            "Error: Model not found: x. Known names: a, b/c\n"
        )
    assert "x" in await run(llmux, "unpin", "--group", "x", exit_code=1)
    assert await run(llmux, "cancel", "x", exit_code=1)


@pytest.mark.slow
async def test_reload(llmux: LlmuxProcess, rack: Rack) -> None:
    config = rack.write_config(models={"a": {"group": "one"}}, policy={"name": "fifo"})
    assert (await run(llmux, "reload")).startswith("Reloaded")
    assert "policy fifo" in await run(llmux, "status")
    config.write_text('{"port": "x", "models": 3}')
    told = await run(llmux, "reload", exit_code=1)
    assert "port: expected int, got str\n" in told
    assert "models: expected object" in told
    assert "policy fifo" in await run(llmux, "status")


@pytest.mark.slow
async def test_requests_and_cancel(llmux: LlmuxProcess, rack: Rack) -> None:
    answers: list[httpx.Response | Exception] = []
    inside = trio.Event()
    rack.backends["a"].inside = inside.set

    async def ask() -> None:
        async with llmux.client() as client:
            try:
                answers.append(
                    await client.post(CHAT, json=chat("a", stream=True, chunks=1000, interval=0.05))
                )
            except httpx.HTTPError as error:
                answers.append(error)

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        with trio.fail_after(20):
            await inside.wait()
        line = (await run(llmux, "requests")).splitlines()[1].split()
        assert line[1] == "a"
        assert line[2] in {"forwarding", "answering"}
        found = json.loads(await run(llmux, "requests", "--json"))
        assert [request["id"] for request in found["requests"]] == [line[0]]
        assert await run(llmux, "cancel", line[0]) == f"Cancelled request: {line[0]}\n"
        with trio.fail_after(10):
            while rack.backends["a"].in_flight:
                await trio.sleep(0.01)
    assert answers
    assert rack.backends["a"].aborted == 1
    assert await run(llmux, "requests") == "no requests\n"


async def test_logs(llmux: LlmuxProcess) -> None:
    await run(llmux, "switch", "b/c")
    assert "waking b/c\n" in await run(llmux, "logs", "b/c")
    assert await run(llmux, "logs", "bee:1", "-n", "0") == ""
    command = [sys.executable, "-m", "llmux", "logs", "b/c", "-f", "-n", "0", "--url", llmux.url]
    async with trio.open_nursery() as nursery:
        following = await trio.lowlevel.open_process(
            command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert following.stdout is not None
        seen = b""
        with trio.fail_after(30):
            while b"waking b/c" not in seen:
                await run(llmux, "switch", "a")  # again: the first may be before it follows
                await run(llmux, "switch", "b/c")
                with trio.move_on_after(1):
                    seen += await following.stdout.receive_some()
        following.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            assert await following.wait() == 130
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_llmux_goes_while_a_log_is_followed(rack: Rack) -> None:
    async with running_llmux(rack.write_config(), ends_with=-signal.SIGKILL) as llmux:
        command = [sys.executable, "-m", "llmux", "logs", "a", "-f", "--url", llmux.url]
        await run(llmux, "switch", "a")
        process = await trio.lowlevel.open_process(
            command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(20):
            assert await process.stdout.receive_some()
            llmux.process.kill()
            assert await process.wait() == 5
            told = await process.stderr.receive_some()
        assert told.startswith(f"Error: the connection to {llmux.url} broke: ".encode())
        assert told.count(b"\n") == 1


async def test_an_order_that_was_given_stands(rack: Rack) -> None:
    wake = "until test -e go; do sleep 0.05; done; : > a.awake"
    async with running_llmux(rack.write_config(models={"a": {"wake": wake}})) as llmux:
        command = [sys.executable, "-m", "llmux", "switch", "a", "--url", llmux.url]
        process = await trio.lowlevel.open_process(command, env=ENVIRON, stderr=subprocess.PIPE)
        assert process.stderr is not None
        with trio.fail_after(20):
            while not re.search(r"-> a +waking", await run(llmux, "status")):
                pass
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert not await process.stderr.receive_some()
            (rack.folder / "go").touch()
            while not re.search(r"default +a +active", await run(llmux, "status")):
                pass


async def test_progress_on_a_terminal_and_what_stands_after_ctrl_c(rack: Rack) -> None:
    wake = "until test -e go; do sleep 0.05; done; : > a.awake"

    def watch(url: str) -> None:
        terminal = Terminal("switch", "a", "--url", url)
        try:
            terminal.wait_for(r"switching to a: wake hook of a, [\d.]+ s")
            terminal.press("\x03")
            terminal.wait_for(
                r"the switch goes on \(now: wake hook of a, [\d.]+ s\); `llmux status` shows it"
            )
            assert terminal.end() == 130
        finally:
            terminal.close()

    async with running_llmux(rack.write_config(models={"a": {"wake": wake}})) as llmux:
        await trio.to_thread.run_sync(watch, llmux.url)
        (rack.folder / "go").touch()
        with trio.fail_after(20):
            while not re.search(r"default +a +active", await run(llmux, "status")):
                pass


@pytest.mark.slow
async def test_keys(rack: Rack, tmp_path: Path) -> None:
    async with running_llmux(rack.write_config(control_keys=[KEY])) as llmux:
        for arguments, environ in (
            (["status"], {}),
            (["logs", "a"], {}),
            (["reload"], {"LLMUX_CONTROL_KEY": "other"}),
        ):
            told = await run(llmux, *arguments, exit_code=6, **environ)
            assert "--key-file or $LLMUX_CONTROL_KEY" in told
        (tmp_path / "key").write_text(f"{KEY}\n")
        await run(llmux, "status", LLMUX_CONTROL_KEY=KEY)
        await run(llmux, "status", "--key", KEY)
        await run(llmux, "logs", "a", "--key-file", str(tmp_path / "key"))


@pytest.mark.slow
async def test_a_read_key_is_for_what_only_looks(rack: Rack) -> None:
    config = rack.write_config(control_keys=[KEY], read_keys=["look-1234567890"])
    reading: dict[str, Any] = {"LLMUX_CONTROL_KEY": "look-1234567890"}
    async with running_llmux(config) as llmux:
        for command in (["status"], ["requests"], ["logs", "a"]):
            await run(llmux, *command, **reading)
        for command in (["reload"], ["switch", "a"], ["cancel", "x"]):
            told = await run(llmux, *command, exit_code=6, **reading)
            assert "This is a read key, which shows llmux and steers nothing" in told


@pytest.mark.slow
async def test_bash_completes_what_is_running(llmux: LlmuxProcess, tmp_path: Path) -> None:
    ask = partial(complete, tmp_path=tmp_path)
    line = f"llmux pin --url {llmux.url} "
    assert await trio.to_thread.run_sync(ask, line) == ["a", "b/c", "bee:1"]
    assert await trio.to_thread.run_sync(ask, line + "bee:") == ["1"]


# ---- top ----


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal the program's own, so that its Ctrl-C is a signal."""


class Terminal:
    """A pseudo terminal with a program in it, and all that it has shown."""

    def __init__(self, *arguments: str, columns: int = 100, lines: int = 30) -> None:
        self.host, self.guest = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.guest)
        self.shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, sys.executable, "-m", "llmux", *arguments],
            stdin=self.guest, stdout=self.guest, stderr=self.guest, env=ENVIRON,
            start_new_session=True,
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.guest, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.host, keys.encode())

    def wait_until(self, pattern: str, seconds: float = 20) -> None:
        """Until a frame that began after this call shows it."""
        self.shown = b""
        deadline = time.monotonic() + seconds
        while not any(re.search(pattern, frame) for frame in self.frames()[1:]):
            assert time.monotonic() < deadline, self.frames()[-2:]
            self._read(0.1)

    def wait_for(self, pattern: str, seconds: float = 20) -> None:
        """Until it has shown this, whatever the frame."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, "".join(self.frames())):
            assert time.monotonic() < deadline, self.frames()
            self._read(0.1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.host)
        os.close(self.guest)

    def frames(self) -> list[str]:
        """What was shown since the last wait began, by frame, without colours."""
        frames = self.shown.split(b"\x1b[H")
        return [
            re.sub(rb"\x1b\[[?\d;]*[A-Za-z]", b"", each).decode(errors="replace") for each in frames
        ]

    def _read(self, seconds: float) -> bool:
        if select.select([self.host], [], [], seconds)[0]:
            self.shown += os.read(self.host, 65536)
            return True
        return False

    def end(self) -> int:
        """Its exit code, once it has ended and all is read."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            self._read(0.05)
            assert time.monotonic() < deadline, self.frames()[-2:]
        while self._read(0):
            pass
        return self.process.returncode


@contextmanager
def top(llmux: LlmuxProcess, **options: Any) -> Iterator[Terminal]:
    terminal = Terminal("top", "--url", llmux.url, **options)
    try:
        yield terminal
    finally:
        terminal.close()


def is_restored(terminal: Terminal) -> bool:
    """The screen that was before, the cursor, and how keys are read."""
    screen = terminal.shown.rfind(b"\x1b[?1049l") > terminal.shown.rfind(b"\x1b[?1049h")
    cursor = terminal.shown.rfind(b"\x1b[?25h") > terminal.shown.rfind(b"\x1b[?25l")
    modes = termios.tcgetattr(terminal.guest) == terminal.before
    assert (screen, cursor, modes) == (True, True, True)
    return True


@pytest.mark.slow
async def test_top_follows_a_switch_and_leaves_the_terminal_as_it_was(llmux: LlmuxProcess) -> None:
    def watch() -> None:
        with top(llmux) as terminal:
            terminal.wait_until(r"default +- +idle")
            httpx.post(f"{llmux.url}/control/switch", json={"model": "a"}).raise_for_status()
            terminal.wait_until(r"default +a +active", seconds=2)
            terminal.wait_until(r"nothing -> a +success .* forced")
            terminal.press("js")
            terminal.wait_until(r"switch to b/c\? y or n")
            terminal.press("n")
            terminal.wait_until("q quit")
            terminal.press("sy")
            terminal.wait_until(r"default +b/c +active")
            terminal.wait_until(r"Switched to model: b/c")
            terminal.press("my")
            terminal.wait_until(r"mode manual")
            terminal.press("cy")
            terminal.wait_until(r", cordoned, up")
            terminal.press("cy")
            terminal.wait_until(r"Uncordoned")
            terminal.resize(40, 12)
            terminal.wait_until(r"\A(.{40}\r\n){11}.{40}\Z")
            terminal.press("q")
            assert terminal.end() == 0
            assert is_restored(terminal)

    await trio.to_thread.run_sync(watch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_top_ends_in_order(
    llmux: LlmuxProcess, number: signal.Signals, exit_code: int
) -> None:
    def watch() -> None:
        with top(llmux) as terminal:
            terminal.wait_until(r"default +- +idle")
            if number is signal.SIGINT:
                terminal.press("\x03")
            else:
                terminal.process.send_signal(number)
            assert terminal.end() == exit_code
            assert is_restored(terminal)

    await trio.to_thread.run_sync(watch)


@pytest.mark.slow
async def test_top_connects_again(rack: Rack) -> None:
    with_port = rack.write_config()
    async with running_llmux(with_port) as first:
        port = httpx.URL(first.url).port
        config = rack.write_config(port=port)

        def lose() -> Terminal:
            terminal = Terminal("top", "--url", first.url)
            terminal.wait_until(r"default +- +idle")
            return terminal

        terminal = await trio.to_thread.run_sync(lose)
        try:
            await first.terminate()
            await trio.to_thread.run_sync(terminal.wait_until, "trying again")
            async with running_llmux(config) as second:
                await run(second, "switch", "a")
                await trio.to_thread.run_sync(terminal.wait_until, r"default +a +active")
                terminal.press("q")
                assert await trio.to_thread.run_sync(terminal.end) == 0
        finally:
            terminal.process.kill()
            terminal.process.wait()
            os.close(terminal.host)
            os.close(terminal.guest)


def test_top_says_at_once_that_nobody_is_there() -> None:
    terminal = Terminal("top", "--url", "http://127.0.0.1:1")
    try:
        assert terminal.end() == 5
        assert b"cannot reach llmux at http://127.0.0.1:1" in terminal.shown
        assert b"\x1b[?1049h" not in terminal.shown
    finally:
        os.close(terminal.host)
        os.close(terminal.guest)
