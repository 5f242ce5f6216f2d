"""How the process as a whole uses memory."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

M_MMAP_THRESHOLD = -3
"""mallopt(3), from malloc.h."""


def return_freed_memory() -> None:
    """Have large bodies return to the system what they took (glibc only).

    By itself glibc keeps blocks of up to 32 MiB for itself once one has been freed: after a flood
    of bodies llmux would stay as large as it ever was.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def calm_collector() -> None:
    """Make the garbage collector look less often, and not at what stays for good.

    Nearly everything here is freed by its reference count. With Python's own thresholds, thousands
    of waiting requests are walked through again and again: 9,800 of them took 2.5 times as long to
    serve (`bench.switch`). Not less often than this, either: a connection on Hypercorn's side
    leaves about 25 objects in cycles, 8 KB, so that up to 8 MB of them wait to be collected.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 50, 1000)
