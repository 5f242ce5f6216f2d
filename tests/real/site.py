"""A folder with a config of real model servers: llmux is started in it, and no server outlives it."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.servers import LlmuxProcess, chat, running_llmux

CHAT = "/v1/chat/completions"

PATIENCE_S = 120.0
"""Longest wait for anything of a real server, on a busy machine."""


def program(variable: str) -> str | None:
    """Path of a server's program, which `tests/real.sh` sets; without it, its tests are skipped."""
    return os.environ.get(variable) or None


def gguf(name: str) -> Path:
    """A tiny model of `tests/real.sh`."""
    return Path(os.environ["LLMUX_MODELS_DIR"]) / f"{name}.gguf"


class Site:
    """A config's folder, and the servers that llmux has started for it.

    Args:
        folder: An empty folder.
        models: The `models` of the config.
        settings: Other keys of the config.
    """

    def __init__(self, folder: Path, models: Mapping[str, Any], **settings: Any) -> None:
        self.folder = folder
        self.config = folder / "llmux.json"
        first = random.randrange(18_000, 28_000, 20)
        self.settings = {"port": 0, "state_dir": "state", "ports": f"{first}-{first + 19}"}
        self.settings |= settings
        self.write(models)

    def write(self, models: Mapping[str, Any]) -> None:
        """Write the config."""
        self.config.write_text(json.dumps({**self.settings, "models": models}))

    @asynccontextmanager
    async def running(
        self, form: str = "llmux", **options: Any
    ) -> AsyncIterator[tuple[LlmuxProcess, httpx.AsyncClient]]:
        """Run llmux, and a client of it. Servers stay when llmux ends."""
        async with running_llmux(self.config, form, **options) as llmux:
            async with llmux.client(timeout=PATIENCE_S) as client:
                yield llmux, client

    def leaders(self) -> dict[int, str]:
        """Process ids of the servers that wake hooks have started and that run, with their commands."""
        found = {}
        for file in (self.folder / "state" / "run").glob("*.pid"):
            pid = int(file.read_text().split()[0])
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
                if stat[0] not in "ZX" and stat[19] == file.read_text().split()[1]:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found[pid] = command.replace(b"\0", b" ").decode()
        return found

    def running_model(self, *names: str) -> str:
        """The one model of these whose file is in the command of the one server that runs."""
        (command,) = self.leaders().values()
        (model,) = [name for name in names if name in command]
        return model

    def end_servers(self) -> None:
        """Kill what runs."""
        for pid in self.leaders():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


async def ask(client: httpx.AsyncClient, model: str, **fields: Any) -> httpx.Response:
    """Ask for four tokens; the answer must be one of this model."""
    answer = await client.post(CHAT, json=chat(model, **{"max_tokens": 4, **fields}))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-llmux-model"] == model
    return answer


async def until(condition: Any, seconds: float = PATIENCE_S) -> None:
    """Wait until an async condition holds, or fail."""
    with trio.fail_after(seconds):
        while not await condition():
            await trio.sleep(0.05)


async def status_of(client: httpx.AsyncClient, model: str) -> Any:
    """What `/control/status` says of a model."""
    return (await client.get("/control/status")).json()["models"][model]
