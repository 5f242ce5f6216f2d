"""The GPUs and the processes that hold their memory, by nvidia-smi."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from contextlib import suppress

from llmux.cli.doctor.facts import GpuUse
from llmux.cli.doctor.processes import process
from llmux.observe.gpus import (
    END_S,
    FIELDS,
    KEPT_VARIABLES,
    LONGEST_S,
    MIB,
    QueryFailed,
    find_nvidia_smi,
    parse,
)


def gpu_uses() -> tuple[GpuUse, ...]:
    """Return the GPUs; empty without nvidia-smi. Raises QueryFailed."""
    command = find_nvidia_smi()
    if command is None:
        return ()
    gpus = _query(command, f"--query-gpu=uuid,{','.join(FIELDS)}")
    users = _query(command, "--query-compute-apps=gpu_uuid,pid,used_memory")
    return tuple(uses(gpus, users))


def uses(gpus: str, users: str) -> list[GpuUse]:
    """Read nvidia-smi's answers about GPUs and about processes. Raises QueryFailed."""
    rows = [line.partition(",") for line in gpus.splitlines() if line.strip()]
    found = [gpu for _, _, rest in rows for gpu in parse(rest.strip())]
    if len(found) != len(rows):  # `No devices were found`
        raise QueryFailed(f"unexpected output of nvidia-smi: {gpus.strip()[:200]}")
    held: dict[str, list[tuple[int, int]]] = {}
    for row in csv.reader(users.splitlines(), skipinitialspace=True):
        # Without permission, or in a container, there is `[N/A]` in place of numbers.
        if len(row) == 3 and row[1].isdecimal():
            used = int(row[2]) * MIB if row[2].isdecimal() else 0
            held.setdefault(row[0], []).append((int(row[1]), used))
    return [
        GpuUse(gpu, tuple((process(pid), used) for pid, used in held.get(uuid.strip(), ())))
        for (uuid, _, _), gpu in zip(rows, found, strict=True)
    ]


def _query(command: str, what: str) -> str:
    """Run nvidia-smi, for a bounded time even where it cannot be killed; raises QueryFailed."""
    environment = {key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ}
    try:
        running = subprocess.Popen(  # noqa: S603
            [command, what, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, "LC_ALL": "C"},
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise QueryFailed(f"{command}: {error.strerror}") from None
    try:
        text, _ = running.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=END_S)
        raise QueryFailed(f"nvidia-smi took more than {LONGEST_S:g} s") from None
    if running.returncode != 0:
        first = text.strip().partition("\n")[0][:200]
        raise QueryFailed(f"nvidia-smi exited with {running.returncode}: {first}")
    return text
