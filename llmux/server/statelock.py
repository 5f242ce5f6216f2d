"""The lock on `state_dir`, which ensures that only one llmux serves a config."""

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
"""The text of an earlier holder; a file with any other text is not llmux's, and is left alone."""

MOST_BYTES = 64 << 10

log = get_logger(__name__)


class LockHeld(Exception):
    """Another process already switches the models of this config."""


@contextmanager
def state_lock(state_dir: Path, config_path: Path | None) -> Iterator[None]:
    """Hold `state_dir/lock` as long as the context lasts.

    The lock is the kernel's (`flock`), so it cannot outlive its holder. The file's text is only for
    the error message of a second llmux.

    Raises:
        LockHeld: Another process holds it; the message names that process.
        OSError: `state_dir` cannot be created or written, in which case the message says what to
            do; or the lock's path is taken by something else, which is left alone.
    """
    path = state_dir / "lock"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (why := unsafe_folder(state_dir)) is not None:
            log.warning("state_dir_unsafe", path=str(state_dir), reason=why)
        # Python's descriptors are not inheritable, so servers that hooks start do not hold it.
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
        with suppress(OSError):  # the disk may be full; the text is only for a message
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()}, config {config_path}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
