"""Processes that a model's wake hook has left running, and what they hold, from /proc.

Processes of other users, and those in other PID namespaces that are not below llmux's own, are not
found; elsewhere than on Linux none is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmux.hooks.environment import HOOK_VARIABLE, MODEL_VARIABLE, STATE_VARIABLE
from llmux.hooks.orphans import processes_with

PROC = Path("/proc")

KIB = 1024


class Kin(NamedTuple):
    """Relations of a process: its parent and its session, by their ids."""

    parent: int
    session: int


def left_by_wake(model: str, state_dir: Path | None) -> frozenset[int]:
    """Return the ids of the processes that a model's wake hook has left running.

    Its environment tells them, also those that an earlier llmux has started. A process that has
    overwritten its environment, as programs do that set their title, is told by its parent or
    its session.
    """
    about = {MODEL_VARIABLE: model, HOOK_VARIABLE: "wake"}
    if state_dir is not None:
        about[STATE_VARIABLE] = str(state_dir)
    return with_kin(processes_with(about), all_kin())


def all_kin() -> dict[int, Kin]:
    """Return the relations of all processes by their ids; zombies are left out."""
    found = {}
    with suppress(FileNotFoundError):
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                with suppress(OSError):  # ended meanwhile
                    kin = _kin((entry / "stat").read_text(errors="replace"))
                    if kin is not None:
                        found[int(entry.name)] = kin
    return found


def _kin(stat: str) -> Kin | None:
    """Read /proc/PID/stat (proc(5)): `1 (name) S parent group session ...`; None for a zombie."""
    state, parent, _, session, *_ = stat.rpartition(") ")[2].split()
    return None if state in "ZX" else Kin(int(parent), int(session))


def with_kin(known: Collection[int], kin: Mapping[int, Kin]) -> frozenset[int]:
    """Add to some processes their descendants and the other members of their sessions.

    Of sessions only those count whose leader is known or has ended: somebody may have run the hook
    by hand, in the session of a shell.
    """
    found = {pid for pid in known if pid in kin}
    while True:
        # 0 stands for the sessions of another PID namespace.
        sessions = {kin[pid].session for pid in found} - {0}
        own = {each for each in sessions if each in found or each not in kin}
        more = {
            pid
            for pid, (parent, session) in kin.items()
            if pid not in found and (parent in found or session in own)
        }
        if not more:
            return frozenset(found)
        found |= more


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory: its share of what it shares (Pss), else all (Rss).

    A process that has ended holds nothing.
    """
    with suppress(OSError):  # another user's, or an old kernel
        return _kib_of("Pss", (PROC / str(pid) / "smaps_rollup").read_text())
    with suppress(OSError):
        return _kib_of("VmRSS", (PROC / str(pid) / "status").read_text(errors="replace"))
    return 0


def _kib_of(name: str, text: str) -> int:
    """Return bytes from a line `NAME:   123 kB`; 0 if there is none, as for kernel threads."""
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * KIB
    return 0
