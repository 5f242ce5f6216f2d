"""Has the options and states of NVIDIA's `cuda-checkpoint`, after its README and the driver's API.

The processes that use CUDA are those for which there is a file `cuda-PID`, with an owner of the fake GPU
and a state.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NoReturn

from tests.hooks.standins.shared import HOME, has_fault, hold, option, record

MIB = 30
MOVES = {
    ("lock", "running"): "locked",
    ("checkpoint", "locked"): "checkpointed",
    ("restore", "checkpointed"): "locked",
    ("unlock", "locked"): "running",
}


def fail(why: str) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    sys.exit(1)


def move(file: Path, action: str) -> None:
    owner, state = file.read_text().split()
    if (action, state) not in MOVES:
        fail(f'Could not {action} process: "the operation is not permitted in state {state}"')
    if action == "checkpoint":
        hold(owner, 0)
    if action == "restore" and not hold(owner, MIB):
        fail('Could not restore process: "out of memory"')
    file.write_text(f"{owner} {MOVES[action, state]}")


def main(words: list[str]) -> None:
    is_old = has_fault("old_driver")
    if words == ["--help"]:
        new = (
            ""
            if is_old
            else "--get-state --pid <pid>\n--action lock | checkpoint | restore | unlock\n"
        )
        sys.stdout.write(f"CUDA checkpoint and restore utility.\n{new}--toggle --pid <pid>\n")
        return
    pid = option(words, "--pid")
    file = HOME / f"cuda-{pid}"
    if not file.exists():
        fail(f'Could not find process {pid}: "initialization error"')
    if words[0] == "--get-state" and not is_old:
        sys.stdout.write(f"{file.read_text().split()[1]}\n")
        return
    record(f"cuda-checkpoint {' '.join(words)}")
    if words[0] == "--toggle":
        both = ("lock", "checkpoint")
        for action in both if file.read_text().endswith("running") else ("restore", "unlock"):
            move(file, action)
        return
    assert words[0] == "--action", words
    assert not is_old, words
    action, owner = words[1], file.read_text().split()[0]
    if has_fault(f"{action}_hangs"):
        time.sleep(60)
    if has_fault(f"{action}_{owner}") or has_fault(f"{action}_fails"):
        if has_fault("breaks"):
            file.write_text(f"{owner} failed")
        fail(f'Could not {action} process {pid}: "OS call failed or operation not supported"')
    move(file, action)


if __name__ == "__main__":
    main(sys.argv[1:])
