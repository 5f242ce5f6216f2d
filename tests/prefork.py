"""llmux processes that are forked from one that has imported all of it.

A test's llmux is a process of its own, with its own session, environment and log. But its start
takes 0.1 s of CPU instead of 0.8 s, and the tests start some 250.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import trio

IMPORTED = [
    "llmux.server.run",
    "llmux.app",
    "llmux.downstream.fastlane",
    "llmux.cli.terminal.commands",
]

LONGEST_REQUEST = 1 << 20


class Forked:
    """A forked process: what the tests use of `trio.Process`.

    Args:
        pid: Its id.
        stdout: A pipe of what it prints.
        stderr: A pipe of its errors and log lines.
        parent: A socket to its parent, which tells its exit code.
    """

    def __init__(
        self,
        pid: int,
        stdout: trio.lowlevel.FdStream,
        stderr: trio.lowlevel.FdStream,
        parent: socket.socket,
    ) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self._parent = parent
        self._returncode: int | None = None
        self._waiting = trio.Lock()

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended; minus the number of the signal that ended it."""
        return self.poll()

    def poll(self) -> int | None:
        """Look whether it has ended."""
        if self._returncode is None:
            try:
                told = self._parent.recv(16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            self._parent.close()
            self._returncode = int(told)
        return self._returncode

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit code."""
        async with self._waiting:
            while (code := self.poll()) is None:
                await trio.lowlevel.wait_readable(self._parent)
            return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


async def fork(*arguments: str, env: Mapping[str, str]) -> Forked:
    """Run `python -m llmux` with arguments, in a new session."""
    path = _parent_of_all()
    with trio.fail_after(60):
        while not path.exists():
            await trio.sleep(0.01)
    asked = json.dumps([*arguments, str(Path.cwd()), dict(env)]).encode()
    parent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent.connect(str(path))
    stdout, to_stdout = os.pipe()
    stderr, to_stderr = os.pipe()
    socket.send_fds(parent, [asked], [to_stdout, to_stderr])
    os.close(to_stdout)
    os.close(to_stderr)
    await trio.lowlevel.wait_readable(parent)
    streams = (trio.lowlevel.FdStream(stdout), trio.lowlevel.FdStream(stderr))
    return Forked(int(parent.recv(16)), *streams, parent)


async def run_llmux(*arguments: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run `llmux` to its end; returns its exit code, and what it printed and said of errors."""
    printed = {"stdout": b"", "stderr": b""}

    async def read(stream: trio.lowlevel.FdStream, name: str) -> None:
        async with stream:
            async for data in stream:
                printed[name] += data

    process = await fork(*arguments, env=env)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, process.stdout, "stdout")
        nursery.start_soon(read, process.stderr, "stderr")
        try:
            code = await process.wait()
        finally:
            process.kill()
    return code, printed["stdout"].decode(), printed["stderr"].decode()


@cache
def _parent_of_all() -> Path:
    """Start the process that forks; returns the path of its socket, which appears later."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "socket"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.prefork", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # as that of each forked process, which goes on with its buffer
        start_new_session=True,
    )

    def end() -> None:
        process.communicate()  # closes its standard input
        folder.cleanup()

    atexit.register(end)
    return path


def main(path: str) -> None:
    """Import llmux, then fork a process for each connection, until standard input ends."""
    for module in IMPORTED:
        import_module(module)
    gc.collect()
    gc.freeze()
    if asked := _serve(path):
        *arguments, folder, env = asked
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.argv[1:] = arguments
        runpy.run_module("llmux", run_name="__main__", alter_sys=True)


def _serve(path: str) -> list[Any] | None:
    """Returns in each forked process, with what it shall run; None in the parent, at its end."""
    ended, wakeup = socket.socketpair()
    ended.setblocking(False)
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)
    children: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([sys.stdin, listener, ended], [], [])
        if sys.stdin in readable:
            return None
        if ended in readable:
            ended.recv(64)
            _tell_exit_codes(children)
        if listener in readable:
            connection, _ = listener.accept()
            asked, printed, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 2)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for opened in (ended, wakeup, listener, connection, *children.values()):
                    opened.close()
                os.setsid()
                for to, pipe in zip((1, 2), printed, strict=True):
                    os.dup2(pipe, to)
                    os.close(pipe)
                with Path(os.devnull).open() as nothing:
                    os.dup2(nothing.fileno(), 0)
                return json.loads(asked)  # type: ignore[no-any-return]
            for pipe in printed:
                os.close(pipe)
            connection.send(b"%d" % pid)
            children[pid] = connection


def _tell_exit_codes(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as connection:
            connection.send(b"%d" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1])
