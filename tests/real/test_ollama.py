"""A real llmux in front of a real Ollama, with the recipe `ollama` and by `llmux import ollama`.

`tests/real.sh ollama` builds it. Two models of random weights are made from files, without a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner

from bench.first_answer.ways import ollama_variables
from bench.processes import end, free_port
from llmux.cli.main import main
from tests.real.site import CHAT, PATIENCE_S, Site, ask, gguf, program, status_of
from tests.servers import chat

PROGRAM = program("LLMUX_OLLAMA")
MODELS = ("tiny-a", "tiny-b")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PROGRAM is None, reason="not set: LLMUX_OLLAMA"),
]


@dataclass
class Ollama:
    """A running Ollama with a store of its own."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.folder), **ollama_variables(self.folder, self.port)}

    def run(self, *arguments: str) -> None:
        """Run its command line."""
        subprocess.run(
            [str(PROGRAM), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=True,
        )

    def loaded(self) -> set[str]:
        """Models that are loaded, with their tags."""
        return {model["name"] for model in httpx.get(f"{self.url}/api/ps").json()["models"]}

    def model(self, **more: Any) -> dict[str, Any]:
        return {"recipe": "ollama", "port": self.port, **more}

    @contextmanager
    def serving(self) -> Iterator[None]:
        with (self.folder / "ollama.log").open("ab") as log:
            process = subprocess.Popen(
                [str(PROGRAM), "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_listening(process)
            yield
        finally:
            end(process)

    def _wait_listening(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                httpx.get(f"{self.url}/api/version")
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            else:
                return


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    ollama = Ollama(tmp_path_factory.mktemp("ollama"), free_port())
    with ollama.serving():
        for name in MODELS:
            file = ollama.folder / f"{name}.modelfile"
            file.write_text(f"FROM {gguf(name)}\n")
            ollama.run("create", name, "-f", str(file))
        yield ollama


async def test_two_models_take_turns(ollama: Ollama, tmp_path: Path) -> None:
    site = Site(tmp_path, {name: ollama.model() for name in MODELS})
    async with site.running() as (_, client):
        for model in ("tiny-a", "tiny-b", "tiny-a"):
            await ask(client, model)
            assert ollama.loaded() == {f"{model}:latest"}
            assert (await ask(client, model)).headers["x-llmux-wait-ms"] == "0"
        assert (await client.post("/control/sleep", json={"model": "tiny-a"})).status_code < 300
        with trio.fail_after(PATIENCE_S):
            while ollama.loaded():
                await trio.sleep(0.05)


async def test_its_own_api_and_its_streams(ollama: Ollama, tmp_path: Path) -> None:
    site = Site(tmp_path, {name: ollama.model() for name in MODELS})
    options = {"num_predict": 4}
    async with site.running() as (_, client):
        for model in ("tiny-a", "tiny-b:latest"):
            body = {**chat(model), "options": options}
            answer = await client.post("/api/chat", json=body)
            assert answer.status_code == 200, answer.text
            parts = [json.loads(line) for line in answer.text.splitlines()]
            assert [part["done"] for part in parts[-2:]] == [False, True]
            assert 1 <= parts[-1]["eval_count"] <= 4  # a random model may end at any token
            body = {"model": model, "prompt": "Hi", "stream": False, "options": options}
            answer = await client.post("/api/generate", json=body)
            assert answer.json()["done"] is True
        answer = await ask(client, "tiny-b", stream=True)
        assert answer.text.rstrip().endswith("data: [DONE]")
        assert {one["name"] for one in (await client.get("/api/ps")).json()["models"]} == {"tiny-b"}
        shown = (await client.post("/api/show", json={"model": "tiny-b"})).json()
        assert shown["details"]["family"] == "llama"


async def test_another_name_for_clients(ollama: Ollama, tmp_path: Path) -> None:
    site = Site(tmp_path, {"mine": ollama.model(**{"with": {"model": "tiny-a"}})})
    async with site.running() as (_, client):
        await ask(client, "mine")
        assert ollama.loaded() == {"tiny-a:latest"}


async def test_a_model_that_ollama_does_not_have(ollama: Ollama, tmp_path: Path) -> None:
    site = Site(tmp_path, {"tiny-a": ollama.model(), "none": ollama.model()})
    async with site.running() as (_, client):
        await ask(client, "tiny-a")
        answer = await client.post(CHAT, json=chat("none"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "hook_failed")
        error = (await status_of(client, "none"))["last_error"]
        assert "Ollama has no model none; get it: ollama pull none" in error
        await ask(client, "tiny-a")


async def test_a_model_that_is_loaded_is_adopted(ollama: Ollama, tmp_path: Path) -> None:
    site = Site(tmp_path, {name: ollama.model() for name in MODELS})
    async with site.running() as (_, client):
        await ask(client, "tiny-b")
    assert ollama.loaded() == {"tiny-b:latest"}
    async with site.running() as (_, client):
        await ask(client, "tiny-b")  # may have to wait for the check that the model is there
        metrics = (await client.get("/metrics")).text
        assert 'duration_seconds_count{hook="alive",model="tiny-b"}' in metrics
        assert 'duration_seconds_count{hook="wake",model="tiny-b"}' not in metrics
        await ask(client, "tiny-a")
        assert ollama.loaded() == {"tiny-a:latest"}


async def test_an_imported_config_serves(ollama: Ollama, tmp_path: Path) -> None:
    config = tmp_path / "llmux.yaml"
    done = CliRunner().invoke(main, ["import", "ollama", ollama.url, "-o", str(config)])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(main, ["check", "--strict", str(config)])
    assert checked.exit_code == 0, checked.output
    config.write_text(f"port: 0\nstate_dir: state\n{config.read_text()}")
    site = Site(tmp_path, {})
    site.config = config
    async with site.running() as (_, client):
        for model in ("tiny-a:latest", "tiny-b:latest"):
            await ask(client, model)
            assert ollama.loaded() == {model}
        answer = await client.post(CHAT, json=chat("tiny-a", max_tokens=4))
        assert answer.headers["x-llmux-model"] == "tiny-a:latest"


async def test_a_restart_of_ollama(ollama: Ollama, tmp_path: Path) -> None:
    """A second Ollama with the same store: it ends, with its models, and comes back."""
    other = Ollama(ollama.folder, free_port())
    site = Site(tmp_path, {name: other.model() for name in MODELS})
    async with site.running() as (_, client):
        with other.serving():
            await ask(client, "tiny-a")
        answer = await client.post(CHAT, json=chat("tiny-b", max_tokens=4))
        assert answer.status_code == 500, answer.text
        error = (await status_of(client, "tiny-b"))["last_error"]
        assert "no Ollama server answers" in error
        with other.serving():
            await ask(client, "tiny-b")
            assert other.loaded() == {"tiny-b:latest"}
