"""A real llmux with real vLLM servers on a CPU, by the recipes `process` and `vllm-sleep`.

Needs $LLMUX_VLLM, the program that `tests/real/vllm.sh` prints, and `models/` beside its `bin/`. A
start takes 40 s of two idle cores, so the tests share servers: each starts a llmux of its own, which
adopts the server that the one before it has left awake.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from bench.machine import say
from bench.processes import free_port, free_ports
from tests.hooks.bench import kill_all
from tests.servers import LlmuxProcess, chat, running_llmux

VLLM = os.environ.get("LLMUX_VLLM", "")
MODELS = Path(VLLM).parent.parent / "models"
START_S = 600
"""Time limit for a start of vLLM: minutes if the machine is busy."""

CHAT = "/v1/chat/completions"
SERVE = ["--max-model-len", "8192", "--enforce-eager", "--max-num-seqs", "1"]
"""One request at a time, so that a second one waits in vLLM's own queue."""

ENDLESS = {"max_tokens": 8000, "ignore_eos": True, "stream": True}
REPEATABLE = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not VLLM, reason="not set: LLMUX_VLLM"),
    pytest.mark.skipif(bool(VLLM) and not MODELS.is_dir(), reason=f"no folder {MODELS}"),
]


def model_folder(name: str) -> str:
    return str(MODELS / name)


class Site:
    """A folder with a config, and the processes that its hooks leave."""

    def __init__(self, folder: Path, models: dict[str, Any], **settings: Any) -> None:
        self.folder = folder
        self.ports = {name: model["port"] for name, model in models.items()}
        self.config = folder / "llmux.json"
        self.config.write_text(
            json.dumps({"port": 0, "state_dir": "state", "models": models, **settings})
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[LlmuxProcess, httpx.AsyncClient]]:
        async with (
            running_llmux(self.config) as llmux,
            llmux.client(timeout=START_S) as client,
        ):
            yield llmux, client

    async def vllm_says(self, model: str, series: str) -> float:
        """Read a number from the metrics of a model's server, past llmux."""
        async with httpx.AsyncClient(trust_env=False) as client:
            metrics = await client.get(f"http://127.0.0.1:{self.ports[model]}/metrics")
        found = re.search(rf"^vllm:{series}{{[^}}]*}} (\S+)$", metrics.text, re.MULTILINE)
        assert found, metrics.text
        return float(found[1])

    async def wait_vllm(self, model: str, series: str, value: float) -> None:
        """Wait until vLLM reports a number."""
        with trio.fail_after(60):
            while await self.vllm_says(model, series) != value:
                await trio.sleep(0.2)

    def processes(self) -> dict[int, str]:
        """Command lines of the servers' processes, by id: all of the sessions that wake hooks began.

        Their environment does not tell: vLLM writes their titles over it.
        """
        leaders = {file.read_text().split()[0] for file in self.folder.glob("state/run/*.pid")}
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state, _, _, session, *_ = (entry / "stat").read_text().rpartition(") ")[2].split()
                if session in leaders and state != "Z":
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = words.decode().strip()
        return found


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two models that start and stop, by two recipes, and one that asks a CPU for sleep mode."""
    one, two, three = free_ports(3)
    command = [VLLM, "serve", model_folder("tiny-a"), "--served-model-name", "tiny-a"]
    command += ["--host", "127.0.0.1", "--port", "${PORT}", *SERVE]
    sleeper = {"model": model_folder("tiny-b"), "args": SERVE, "program": VLLM}
    models = {
        "tiny-a": {"recipe": "process", "port": one, "with": {"command": command}},
        "tiny-b": {"recipe": "vllm-sleep", "port": two, "with": {**sleeper, "level": "stop"}},
        "sleeper": {"recipe": "vllm-sleep", "port": three, "with": sleeper},
    }
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, models, policy={"gate": True}, errors={"hook_output": "clients"})
    yield site
    kill_all(list(site.processes()))


async def test_two_real_servers_take_turns(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    async with site.serving() as (_, client):
        for name, other in (("tiny-a", "tiny-b"), ("tiny-b", "tiny-a")):
            began = time.monotonic()
            answer = await client.post(CHAT, json=chat(name, **REPEATABLE))
            seconds = round(time.monotonic() - began, 1)
            record_property(f"first answer of {name}", seconds)
            say(f"first answer of {name}: {seconds} s")
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == name
            assert answer.json()["usage"]["completion_tokens"] == 8
            assert answer.headers["x-llmux-model"] == name
            status = (await client.get("/control/status")).json()
            assert status["active_model"] == name
            assert not any(model_folder(other) in line for line in site.processes().values())
        history = (await client.get("/control/history")).json()
        (switch,) = [each for each in history["switches"] if each["from"]]
        seconds = round(switch["ended"] - switch["started"], 1)
        record_property("switch", seconds)
        say(f"switch: {seconds} s")


async def test_a_running_server_is_adopted_and_streams(site: Site) -> None:
    async with site.serving() as (_, client):
        await client.post(CHAT, json=chat("tiny-b", **REPEATABLE))
    before = set(site.processes())
    assert before
    async with site.serving() as (_, client):
        asked = chat("tiny-b", stream=True, stream_options={"include_usage": True}, **REPEATABLE)
        answer = await client.post(CHAT, json=asked)
        assert set(site.processes()) >= before
        metrics = (await client.get("/metrics")).text
        assert not re.findall(
            r'^llmux_switch_total\{.*result="success".* [1-9]', metrics, re.MULTILINE
        )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, done = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert done == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {part["model"] for part in parts} == {"tiny-b"}
    assert parts[-1]["usage"]["completion_tokens"] == 8
    assert parts[-1]["choices"] == []
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts[:-1])


async def test_vllm_drops_the_request_of_a_client_that_goes_away(site: Site) -> None:
    async with site.serving() as (_, client):
        async with client.stream("POST", CHAT, json=chat("tiny-b", **ENDLESS)) as answer:
            await anext(answer.aiter_lines())
            await site.wait_vllm("tiny-b", "num_requests_running", 1)
        await site.wait_vllm("tiny-b", "num_requests_running", 0)
        # Dropped, not served to its end meanwhile.
        assert await site.vllm_says("tiny-b", "generation_tokens_total") < ENDLESS["max_tokens"]
        status = (await client.get("/control/status")).json()
        assert status["models"]["tiny-b"]["in_flight"] == 0


async def test_the_gate_keeps_a_model_whose_server_has_a_queue(site: Site) -> None:
    async with site.serving() as (_, client), trio.open_nursery() as nursery:
        await client.post(CHAT, json=chat("tiny-b", **REPEATABLE))

        async def ask(model: str, **fields: Any) -> None:
            async with client.stream("POST", CHAT, json=chat(model, **fields)) as answer:
                async for _ in answer.aiter_lines():
                    pass

        async def ask_in_scope(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                task_status.started(scope)
                await ask("tiny-b", **ENDLESS)

        scopes = [await nursery.start(ask_in_scope) for _ in range(2)]
        await site.wait_vllm("tiny-b", "num_requests_waiting", 1)
        nursery.start_soon(ask, "tiny-a")
        group: dict[str, Any] = {}
        with trio.fail_after(60):
            while "policy.gate" not in (group.get("stays") or ""):
                await trio.sleep(0.2)
                status = (await client.get("/control/status")).json()
                (group,) = status["groups"].values()
        assert status["active_model"] == "tiny-b"
        assert status["models"]["tiny-a"]["queued"] == 1
        for scope in scopes:
            scope.cancel()
        # Now the queue is empty, and tiny-a has its turn.
        await site.wait_vllm("tiny-b", "num_requests_waiting", 0)


async def test_a_server_killed_under_load_is_started_again(site: Site) -> None:
    async with site.serving() as (_, client):
        lines: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):  # cut, after an event that says why
            async with client.stream("POST", CHAT, json=chat("tiny-a", **ENDLESS)) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and not lines:
                        kill_all([p for p, c in site.processes().items() if " serve " in c])
                    lines.append(line)
        last = [line for line in lines if line.startswith("data: ")][-1]
        assert "error" in json.loads(last.removeprefix("data: ")), last
        orphans = [pid for pid, command in site.processes().items() if "VLLM::" in command]
        say(f"left behind by SIGKILL: {len(orphans)} processes")
        again = await client.post(CHAT, json=chat("tiny-a", **REPEATABLE))
        assert again.status_code == 200, again.text
        assert not set(orphans) & set(site.processes())


async def test_sleep_mode_on_a_cpu_fails_and_says_what_to_do(site: Site) -> None:
    async with site.serving() as (_, client):
        answer = await client.post(CHAT, json=chat("sleeper"))
    assert answer.status_code == 500, answer.text
    assert "no sleep mode on this platform" in answer.text
    assert "level: stop" in answer.text
    assert not any("--enable-sleep-mode" in command for command in site.processes().values())


@pytest.fixture(scope="module")
def sleeping_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A vLLM in development mode without sleep mode, which obeys all of its paths and frees nothing."""
    folder = tmp_path_factory.mktemp("sleeping")
    port = free_port()
    models = {
        f"level-{level}": {
            "recipe": "vllm-sleep",
            "port": port,
            "group": f"level-{level}",
            "with": {"model": model_folder("tiny-a"), "program": VLLM, "level": level},
        }
        for level in (1, 2)
    }
    command = [VLLM, "serve", model_folder("tiny-a"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "vllm.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *SERVE, "--served-model-name", *models],
            env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        give_up_at = time.monotonic() + START_S
        while not is_healthy(port):
            assert server.poll() is None, (folder / "vllm.log").read_text()
            assert time.monotonic() < give_up_at
            time.sleep(0.5)
        yield Site(folder, models)
    finally:
        server.terminate()
        server.wait(60)


def is_healthy(port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


@pytest.mark.parametrize("level", [1, 2])
def test_validate_puts_real_vllm_to_sleep_and_wakes_it(sleeping_site: Site, level: int) -> None:
    """All requests of the recipe, the reload of weights included, are those that vLLM knows."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmux",
            "validate",
            "-c",
            str(sleeping_site.config),
            f"level-{level}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    say(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (sleeping_site.folder / "vllm.log").read_text()
    assert f'"POST /sleep?level={level}&mode=wait HTTP/1.1" 200' in log
    if level == 2:
        assert '"POST /collective_rpc HTTP/1.1" 200' in log
        assert '"POST /wake_up?tags=kv_cache HTTP/1.1" 200' in log
    assert '"POST /reset_prefix_cache HTTP/1.1" 200' in log
