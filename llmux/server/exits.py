"""Exit codes, and an exit that unwinds nothing."""

from __future__ import annotations

import os
import sys

EXIT_CANNOT_LISTEN = 1
"""An address cannot be bound, or `state_dir` cannot be used."""

EXIT_WARNINGS = 1
"""`llmux check --strict` has warned of something."""

EXIT_CONFIG = 2
"""The config is bad, or another process holds its lock."""

EXIT_SWITCHER_DIED = 3

EXIT_AT_ONCE = 4
"""A second signal arrived during shutdown."""


def exit_at_once() -> None:
    """End a process that can no longer switch.

    By `os._exit`, since an exception would not end it: Hypercorn only logs a crashed lifespan and
    continues to serve, and a hook that cannot be killed would keep its nursery open forever.
    """
    sys.stderr.flush()
    os._exit(EXIT_SWITCHER_DIED)


def print_mistake(error: Exception) -> None:
    """Print a start-up error for people, without a traceback."""
    sys.stderr.write(f"{error}\n")
