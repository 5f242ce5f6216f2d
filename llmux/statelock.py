"""One switcher per config: the lock that a second one finds held."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockHeld(Exception):
    """Another process already switches the models of this config."""


@contextmanager
def state_lock(state_dir: Path, config_path: Path | None) -> Iterator[None]:
    """Hold `state_dir/lock` for as long as the context lasts.

    The lock is the kernel's (`flock`), so it cannot outlive its holder; what stands in the file is
    only for the message that the next one prints.

    Raises:
        LockHeld: Another process has it; the message names it.
        OSError: `state_dir` cannot be made or written.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / "lock"
    # Not inheritable, as all of Python's descriptors: servers that hooks leave behind lack it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            raise LockHeld(
                f"another llmux already serves this config ({holder}); stop it first "
                f"(its lock is {path})"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}, config {config_path}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
