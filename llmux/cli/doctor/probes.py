"""Gather the facts: each probe has a time limit, and none ends the command."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llmux.base.plainfiles import unsafe_folder
from llmux.cli.doctor.facts import ConfigFacts, Folder, Running, SecretFile, Trouble
from llmux.cli.terminal.client import Client
from llmux.cli.terminal.failures import Failed, KeyRefused
from llmux.cli.terminal.target import UNIX, Target
from llmux.config import (
    address_remarks,
    command_remarks,
    file_remarks,
    load_config,
    loop_mistakes,
    memory_remarks,
    mistaken,
    program_remarks,
    recipe_remarks,
    script_remarks,
    tls_remarks,
)
from llmux.config.environment import OPENING, decode_plainly
from llmux.config.files import read_text
from llmux.config.own_address import LOCALHOST, is_here
from llmux.config.shape import KEY_LISTS
from llmux.errors import ConfigError
from llmux.observe.schemas import Health, RequestList, Status
from llmux.policy import load_policy

ANSWER_S = 5.0
"""Limit for an answer of the running llmux, in seconds."""

LONGEST_S = 20.0
"""Limit for a probe; a folder on a network disk may never answer."""

MOST_REQUESTS = 1000
"""Number of the oldest requests that are looked at."""

T = TypeVar("T")

Answers = tuple[Running | None, Trouble | None, str]
"""The answers of llmux; without any, why, and the same in words."""


class Probes:
    """Runs probes, and notes those that gave no result.

    Attributes:
        unchecked: What could not be looked at, and why.
    """

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self.unchecked: list[tuple[str, str]] = []

    def run(self, about: str, probe: Callable[[], T], otherwise: T) -> T:
        """Return what a probe returns; `otherwise` if it fails or does not end."""
        results: list[T] = []

        def work() -> None:
            try:
                results.append(probe())
            except Exception as error:  # whatever it is, the other probes tell the rest
                self.unchecked.append((about, f"{type(error).__name__}: {error}"))

        # A daemon, since a system call to a dead disk cannot be ended.
        thread = Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._longest_s)
        if thread.is_alive():
            self.unchecked.append((about, f"no result within {self._longest_s:g} s"))
            return otherwise
        return results[0] if results else otherwise


# ---- The running llmux ----


def ask(target: Target) -> Answers:
    """Ask llmux; returns its answers, or why there are none."""
    client = Client(target, answer_s=ANSWER_S)
    try:
        status = client.get("/control/status", Status)
        requests = client.get("/control/requests", RequestList, limit=MOST_REQUESTS)
        settings = client.get("/control/config", dict[str, Any])
    except KeyRefused as error:
        return None, "key", error.message
    except Failed as error:
        return None, _kind(error.message), error.message
    return Running(status, requests, settings, can_switch(client)), None, ""


def can_switch(client: Client) -> bool:
    """Return False if `/health` answers 503; a listener of the control API alone does not know."""
    try:
        client.get("/health", Health)
    except Failed as error:
        return "(HTTP 503," not in error.message
    return True


def _kind(message: str) -> Trouble:
    if message.startswith("cannot reach"):
        return "refused"
    return "silent" if "takes too long" in message or "nobody answers" in message else "foreign"


def is_local(url: str) -> bool:
    """Return whether a URL of llmux leads to this machine."""
    return url.startswith(UNIX) or is_here(urlsplit(url).hostname or "", "0.0.0.0")  # noqa: S104


# ---- Config, keys, folders ----


def look_at_config(path: Path) -> ConfigFacts:
    """Load a config as `llmux check` does."""
    try:
        config = load_config(path)
        if loops := loop_mistakes(config, config.host, config.port):
            raise mistaken(loops, config.source)
        load_policy(config.policy, config.directory, config.source)
    except ConfigError as error:
        return ConfigFacts(path.absolute(), mistakes=tuple(error.lines))
    return ConfigFacts(
        path.absolute(),
        config,
        unusable=(*script_remarks(config), *file_remarks(config)),
        missing=(*program_remarks(config), *command_remarks(config)),
        addresses=(
            *recipe_remarks(config),
            *memory_remarks(config),
            *address_remarks(config, config.host),
            *tls_remarks(config),
        ),
        has_variables=OPENING in read_text(path),
    )


def secret_files(path: Path) -> tuple[SecretFile, ...]:
    """Return the files with keys, the config itself included if there are any in it."""
    return tuple(_secret_files(path.absolute()))


def _secret_files(path: Path) -> Iterator[SecretFile]:
    data = decode_plainly(path)
    for key in KEY_LISTS:
        items = data.get(key) if isinstance(data, dict) else None
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and isinstance(item.get("file"), str):
                named = path.parent / Path(item["file"]).expanduser()
                if named.exists():
                    yield SecretFile(named, key, named.stat().st_mode & 0o777)
            elif isinstance(item, str):
                yield SecretFile(path, key, path.stat().st_mode & 0o777)


def look_at_folder(path: Path) -> Folder:
    """Look at a state folder, or at the folder that llmux would make it in."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    owner = there.stat().st_uid
    free = os.statvfs(there)
    return Folder(
        path,
        exists=there == path,
        is_writable=there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        owner=_name_of(owner),
        is_own=owner == os.geteuid(),
        unsafe=unsafe_folder(path) if there == path else None,
        free_bytes=shutil.disk_usage(there).free,
        free_files=free.f_favail if free.f_files else None,
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def is_of_this_machine(url: str) -> bool:
    """Return whether a backend's URL leads to a port of this machine."""
    return not url.startswith(UNIX) and is_here(urlsplit(url).hostname or "", LOCALHOST)


def port_of(url: str) -> int | None:
    """Return the port that a URL names, if it names one."""
    return None if url.startswith(UNIX) else urlsplit(url).port
