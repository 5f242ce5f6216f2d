"""What all stand-ins share: faults, the record of calls, the fake GPU. Quick to import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOME = Path(os.environ["STANDIN_DIR"])
GPU_MIB = 100


def has_fault(name: str) -> bool:
    """Whether the test wants this to go wrong now."""
    path = HOME / "faults"
    return path.exists() and name in path.read_text().split()


def record(call: str) -> None:
    """Note what was asked, for the test to compare."""
    with (HOME / "calls").open("a") as calls:
        calls.write(f"{call}\n")


def say(line: str) -> None:
    """Print to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def hold(owner: str, mib: int) -> bool:
    """Take so much of the fake GPU, 0 for nothing; False if it is out of memory."""
    gpu = HOME / "gpu"
    gpu.mkdir(exist_ok=True)
    others = sum(int(file.read_text() or 0) for file in gpu.iterdir() if file.name != owner)
    if mib and others + mib > GPU_MIB:
        return False
    if mib:
        (gpu / owner).write_text(str(mib))
    else:
        (gpu / owner).unlink(missing_ok=True)
    return True


def option(arguments: list[str], name: str, default: str = "") -> str:
    """The value after an option of the command line."""
    return arguments[arguments.index(name) + 1] if name in arguments else default


def leave(code: int, owner: str) -> None:
    """End the process at once; the driver frees what it held."""
    hold(owner, 0)
    os._exit(code)
