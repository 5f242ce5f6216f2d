"""What a new user does until a server answers: counted as it is done, timed, and tidied up."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import CannotRun

FIRST, SECOND = "qwen", "mistral"
"""The models' names in the configs that `llmux init` writes."""

PATIENCE_S = 300.0
"""Longest time of a step."""

MARK = "LLMUX_FIRST_ANSWER"
"""Variable with the folder of a journey, by which the servers that it has left are found."""


@dataclass
class Journey:
    """What a user does in an empty folder, counted as it is done.

    Attributes:
        folder: The folder.
        path: Folders with the programs that the user has installed.
        steps: The steps so far, as a person would write them down.
        lines: Lines of the config.
        edited: Lines that the user wrote or changed.
        first_s: Seconds from the first step to the first answer.
        second_s: Seconds that the first request for the second model took.
    """

    folder: Path
    path: Sequence[Path]
    steps: list[str] = field(default_factory=list)
    lines: int = 0
    edited: int = 0
    first_s: float = 0.0
    second_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """An empty home, and the installed programs."""
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR")}
        path = ":".join([*map(str, self.path), "/usr/local/bin:/usr/bin:/bin"])
        mark = {MARK: str(self.folder)}
        return {**kept, "HOME": str(self.folder), "PATH": path, **mark, **self.variables}

    def run(self, *command: str) -> str:
        """Type a command; return what it prints. Raises CannotRun."""
        self.steps.append(shlex.join(command))
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise CannotRun(f"{self.steps[-1]}: {done.stderr[-500:]}")
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Write a file by hand."""
        self.steps.append(f"write {name}")
        (self.folder / name).write_text(text)
        self.edited += code_lines(text)

    def edit(self, name: str, changes: Mapping[str, str]) -> None:
        """Change texts of a file, each in one line. Raises CannotRun if one is not there once."""
        self.steps.append(f"edit {name}")
        text = (self.folder / name).read_text()
        for old, new in changes.items():
            if text.count(old) != 1:
                raise CannotRun(f"{name} has {old!r} {text.count(old)} times")
            text = text.replace(old, new)
            self.edited += 1
        (self.folder / name).write_text(text)

    def config(self, name: str) -> None:
        """Count the lines of the config."""
        self.lines = code_lines((self.folder / name).read_text())

    @contextmanager
    def serving(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Type a command that serves until the end; whatever it has started ends, too."""
        self.steps.append(shlex.join(command))
        with (self.folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                end_all(self.folder)
                process.wait()

    def answer(self, port: int, model: str) -> float:
        """Ask a model until its server answers; return the seconds. Raises CannotRun."""
        asked = time.monotonic()
        while True:
            with suppress(ConnectionError):
                completion(port, model)
                return time.monotonic() - asked
            if time.monotonic() - asked > PATIENCE_S:
                raise CannotRun(f"{self.steps}: {(self.folder / 'server.log').read_text()[-500:]}")
            time.sleep(0.02)

    def ask_both(self, port: int) -> None:
        """Ask both models in turn: one step, since the first answer ends the way."""
        self.steps.append("curl")
        self.answer(port, FIRST)
        self.first_s = time.monotonic() - self.started
        self.second_s = self.answer(port, SECOND)


def code_lines(text: str) -> int:
    """Number of lines that are neither empty nor a comment."""
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


def completion(port: int, model: str) -> None:
    """Ask for one token. Raises ConnectionError if nothing listens yet, CannotRun for an error."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            json.load(answer)["choices"][0]
    except urllib.error.HTTPError as error:
        raise CannotRun(f"{model}: HTTP {error.code}: {error.read().decode()[-500:]}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            raise error.reason from None
        raise


def end_all(folder: Path) -> None:
    """Kill the processes that a journey has started, as their environment tells."""
    mark = f"{MARK}={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
