"""A real llmux switches two real llama.cpp servers with the hooks of `hooks/llama-cpp`.

Needs two settings, without which it is skipped:
    LLMUX_LLAMA_CPP_PYTHON: A Python that has `llama-cpp-python[server]`.
    LLMUX_MODELS_DIR: A folder with `tiny-a.gguf` and `tiny-b.gguf`, or any other two small models
        under these names.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.processes import free_ports
from tests.servers import chat, running_llmux

HOOKS = Path(__file__).parents[2] / "hooks" / "llama-cpp"
MODELS = ("tiny-a", "tiny-b")
CHAT = "/v1/chat/completions"

_missing = [
    name for name in ("LLMUX_LLAMA_CPP_PYTHON", "LLMUX_MODELS_DIR") if not os.environ.get(name)
]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(_missing), reason=f"not set: {', '.join(_missing)}"),
]


class Site:
    """A folder with a config of two models, in which the hooks run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(MODELS, free_ports(2), strict=True))
        models = {name: self._model(name, port) for name, port in self.ports.items()}
        self.config = folder / "llmux.json"
        self.config.write_text(json.dumps({"port": 0, "state_dir": "state", "models": models}))

    def _model(self, name: str, port: int) -> dict[str, Any]:
        file = Path(os.environ["LLMUX_MODELS_DIR"]) / f"{name}.gguf"
        hooks = {hook: f"'{HOOKS}/{hook}.sh'" for hook in ("wake", "sleep", "alive")}
        return {"port": port, **hooks, "wake": f"{hooks['wake']} '{file}' --n_ctx 256"}

    def run(self, hook: str, model: str) -> int:
        """Run one of the hooks as llmux does; returns its exit code."""
        environment = {
            "LLMUX_MODEL": model,
            "LLMUX_PORT": str(self.ports[model]),
            "LLMUX_STATE_DIR": str(self.folder.resolve() / "state"),
        }
        with (self.folder / "hooks.log").open("a") as log:
            script = json.loads(self.config.read_text())["models"][model][hook]
            return subprocess.run(
                ["sh", "-c", script],
                cwd=self.folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=120,
                check=False,
            ).returncode


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("LLAMA_PYTHON", os.environ["LLMUX_LLAMA_CPP_PYTHON"])
    site = Site(tmp_path)
    yield site
    assert [site.run("sleep", model) for model in MODELS] == [0, 0]


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with running_llmux(site.config) as llmux, llmux.client() as client:
        yield client


def test_the_hooks_may_be_run_again(site: Site) -> None:
    hooks = ("alive", "sleep", "wake", "wake", "alive", "sleep", "sleep", "alive")
    assert [site.run(hook, "tiny-a") for hook in hooks] == [1, 0, 0, 0, 0, 0, 0, 1]


async def test_two_real_servers_take_turns(site: Site, client: httpx.AsyncClient) -> None:
    for model, other in (("tiny-a", "tiny-b"), ("tiny-b", "tiny-a"), ("tiny-a", "tiny-b")):
        answer = await client.post(CHAT, json=chat(model, max_tokens=4))
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == model
        assert answer.json()["usage"]["completion_tokens"] > 0
        assert answer.headers["x-llmux-model"] == model
        assert [site.run("alive", name) for name in (model, other)] == [0, 1]


async def test_real_streams_and_the_switches_that_they_cost(client: httpx.AsyncClient) -> None:
    for model in ("tiny-a", "tiny-a", "tiny-b"):
        answer = await client.post(CHAT, json=chat(model, max_tokens=4, stream=True))
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert lines.pop() == "data: [DONE]"
        parts = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert {part["model"] for part in parts} == {model}
    metrics = (await client.get("/metrics")).text.splitlines()
    switches = sorted(line for line in metrics if line.startswith("llmux_switch_total{"))
    assert switches == [
        'llmux_switch_total{from="idle",result="success",to="tiny-a"} 1.0',
        'llmux_switch_total{from="tiny-a",result="success",to="tiny-b"} 1.0',
    ]
