"""Memory settings of the whole process: glibc's allocator and Python's collector."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

M_MMAP_THRESHOLD = -3
"""mallopt(3), from malloc.h."""


def return_freed_memory() -> None:
    """Return the memory of large bodies to the system once they are freed (glibc only).

    By default glibc keeps freed blocks of up to 32 MiB: after a flood of large bodies the process
    would stay as large as it ever was.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def calm_collector() -> None:
    """Run the garbage collector less often, and not on objects that stay for good.

    Reference counts free nearly all objects of llmux. With Python's default thresholds, the
    collector traverses thousands of waiting requests again and again: 9,800 of them took 2.5 times
    as long to serve (`bench.switch`). It must not run less often than this, though: each connection
    served by Hypercorn leaves about 25 objects (8 KB) in cycles, up to 8 MB before a collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 50, 1000)
