"""The control API's own listener: on each lane, as a port and as a Unix socket."""

from __future__ import annotations

import re
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from llmux.config import Config, parse_config
from llmux.server.control_listener import Opened, control_socket
from tests.servers import (
    ALL_FORMS,
    LlmuxProcess,
    Rack,
    chat,
    running_backends,
    running_llmux,
    start_in_vain,
)

MODELS = {"a": {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}}
ORDER = {"model": "a"}


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


def by_socket(path: Path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    return httpx.AsyncClient(base_url="http://localhost", transport=transport, timeout=10)


async def control_url(llmux: LlmuxProcess) -> str:
    """Where the log says that the control API is."""
    pattern = r"control_listening.*?(http://127\.0\.0\.1:\d+)"
    with trio.fail_after(20):
        while not (found := re.search(pattern, "\n".join(llmux.lines))):
            await trio.sleep(0.01)
    return found[1]


def config_with(folder: Path, control: Any) -> Config:
    settings = {"models": MODELS, "state_dir": "state", "control": control}
    return parse_config(settings, directory=folder)


def opened(folder: Path, **control: Any) -> Opened:
    """Open what a config says, and leave it open."""
    context = control_socket(config_with(folder, control))
    found = context.__enter__()
    assert found is not None
    return found


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_control_is_on_its_socket_and_nowhere_else(
    rack: Rack, tmp_path: Path, form: str
) -> None:
    config = rack.write_config(control={"socket": "control.sock"})
    path = tmp_path / "control.sock"
    async with running_llmux(config, form) as llmux, llmux.client() as main:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        async with by_socket(path) as control:
            answer = await control.post("/control/switch", json=ORDER)
            assert (answer.status_code, rack.hook_log) == (200, ["a wake"])
            assert (await control.get("/control/status")).json()["active_model"] == "a"
            assert (await control.get("/ui/")).status_code == 200
            assert (await control.get("/health")).status_code == 200
            assert "llmux_build_info" in (await control.get("/metrics")).text
            for elsewhere in ("/v1/models", "/upstream/a/x"):
                answer = await control.get(elsewhere)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            answer = await control.post("/v1/chat/completions", json=chat("a"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert rack.backends["a"].served == 0
        for method, elsewhere in (
            ("GET", "/control/status"), ("POST", "/control/status"), ("GET", "/control/nope"),
            ("GET", "/control"), ("GET", "/ui"), ("GET", "/ui/"), ("POST", "/control/switch"),
        ):  # fmt: skip
            answer = await main.request(method, elsewhere, json=ORDER)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert "`control`" in answer.json()["error"]["message"]
            assert "sock" not in answer.text
        assert (await main.get("/health")).status_code == 200
        assert (await main.get("/metrics")).status_code == 200
        assert (await main.get("/v1/models")).status_code == 200
        assert (await main.post("/v1/chat/completions", json=chat("a"))).status_code == 200
    assert not path.exists()


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_control_is_on_its_port(rack: Rack, form: str) -> None:
    config = rack.write_config(control={"port": 0})
    async with running_llmux(config, form) as llmux, llmux.client() as main:
        url = await control_url(llmux)
        async with httpx.AsyncClient(base_url=url) as control:
            assert (await control.get("/control/status")).status_code == 200
            proxied = await control.get("/control/status", headers={"X-Forwarded-For": "1.2.3.4"})
            assert proxied.status_code == 403
            foreign = await control.get(
                "/control/status", headers={"Origin": "http://evil.example"}
            )
            assert foreign.status_code == 403
            assert (await control.get("/v1/models")).status_code == 404
        assert (await main.get("/control/status")).status_code == 404


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_watcher_does_not_hold_up_the_end(rack: Rack, tmp_path: Path, form: str) -> None:
    config = rack.write_config(control={"socket": "control.sock"})
    async with (
        running_llmux(config, form) as llmux,
        by_socket(tmp_path / "control.sock") as control,
        control.stream("GET", "/control/events") as events,
    ):
        async for _ in events.aiter_raw():
            break
        assert await llmux.terminate(seconds=10) == 0


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_socket_that_cannot_be_had_is_told(rack: Rack, tmp_path: Path, form: str) -> None:
    (tmp_path / "control.sock").write_text("precious")
    config = rack.write_config(control={"socket": "control.sock"})
    code, lines = await start_in_vain(config, form)
    assert code == {"llmux": 1}.get(form, 0)
    assert any("control.sock" in line and "no socket" in line for line in lines), lines
    assert "Traceback" not in "".join(lines)
    assert (tmp_path / "control.sock").read_text() == "precious"


async def test_the_control_api_answers_while_clients_have_all_connections(
    rack: Rack, tmp_path: Path
) -> None:
    config = rack.write_config(control={"socket": "control.sock"}, limits={"connections": 1})
    async with running_llmux(config) as llmux, by_socket(tmp_path / "control.sock") as control:
        port = int(llmux.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port):
            assert (await control.get("/control/status")).status_code == 200


@pytest.mark.parametrize("named", ["config", "url"])
async def test_the_terminal_finds_it(rack: Rack, tmp_path: Path, named: str) -> None:
    config = rack.write_config(control={"socket": "control.sock"})
    where = {"config": ["-c", str(config)], "url": ["--url", f"unix:{tmp_path}/control.sock"]}

    async def status(llmux: LlmuxProcess | None) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "llmux", "status", "--json", *where[named]]
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )

    async with running_llmux(config) as llmux:
        done = await status(llmux)
        assert (done.returncode, b'"active_model"' in done.stdout) == (0, True), done.stderr
    done = await status(None)
    assert done.returncode == 5
    assert f"unix:{tmp_path}/control.sock" in done.stderr.decode()


async def test_check_says_where_it_is(rack: Rack, tmp_path: Path) -> None:
    for control, line in (
        ({"socket": "control.sock"}, f"control on unix:{tmp_path}/control.sock"),
        ({"port": 3001}, "control on 127.0.0.1:3001"),
    ):
        config = rack.write_config(control=control)
        done = await trio.run_process(
            [sys.executable, "-m", "llmux", "check", "-c", str(config)], capture_stdout=True
        )
        assert line in done.stdout.decode().splitlines()


# ---- The socket's file ----


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with control_socket(config_with(tmp_path, {"socket": "s"})) as found:
        assert found is not None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(OSError, match="another program listens there"):
            opened(tmp_path, socket="s")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_is_not_followed(tmp_path: Path, target: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "there"))
    (tmp_path / "s").symlink_to(tmp_path / target)
    with pytest.raises(OSError, match="symbolic link"):
        opened(tmp_path, socket="s")
    assert (tmp_path / "s").is_symlink()
    assert {entry.name for entry in tmp_path.iterdir()} == {"s", "there"}


def test_another_ones_file_is_not_removed(tmp_path: Path) -> None:
    with control_socket(config_with(tmp_path, {"socket": "s"})):
        (tmp_path / "s").unlink()
        (tmp_path / "s").write_text("another's")
    assert (tmp_path / "s").read_text() == "another's"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on .*/none/s \(`control.socket`\): No such"):
        opened(tmp_path, socket="none/s")


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{port} \(`control`\)"):
            opened(tmp_path, port=port)
