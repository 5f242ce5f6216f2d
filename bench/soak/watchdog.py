"""The watchdog of a run: a process that ends the leftovers, however the run ends.

It needs nothing but the standard library (`python -I -S`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK_VARIABLE = "LLMUX_SOAK"
"""Environment variable that marks all processes of one run, for the watchdog to find them."""


def watch(mark: str) -> None:
    """Wait for the end of the run, however it ends, and end its leftovers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    while pids := list(marked(mark)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def marked(mark: str) -> Iterator[int]:
    """Yield the processes of the run that still live."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    for entry in Path("/proc").iterdir():
        # A zombie's environment is empty, and that of other users' processes is not readable.
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


if __name__ == "__main__":
    watch(sys.argv[1])
