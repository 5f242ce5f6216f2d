"""Speaks as `docker` and `podman` do about containers, each of which is a `server`.

What Podman says was recorded from Podman 4.3.1, and of Docker's words those that its client says
alone from version 28; the rest is after Docker's documentation.

    containers docker create --name NAME -p 127.0.0.1:PORT:8000 IMAGE
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.hooks.standins.shared import HOME, has_fault, hold, option, record

STORE = HOME / "containers.json"
TOOL = sys.argv[1]
IS_PODMAN = TOOL == "podman"


def load() -> dict[str, dict[str, Any]]:
    return json.loads(STORE.read_text()) if STORE.exists() else {}


def save(containers: dict[str, dict[str, Any]]) -> None:
    STORE.write_text(json.dumps(containers))


def fail(why: str) -> NoReturn:
    sys.stderr.write(f"Error: {why}\n" if IS_PODMAN else f"Error response from daemon: {why}\n")
    sys.exit(125 if IS_PODMAN else 1)


def is_running(container: dict[str, Any]) -> bool:
    with suppress(OSError, KeyError):
        stat = Path(f"/proc/{container['pid']}/stat").read_text()
        return not stat.rpartition(") ")[2].startswith("Z")
    return False


def state_of(container: dict[str, Any]) -> str:
    state = str(container["state"])
    return "exited" if state in ("running", "paused") and not is_running(container) else state


def run_server(container: dict[str, Any]) -> None:
    import subprocess  # noqa: PLC0415 - most commands can do without

    with Path(container["log"]).open("a") as log:
        server = subprocess.Popen(
            [sys.executable, "-S", "-m", "tests.hooks.standins.server",
             "--port", container["port"], "--name", container["name"]],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    container.update(pid=server.pid, state="running", checkpointed=False)


def end_server(container: dict[str, Any], number: int, seconds: float) -> None:
    with suppress(ProcessLookupError):
        os.kill(container["pid"], number)
    give_up_at = time.monotonic() + seconds
    while is_running(container):
        if time.monotonic() > give_up_at:
            number, give_up_at = signal.SIGKILL, time.monotonic() + 5
            os.kill(container["pid"], number)
        time.sleep(0.01)
    hold(container["name"], 0)
    container["state"] = "exited"


def main(words: list[str]) -> None:
    command = " ".join(words[:2]) if words[0] == "container" else words[0]
    name = words[-1]
    if has_fault("hangs"):
        time.sleep(60)
    if has_fault("no_daemon"):
        fail("Cannot connect to the daemon. Is it running?")
    containers = load()
    if command == "create":
        name = option(words, "--name")
        port = option(words, "-p").split(":")[1]
        log = str(HOME / f"{name}.log")
        containers[name] = {"name": name, "port": port, "log": log, "state": "created"}
        return save(containers)
    if command != "container inspect":
        record(f"{TOOL} {' '.join(words)}")
    if name not in containers:
        if command == "container inspect" and IS_PODMAN:
            fail(f"inspecting object: no such container {name}")
        if IS_PODMAN:
            fail(f'no container with name or ID "{name}" found: no such container')
        fail(f"No such container: {name}")
    container = containers[name]
    state = state_of(container)
    if command == "container inspect":
        health = "starting" if has_fault("stays_starting") else ""
        health = "unhealthy" if has_fault("unhealthy") else health
        template = option(words, "--format")
        if IS_PODMAN and has_fault("warns"):
            sys.stderr.write('time="2026-11-21T11:55:18Z" level=warning msg="something else"\n')
        answer = template.replace("{{.State.Status}}", state)
        answer = answer.replace("{{with .State.Health}}{{.Status}}{{end}}", health)
        checkpointed = str(container.get("checkpointed", False)).lower()
        sys.stdout.write(answer.replace("{{.State.Checkpointed}}", checkpointed) + "\n")
        return None
    if command == "start":
        if state == "paused":
            fail(f"container {name} must be in Created or Stopped state to be started")
        if has_fault("no_gpu"):
            fail('could not select device driver "" with capabilities: [[gpu]]')
        if state != "running":
            run_server(container)
    elif command == "pause":
        container["state"] = "paused"
    elif command == "unpause":
        container["state"] = "running"
    elif command == "stop":
        if state == "paused" and IS_PODMAN:
            fail(f"container {name} is running or paused, refusing to clean up")
        if has_fault("stop_fails"):
            fail(
                f"cannot stop container {name}: tried to kill container, but did not receive an exit"
            )
        if state == "running":
            end_server(container, signal.SIGTERM, float(option(words, "-t", "10")))
    elif command == "kill":
        if state != "running":
            fail(f"can only kill running containers. {name} is in state {state}")
        if has_fault("kill_fails"):
            fail(f"cannot kill container {name}")
        end_server(container, signal.SIGKILL, 5)
    elif command == "logs":
        sys.stderr.write(Path(container["log"]).read_text())
        return None
    elif command == "container checkpoint" and IS_PODMAN:
        if state != "running":
            fail(f'"{state}" is not running, cannot checkpoint: container state improper')
        if has_fault("checkpoint_hangs"):
            time.sleep(60)
        if has_fault("no_criu"):
            sys.stderr.write(
                'level=error msg="criu failed: type DUMP errno 0\\nlog file: dump.log"\n'
            )
            fail("`/usr/bin/runc checkpoint` failed: exit status 1")
        end_server(container, signal.SIGKILL, 5)
        container.update(checkpointed=True, image=True)
    elif command == "container restore" and IS_PODMAN:
        if not container.pop("image", False) or has_fault("restore_fails"):
            fail("a complete checkpoint for this container cannot be found, cannot restore")
        run_server(container)
    else:
        sys.stderr.write(f'unknown command "{command}" for {TOOL}\n')
        sys.exit(125)
    save(containers)
    return None


if __name__ == "__main__":
    main(sys.argv[2:])
