"""Environment of a hook: its variables, and the descriptor limit that it starts with."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from urllib.parse import urlsplit

from llmux.config import HookName, ModelConfig
from llmux.config.gpus import gpu_indexes
from llmux.hooks.orphans import MARK_VARIABLE
from llmux.http.socketpath import socket_path

SOCKET_VARIABLE = "LLMUX_SOCKET"
"""Path of the model's Unix socket, if it has one instead of a port."""

STATE_VARIABLE = "LLMUX_STATE_DIR"
"""Folder for what hooks keep between runs: the config's folder may be read-only."""

MODEL_VARIABLE = "LLMUX_MODEL"
HOOK_VARIABLE = "LLMUX_HOOK"

KEEPS_ENVIRONMENT = {"SPT_NOENV": "1"}
"""Tells the Python package setproctitle, which vLLM and SGLang use, to leave the environment of a
process readable in /proc, where llmux looks for the processes of a model."""

NEEDS_VARIABLE = "LLMUX_NEEDS"
SHARE_VARIABLE = "LLMUX_GPU_SHARE"
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"

OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""What systemd gives llmux alone: a server that took them for its own would report for llmux."""

CLEAN_UP_S = 20
"""Part of a hook's time limit that its own waits leave to it."""

NO_LIMIT_S = 1_000_000_000

ORIGINAL_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)
"""Soft and hard descriptor limit of this process before anything in it raised the soft one.

Hooks get this soft limit back: programs that use select() break on descriptors over 1024.
"""


def hook_environment(
    name: str,
    model: ModelConfig,
    *,
    hook: HookName,
    source: str,
    target: str,
    mark: str,
    secret_variables: AbstractSet[str],
    state_dir: Path | None = None,
    resources: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Return the environment of one run: this process's own, without secrets, and `LLMUX_*`.

    Hooks of a recipe also get its parameters, the model's URL, how long they may wait, and a Python
    for what the shell cannot do.

    Args:
        name: Name of the model.
        model: Its config.
        hook: Name of the hook.
        source: Model that the switch leaves; empty for none.
        target: Model that the switch is for; empty for none.
        mark: Mark by which a later llmux finds the processes of this run; empty for none.
        secret_variables: Variables that hooks do not get.
        state_dir: The config's `state_dir`; None to leave its variable out.
        resources: The config's `resources`.
    """
    own = {name: text for name, text in os.environ.items() if name not in secret_variables}
    own = KEEPS_ENVIRONMENT | own
    # llmux itself may have been started by a hook.
    for inherited in (MARK_VARIABLE, NEEDS_VARIABLE, SHARE_VARIABLE, *OF_SYSTEMD):
        own.pop(inherited, None)
    if mark:
        own[MARK_VARIABLE] = mark
    port = backend_port(model)
    if state_dir is not None:
        own[STATE_VARIABLE] = str(state_dir)
    own |= needs_variables(model.needs, resources or {}, own)
    if model.recipe is not None:
        own |= model.variables | {"LLMUX_URL": model.base_url, "LLMUX_PYTHON": sys.executable}
        own |= {"PORT": port, "LLMUX_HOOK_SECS": _whole_seconds(model.timeout_s(hook))}
    own.pop(SOCKET_VARIABLE, None)
    if (path := socket_path(model.base_url)) is not None:
        own[SOCKET_VARIABLE] = path
    return own | {
        MODEL_VARIABLE: name,
        "LLMUX_PORT": port,
        "LLMUX_DEST_PORT": port,  # upstream llmux's name for it
        HOOK_VARIABLE: hook,
        "LLMUX_SOURCE": source,
        "LLMUX_TARGET": target,
    }


def needs_variables(
    needs: Mapping[str, int] | str | None, resources: Mapping[str, int], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that tell hooks what their model may use; none for `auto` or no needs.

    `LLMUX_NEEDS` has a line of `NAME BYTES WHOLE` for each resource. Where it needs GPUs, the
    resources `gpu0`, `gpu1` and so on, CUDA shows it these alone, unless llmux's own environment
    says which, and `LLMUX_GPU_SHARE` has the largest share of one.

    Args:
        needs: The model's.
        resources: All there are.
        environ: The other variables of the hook.
    """
    if not isinstance(needs, Mapping):
        return {}
    used = [name for name in resources if needs.get(name)]
    lines = (f"{name} {needs[name]} {resources[name]}" for name in used)
    found = {NEEDS_VARIABLE: "\n".join(lines)}
    gpus = gpu_indexes(used)
    if gpus:
        share = max(needs[name] / resources[name] for name in gpus)
        found[SHARE_VARIABLE] = f"{math.floor(share * 10_000) / 10_000:.4f}"
        if VISIBLE_VARIABLE not in environ:
            found[VISIBLE_VARIABLE] = ",".join(map(str, sorted(gpus.values())))
            found[ORDER_VARIABLE] = "PCI_BUS_ID"  # nvidia-smi's
    return found


def _whole_seconds(limit_s: float | None) -> str:
    """Return how long a hook may wait, so that it has time left to clean up; None for no limit."""
    if limit_s is None:
        return str(NO_LIMIT_S)
    return str(max(1, int(limit_s - CLEAN_UP_S if limit_s >= 3 * CLEAN_UP_S else limit_s * 2 / 3)))


def backend_port(model: ModelConfig) -> str:
    """Return the port of the model's backend, the URL's if it has one; empty for a Unix socket."""
    if socket_path(model.base_url) is not None:
        return ""
    url = urlsplit(model.base_url)
    return str(url.port or {"http": 80, "https": 443}[url.scheme])


def shell_command(script: str) -> list[str]:
    """Return the command that runs the script with the original descriptor limit."""
    soft, _ = ORIGINAL_NOFILE
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft:
        return ["sh", "-c", script]
    # In the shell, for Python code between fork and exec (preexec_fn) may deadlock with threads.
    # `exec`, so that the script sees a plain `sh -c` and its exit code is that of the process.
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return ["sh", "-c", 'ulimit -S -n "$1"; exec sh -c "$2"', "sh", limit, script]
