"""Listeners and processes of this machine, from /proc; elsewhere than on Linux nothing is found."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from llmux.base.plainfiles import read_own
from llmux.cli.doctor.facts import Descriptors, Listener, Process
from llmux.hooks.environment import STATE_VARIABLE
from llmux.hooks.sockets import all_listening, sockets_of

PROC = Path("/proc")

MOST_LOCK_BYTES = 64 << 10


def process(pid: int) -> Process:
    """Look at a process."""
    folder = PROC / str(pid)
    facts: dict[str, str] = {}
    with suppress(OSError):
        lines = (folder / "status").read_text(errors="replace").splitlines()
        facts = {key: text.strip() for key, _, text in (line.partition(":") for line in lines)}
    name = facts.get("Name") or "a process"
    state = facts.get("State", "").partition("(")[2].rstrip(")")
    try:
        pairs = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return Process(pid, name, is_readable=False, state=state)
    about = dict(
        pair.decode(errors="replace").partition("=")[::2]
        for pair in pairs
        if pair.startswith(b"LLMUX_")
    )
    return Process(pid, name, about.get("LLMUX_MODEL"), about.get(STATE_VARIABLE), state=state)


def listeners(ports: Collection[int]) -> tuple[Listener, ...] | None:
    """Return the listeners on some ports, with their owners; None without /proc."""
    if not (PROC / "net/tcp").exists():
        return None
    found = [each for each in all_listening() if each[1] in ports]
    owners = _owners({inode for _, _, inode in found})
    return tuple(
        Listener(host, port, process(owners[inode]) if inode in owners else None)
        for host, port, inode in found
    )


def listeners_of(pid: int) -> tuple[Listener, ...]:
    """Return the listeners of a process; none if it is another user's."""
    sockets = sockets_of(pid)
    return tuple(Listener(host, port) for host, port, inode in all_listening() if inode in sockets)


def _owners(inodes: Collection[str]) -> dict[str, int]:
    """Return the ids of the processes that have sockets open, as far as this user may see them."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[str, int] = {}
    for entry in PROC.iterdir() if wanted else ():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            for descriptor in (entry / "fd").iterdir():
                with suppress(OSError):
                    inode = wanted.get(str(descriptor.readlink()))
                    if inode is not None:
                        owners.setdefault(inode, int(entry.name))
    return owners


def lock_holder(state_dir: Path) -> Process | None:
    """Return the llmux that holds the lock of a state folder; None if none does.

    The lock itself is not tried, not even for a moment: a llmux that starts just then would fail.
    """
    path = state_dir / "lock"
    try:
        text = read_own(path, MOST_LOCK_BYTES)
        inode = path.stat().st_ino
    except OSError:
        return None
    word = text.removeprefix(b"pid ").partition(b",")[0]
    if not text.startswith(b"pid ") or not word.isdigit():
        return None
    pid = int(word)
    try:
        locks = (PROC / "locks").read_text()
    except OSError:
        return process(pid) if _runs(pid) else None
    return process(pid) if _is_locked(locks, inode) else None


def _is_locked(locks: str, inode: int) -> bool:
    """Return whether a file is locked by flock(2), by the text of /proc/locks (proc_locks(5))."""
    rows = (line.split() for line in locks.splitlines())
    return any(
        "FLOCK" in fields and any(field.endswith(f":{inode}") for field in fields)
        for fields in rows
    )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def descriptors(pid: int | None) -> Descriptors:
    """Return the descriptors of a llmux; without one, what a new one would get."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if pid is None:
        return Descriptors(hard)
    used = None
    with suppress(OSError, ValueError):
        limits = (PROC / str(pid) / "limits").read_text().splitlines()
        line = next(each for each in limits if each.startswith("Max open files"))
        hard = int(line.split()[4])
        used = len(os.listdir(PROC / str(pid) / "fd"))  # noqa: PTH208 - only their number
    return Descriptors(hard, used)
