"""Hypercorn's parent and worker, each killed: the port is free at once, and the next one serves."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import trio

from tests.servers import Rack, chat, running_backends, running_llmux

FORMS = ["hypercorn", "hypercorn -k trio"]

pytestmark = pytest.mark.slow


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def port_is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("who", ["parent", "worker"])
async def test_after_a_kill_the_next_one_serves_at_once(
    tmp_path: Path, form: str, who: str
) -> None:
    async with running_backends(tmp_path, "a") as rack:
        await kill(rack, form, who)
        # It would wait for the port, or be refused the lock, while an orphan has them.
        async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
            for _ in range(3):
                assert (await client.post("/v1/chat/completions", json=chat("a"))).is_success
        assert rack.hook_log == ["a wake"], "adopted"


async def kill(rack: Rack, form: str, who: str) -> None:
    ends_with = -signal.SIGKILL if who == "parent" else 0  # whatever its worker's
    async with running_llmux(rack.write_config(), form, ends_with=ends_with) as llmux:
        async with llmux.client() as client:
            assert (await client.post("/v1/chat/completions", json=chat("a"))).is_success
        port = int(llmux.url.rpartition(":")[2])
        parent = llmux.process.pid
        (worker,) = filter(is_worker, children_of(parent))
        os.kill(parent if who == "parent" else worker, signal.SIGKILL)
        with trio.fail_after(10):
            await llmux.process.wait()
            while is_running(worker) or not port_is_free(port):
                await trio.sleep(0.01)
