"""Measure llmux's memory under a flood of large bodies: `python -m bench.flood`.

Many clients send bodies at once for a model whose wake hook never ends. The bodies together are
several times `limits.queued_bytes`, so most clients must get a 429, and memory must stay near that
limit. Then all clients disconnect, and llmux must free the memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import trio

from bench.processes import PROXY_CORE, resident_bytes, running, wait_logged
from bench.table import render

MIB = 1 << 20


async def send(port: int, size: int, answers: Counter[str], leave: trio.Event) -> None:
    """Send a body of `size` bytes in pieces, and stay connected until told to leave."""
    body = b'{"model": "m", "x": "' + b"x" * size + b'"}'
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream, trio.open_nursery() as nursery:

        async def hear() -> None:
            try:
                answer = bytes(await stream.receive_some())
                answers[answer[9:12].decode() or "closed"] += 1
            except trio.BrokenResourceError:
                answers["reset"] += 1
            nursery.cancel_scope.cancel()

        nursery.start_soon(hear)
        try:
            await stream.send_all(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                % len(body)
            )
            for at in range(0, len(body), 65536):
                await stream.send_all(body[at : at + 65536])
        except trio.BrokenResourceError:
            pass
        await leave.wait()
        nursery.cancel_scope.cancel()


async def flood(pid: int, port: int, clients: int, size: int) -> list[tuple[str, str]]:
    """Measure resident memory before, at its peak and after, and count the responses."""
    before = resident_bytes(pid)
    highest = before
    answers: Counter[str] = Counter()
    leave = trio.Event()
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal highest
            while True:
                highest = max(highest, resident_bytes(pid))
                await trio.sleep(0.02)

        nursery.start_soon(watch)
        async with trio.open_nursery() as all_clients:
            for _ in range(clients):
                all_clients.start_soon(send, port, size, answers, leave)
            await trio.sleep(10)
            waiting = clients - answers.total()
            leave.set()
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    return [
        ("bodies sent, MiB", f"{clients * size / MIB:.0f}"),
        ("clients whose request waited", str(waiting)),
        ("answers to the others", ", ".join(f"{n} x {code}" for code, n in answers.items())),
        ("resident before, MiB", f"{before / MIB:.0f}"),
        ("at its highest", f"{highest / MIB:.0f}"),
        ("two seconds after all have left", f"{resident_bytes(pid) / MIB:.0f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__)
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--body-mib", type=float, default=2.0)
    parser.add_argument("--limit-mib", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = {"port": 1, "wake": "sleep 600", "sleep": "true", "alive": "true"}
        limits = {"queued_bytes": options.limit_mib * MIB}
        config = {"port": 0, "state_dir": "s", "models": {"m": model}, "limits": limits}
        (folder / "llmux.json").write_text(json.dumps(config | {"shutdown_grace_secs": 0}))
        command = [sys.executable, "-m", "llmux", "-c", str(folder / "llmux.json")]
        log = folder / "llmux.log"
        with running(command, core=PROXY_CORE, log=log) as process:
            port = int(wait_logged(process, r"listening.*url=http://[^:]+:(\d+)", log))
            size = int(options.body_mib * MIB)
            rows = trio.run(flood, process.pid, port, options.clients, size)
    print(f"limits.queued_bytes: {options.limit_mib} MiB")
    print(render([("", ""), *rows]))


if __name__ == "__main__":
    main()
