"""A real llmux with two models that are recipes: no hooks, no ports, stand-ins as their servers."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from llmux.hooks.orphans import processes_with
from llmux.server.ports import chosen_ports
from tests.hooks.bench import kill_all
from tests.servers import ALL_FORMS, LlmuxProcess, chat, running_llmux

CHAT = "/v1/chat/completions"
SERVE = f"{shlex.quote(sys.executable)} -m llmux.standin serve --port ${{PORT}} --model"

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


def write_config(folder: Path, **parameters: Any) -> Path:
    """Write a config of two models; `parameters` are those of the first, beside its command."""
    one = {"command": f"{SERVE} one --tokens 2", **parameters}
    models = {
        "one": {"recipe": "process", "with": one},
        "two": {"recipe": "process", "with": {"command": f"{SERVE} two --tokens 2"}},
    }
    path = folder / "llmux.json"
    path.write_text(json.dumps({"port": 0, "state_dir": "state", "models": models}))
    return path


def ports_of(folder: Path) -> dict[str, int]:
    return chosen_ports(folder.resolve() / "state")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def servers(folder: Path, **about: str) -> list[int]:
    """Processes that hooks of this config have started and that still run."""
    return processes_with({"LLMUX_STATE_DIR": str(folder.resolve() / "state"), **about})


@asynccontextmanager
async def cleaned(folder: Path) -> AsyncIterator[None]:
    try:
        yield
    finally:
        kill_all(servers(folder))


async def ask(llmux: LlmuxProcess, model: str) -> None:
    async with llmux.client() as client:
        answer: httpx.Response = await client.post(CHAT, json=chat(model))
    assert answer.status_code == 200, answer.text


def leader(folder: Path, model: str) -> int:
    """The first process of a model's server."""
    port = ports_of(folder)[model]
    (path,) = (folder / "state" / "run").glob(f"process-*_{port}-*.pid")
    return int(path.read_text().split()[0])


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_two_models_take_turns(tmp_path: Path, form: str) -> None:
    async with cleaned(tmp_path), running_llmux(write_config(tmp_path), form) as llmux:
        for model in ("one", "two", "one"):
            await ask(llmux, model)
            assert servers(tmp_path, LLMUX_MODEL=model)
            other = {"one": "two", "two": "one"}[model]
            assert not servers(tmp_path, LLMUX_MODEL=other)
        assert files(tmp_path) == ["llmux.json", "state"]


async def test_a_killed_llmux_finds_its_server_again(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    async with cleaned(tmp_path):
        async with running_llmux(config, ends_with=-signal.SIGKILL) as llmux:
            await ask(llmux, "one")
            before, ports = leader(tmp_path, "one"), ports_of(tmp_path)
            llmux.process.send_signal(signal.SIGKILL)
            await llmux.process.wait()
        os.kill(before, 0)
        async with running_llmux(config) as llmux:
            await ask(llmux, "one")
            assert leader(tmp_path, "one") == before
            assert ports_of(tmp_path) == ports
            assert any("model_adopted" in line for line in llmux.lines)
            await ask(llmux, "two")
            assert not servers(tmp_path, LLMUX_MODEL="one")


async def test_a_command_that_changed_while_llmux_was_down_takes_its_place(tmp_path: Path) -> None:
    async with cleaned(tmp_path):
        async with running_llmux(write_config(tmp_path)) as llmux:
            await ask(llmux, "one")
            before = leader(tmp_path, "one")
        config = write_config(tmp_path, command=f"{SERVE} changed")
        async with running_llmux(config) as llmux:
            await ask(llmux, "one")
            assert leader(tmp_path, "one") != before
            assert len(servers(tmp_path, LLMUX_MODEL="one")) == len(
                [pid for pid in servers(tmp_path) if os.getsid(pid) == leader(tmp_path, "one")]
            )


async def test_a_reload_with_another_command_waits_until_the_model_sleeps(tmp_path: Path) -> None:
    async with cleaned(tmp_path), running_llmux(write_config(tmp_path)) as llmux:
        await ask(llmux, "one")
        before = leader(tmp_path, "one")
        write_config(tmp_path, command=f"{SERVE} changed --tokens 2")
        async with llmux.client() as client:
            reloaded = await client.post("/control/reload", json={})
            assert reloaded.status_code == 200, reloaded.text
        await ask(llmux, "one")
        assert leader(tmp_path, "one") != before
        command = next((tmp_path / "state" / "run").glob("process-*.command")).read_text()
        assert "changed" in command


async def test_a_command_that_fails_says_so_to_the_operator(tmp_path: Path) -> None:
    config = write_config(tmp_path, command="echo 'cannot open qwen.gguf' >&2; exit 2")
    async with cleaned(tmp_path), running_llmux(config) as llmux:
        async with llmux.client() as client:
            answer = await client.post(CHAT, json=chat("one"))
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "hook_failed"
            (log,) = [line for line in llmux.lines if "hook_failed" in line and "wake" in line]
            assert "cannot open qwen.gguf" in log
            assert "the server ended with exit code 2" in log


@pytest.mark.slow
async def test_validate_chooses_ports_too(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    async with cleaned(tmp_path):
        command = [sys.executable, "-m", "llmux", "validate", "-c", str(config), "one"]
        done = await trio.run_process(command, capture_stdout=True, check=False)
        assert b"PASS: one" in done.stdout
        assert not servers(tmp_path)
