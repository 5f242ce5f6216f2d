"""One switcher per config: the lock that a second one finds held."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmux.base.plainfiles import NotOurs, open_own, unsafe_folder
from llmux.observe.logs import get_logger

OWN_TEXT = re.compile(rb"pid [0-9]+, config .*|", re.DOTALL)
"""What an earlier holder may have left; anything else is a file of somebody's, and stays."""

MOST_BYTES = 64 << 10

log = get_logger(__name__)


class LockHeld(Exception):
    """Another process already switches the models of this config."""


@contextmanager
def state_lock(state_dir: Path, config_path: Path | None) -> Iterator[None]:
    """Hold `state_dir/lock` for as long as the context lasts.

    The lock is the kernel's (`flock`), so it cannot outlive its holder; what stands in the file is
    only for the message that the next one prints.

    Raises:
        LockHeld: Another process has it; the message names it.
        OSError: `state_dir` cannot be made or written; its text says what to do. Or something else
            stands in the lock's place, which is left as it is.
    """
    path = state_dir / "lock"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (why := unsafe_folder(state_dir)) is not None:
            log.warning("state_dir_unsafe", path=str(state_dir), reason=why)
        # Not inheritable, as all of Python's descriptors: servers that hooks leave behind lack it.
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    except NotOurs:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to state_dir {state_dir} ({error.strerror or error}): set state_dir in "
            "the config to a folder that llmux may write to"
        ) from None
    try:
        found = os.pread(descriptor, MOST_BYTES, 0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = found[:4096].decode(errors="replace").strip() or "unknown"
            raise LockHeld(
                f"another llmux already serves this config ({holder}); stop it first "
                f"(its lock is {path})"
            ) from None
        if not OWN_TEXT.fullmatch(found):
            raise NotOurs(path, "is a file that is not llmux's lock")
        with suppress(OSError):  # a full disk: it is only for the message
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()}, config {config_path}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
