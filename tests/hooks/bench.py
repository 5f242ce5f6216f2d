"""A copy of one folder of `hooks/`, its two models, and the stand-ins that its scripts meet."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import trio

from bench.processes import free_port
from llmux.config import Config, HookName, load_config
from llmux.errors import HookError
from llmux.hooks.shell import ShellHooks
from llmux.observe.events import Events
from llmux.policy import load_policy
from llmux.switching.model import Traits
from llmux.switching.switcher import Switcher

ROOT = Path(__file__).parent.parent.parent
HOOKS = ROOT / "hooks"

TIMEOUT_S = 20.0
"""No script may take longer, whatever goes wrong."""

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Ran:
    """How one run of a script ended.

    Attributes:
        seconds: How long it took, by `unhurried`: a busy machine takes longer over the same work.
    """

    code: int
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.2f} s:\n{self.output}"


def unhurried() -> float:
    """Seconds on a clock that stands still while anything on this machine waits for a CPU.

    It runs while scripts sleep and poll on an idle machine. Without pressure stall information (as
    in containers, and before Linux 4.20) it never stands still.
    """
    now = time.monotonic()
    with suppress(OSError):
        some = Path("/proc/pressure/cpu").read_text().partition("\n")[0]
        return now - int(some.rpartition("total=")[2]) / 1_000_000
    return now


class Bench:
    """One folder, copied as a user would, with ports of this machine in its llmux.yaml.

    Attributes:
        folder: The copy; hooks run there.
        home: Where the stand-ins keep what they share with the tests.
        models: The names of its two models, in the config's order.
    """

    def __init__(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path / name
        shutil.copytree(HOOKS / name, self.folder, ignore=shutil.ignore_patterns("run"))
        self.home = tmp_path / "standin"
        self.bin = tmp_path / "bin"
        self.state_dir = tmp_path / "state"
        for made in (self.home, self.bin):
            made.mkdir()
        self._seen = (
            0  # bytes of `calls`; a file that is removed takes what comes meanwhile with it
        )
        self.setenv = monkeypatch.setenv
        self.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        self.setenv("STANDIN_DIR", str(self.home))
        self.config_file = self.folder / "llmux.yaml"
        self.edit(r"port: 3000", "port: 0")
        self.edit(r"port: (\d\d\d\d+)", lambda _match: f"port: {free_port()}")
        self.config: Config = load_config(self.config_file)
        self.models = list(self.config.models)

    # ---- Setting the scene ----

    def edit(self, pattern: str, replacement: Any) -> None:
        """Change the llmux.yaml, as its user would."""
        text, count = re.subn(pattern, replacement, self.config_file.read_text())
        assert count, f"no {pattern} in {self.config_file}"
        self.config_file.write_text(text)
        self.config = load_config(self.config_file)

    def install(self, command: str, module: str = "", arguments: str = "") -> Path:
        """Put a stand-in on the PATH under the name of what it stands in for."""
        return install_standin(self.bin / command, module or command, arguments)

    def fault(self, *names: str) -> None:
        """What goes wrong from now on."""
        (self.home / "faults").write_text("\n".join(names))

    # ---- Running scripts ----

    def port(self, model: str) -> int:
        port = self.config.models[model].port
        assert port is not None
        return port

    def of_recipe(self, model: str) -> dict[str, str]:
        """What llmux adds to the environment of a recipe's hooks."""
        found = self.config.models.get(model)
        if found is None or found.recipe is None:
            return {}
        about = {"LLMUX_URL": found.base_url, "LLMUX_PYTHON": sys.executable}
        state = {"LLMUX_STATE_DIR": str(self.state_dir), "PORT": str(found.port)}
        state["LLMUX_HOOK_SECS"] = "15"
        return {**found.variables, **about, **state}

    def use_recipe(self, **models: dict[str, Any]) -> None:
        """Put recipes in the place of the llmux.yaml; each gets a port."""
        with_ports = {name: {"port": free_port(), **keys} for name, keys in models.items()}
        self.config_file.write_text(json.dumps({"port": 0, "models": with_ports}))
        self.config = load_config(self.config_file)
        self.models = list(self.config.models)

    def start(self, script: str, model: str, hook: str = "wake") -> subprocess.Popen[bytes]:
        """Start a script as llmux does; what it prints goes into the file `output`."""
        with (self.folder.parent / "output").open("wb") as output:
            return subprocess.Popen(
                ["sh", "-c", script],
                cwd=self.folder,
                env={
                    **os.environ,
                    "LLMUX_MODEL": model,
                    "LLMUX_PORT": str(self.config.models[model].port or ""),
                    "LLMUX_HOOK": hook,
                    "LLMUX_SOURCE": "",
                    "LLMUX_TARGET": model,
                    **self.of_recipe(model),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes], started_at: float) -> Ran:
        ended = os.pidfd_open(process.pid)  # `process.wait` with a time-out polls, ever more slowly
        try:
            assert select.select([ended], [], [], TIMEOUT_S)[0], "took far too long"
        finally:
            os.close(ended)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        output = (self.folder.parent / "output").read_text(errors="replace")
        return Ran(code, output, unhurried() - started_at)

    def run(self, script: str, model: str = "", hook: str = "wake") -> Ran:
        """Run a script to its end."""
        started_at = unhurried()
        return self.finish(self.start(script, model or self.models[0], hook), started_at)

    def hook(self, hook: HookName, model: str = "") -> Ran:
        """Run the hook that the llmux.yaml has for the model."""
        model = model or self.models[0]
        script = self.config.models[model].script(hook)
        assert script is not None, f"{model} has no {hook} hook"
        return self.run(script, model, hook)

    def codes(self, *hooks: HookName, model: str = "") -> list[int]:
        """The exit codes of hooks that are run one after the other."""
        return [self.hook(hook, model).code for hook in hooks]

    # ---- What is there to see ----

    def calls(self) -> list[str]:
        """What the stand-ins were asked since the last look."""
        path = self.home / "calls"
        whole, _, _ = (
            path.read_bytes()[self._seen :].rpartition(b"\n") if path.exists() else (b"", b"", b"")
        )
        self._seen += len(whole) + 1 if whole else 0
        return whole.decode().splitlines()

    def gpu(self) -> dict[str, int]:
        """MiB that each server holds of the fake GPU."""
        files = (self.home / "gpu").iterdir() if (self.home / "gpu").exists() else []
        return {file.name: int(file.read_text()) for file in files}

    def running(self) -> list[int]:
        """Processes that have come from scripts of this bench and still run."""
        return processes_with(f"STANDIN_DIR={self.home}")

    def wait_until(self, condition: Any, what: str) -> None:
        """Poll for something that happens by itself."""
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up_at, f"never: {what}"
            time.sleep(0.01)

    def wait_listening(self, model: str = "") -> None:
        """Wait until something listens on the model's port."""
        port = self.port(model or self.models[0])

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.wait_until(listens, f"something listens on port {port}")

    def ask(self, model: str = "", path: str = "/v1/chat/completions", **body: Any) -> str:
        """What the model's server answers to a chat request."""
        model = model or self.models[0]
        connection = HTTPConnection("127.0.0.1", self.port(model), timeout=PATIENCE_S)
        try:
            asked = {"model": self.config.models[model].upstream_model or model, **body}
            connection.request("POST", path, json.dumps(asked))
            answer = json.load(connection.getresponse())
        finally:
            connection.close()
        return str(answer["choices"][0]["message"]["content"])

    def ask_behind(self, seconds: float) -> None:
        """Have a client, past llmux, ask for what takes so long; returns once the server has it."""
        body = json.dumps({"model": self.models[0], "seconds": seconds})
        assert self.run(f"curl -sd '{body}' 127.0.0.1:$LLMUX_PORT/v1/chat/completions &").ok
        self.wait_until(lambda: any("seconds" in call for call in self.calls()), "it is asked")

    # ---- With llmux ----

    def shell_hooks(self) -> ShellHooks:
        """What llmux runs this folder's hooks with."""
        return ShellHooks(
            self.config.models,
            directory=self.folder,
            log_dir=self.folder.parent / "logs",
            state_dir=self.state_dir,
            events=Events(),
        )

    async def timed_out(self, model: str, hook: HookName = "wake") -> HookError:
        """What comes of a hook that llmux ends; its config must have a time-out for it."""
        with trio.fail_after(TIMEOUT_S), pytest.raises(HookError) as caught:
            await self.shell_hooks().of(model).run(hook)
        return caught.value

    @asynccontextmanager
    async def switcher(self, traits: dict[str, Traits] | None = None) -> AsyncIterator[Switcher]:
        """llmux's own switcher, which runs this folder's hooks."""
        switcher = Switcher(
            self.models,
            self.shell_hooks(),
            load_policy(self.config.policy),
            Events(),
            settings=self.config.policy,
            traits=traits,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(switcher.run)
            with trio.fail_after(TIMEOUT_S):
                yield switcher
            switcher.stop()

    async def ask_through(self, switcher: Switcher, model: str) -> str:
        """A chat request that llmux lets in."""
        async with switcher.serving(model):
            return await trio.to_thread.run_sync(self.ask, model)

    # ---- The end ----

    @contextmanager
    def until_ended(self) -> Iterator[Bench]:
        """Ends, at last, whatever its scripts have left."""
        try:
            yield self
        finally:
            kill_all(self.running())


def install_standin(path: Path, module: str, arguments: str = "") -> Path:
    """Make a command of a stand-in."""
    run = f'{sys.executable} -S -m tests.hooks.standins.{module} {arguments} "$@"'
    path.write_text(f"#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {run}\n")
    path.chmod(0o755)
    return path


def processes_with(setting: str) -> list[int]:
    """Processes that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and setting.encode() in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                found.append(int(entry.name))
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL, where they still run."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
