"""Speaks as `systemctl` does about units, each of which is a `server`. After systemd's man page.

The units are in `units.json`, by scope: `{"--user": {"NAME": {"port": ...}}, "": {...}}`.
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

from tests.hooks.standins.shared import HOME, has_fault, hold, record

STORE = HOME / "units.json"


def fail(code: int, why: str) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    sys.exit(code)


def is_running(unit: dict[str, Any]) -> bool:
    with suppress(OSError, KeyError):
        stat = Path(f"/proc/{unit['pid']}/stat").read_text()
        return not stat.rpartition(") ")[2].startswith("Z")
    return False


def state_of(unit: dict[str, Any]) -> str:
    if unit["state"] == "active" and not is_running(unit):
        return "failed"
    return str(unit["state"])


def start(name: str, unit: dict[str, Any]) -> None:
    import subprocess  # noqa: PLC0415 - most commands can do without

    server = subprocess.Popen(
        [sys.executable, "-S", "-m", "tests.hooks.standins.server",
         "--port", str(unit["port"]), "--name", name.removesuffix(".service")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    unit.update(pid=server.pid, state="active")


def end(name: str, unit: dict[str, Any], number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(unit["pid"], number)
    while is_running(unit):
        time.sleep(0.01)
    hold(name.removesuffix(".service"), 0)
    unit["state"] = "inactive" if number == signal.SIGTERM else "failed"


def main(words: list[str]) -> None:
    scope = "--user" if words[0] == "--user" else ""
    assert "--no-ask-password" in words
    words = [word for word in words if word not in ("--user", "--no-ask-password")]
    command, name = words[0], words[-1]
    if has_fault("hangs"):
        time.sleep(60)
    if has_fault("no_bus"):
        fail(1, "Failed to connect to bus: No medium found")
    stored = json.loads(STORE.read_text())
    unit = stored[scope].get(name)
    if command == "show":
        loaded = "loaded" if unit else "not-found"
        state = state_of(unit) if unit else "inactive"
        sys.stdout.write(f"LoadState={loaded}\nActiveState={state}\n")
        return
    record(f"systemctl {' '.join([*([scope] if scope else []), *words])}")
    if unit is None:
        fail(5, f"Failed to {command} {name}: Unit {name} not found.")
    if command == "status":
        sys.stdout.write(f"● {name}\n     Active: {state_of(unit)}\n  the server's last words\n")
        sys.exit(0 if state_of(unit) == "active" else 3)
    if has_fault("not_allowed"):
        fail(1, f"Failed to {command} {name}: Interactive authentication required.")
    if command == "start":
        if has_fault("start_limit") and unit["state"] == "failed":
            fail(1, f"Job for {name} failed.")
        if has_fault("start_fails"):
            unit["state"] = "failed"
            STORE.write_text(json.dumps(stored))
            fail(1, f"Job for {name} failed because the control process exited with error code.")
        start(name, unit)
    elif command == "stop":
        if has_fault("stop_hangs"):
            time.sleep(60)
        end(name, unit, signal.SIGTERM)
    elif command == "kill":
        assert words[1:3] == ["--signal", "KILL"]
        end(name, unit, signal.SIGKILL)
    elif command == "reset-failed":
        unit["state"] = "inactive"
    else:
        fail(1, f"Unknown command verb {command}.")
    STORE.write_text(json.dumps(stored))


if __name__ == "__main__":
    main(sys.argv[1:])
