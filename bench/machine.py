"""The machine and the program versions, as every report states them; progress on stderr."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bench import contestants
from bench.processes import BACKEND_CORE, LOAD_CORE, PROXY_CORE


def machine() -> str:
    """Versions and hardware, in one paragraph."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("trio", "hypercorn", "httptools"))
    return (
        f"{server_version('nginx', '-v')}, {server_version('haproxy', '-v')}, "
        f"Python {platform.python_version()}, {packages}; Linux {platform.release()}, "
        f"{cpu_model()}, {os.cpu_count()} cores "
        f"(proxies on {PROXY_CORE}, load on {LOAD_CORE}, backend on {BACKEND_CORE})"
    )


def server_version(program: str, option: str) -> str:
    path = contestants.which(program)
    if path is None:
        return f"no {program}"
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return f"{program} {found[0] if found else '?'}"


def cpu_model() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def say(text: str) -> None:
    """Print progress on stderr, apart from the table on stdout."""
    print(text, file=sys.stderr, flush=True)
