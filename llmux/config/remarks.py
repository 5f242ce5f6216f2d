"""Remarks on a config: likely mistakes, which fail `llmux check --strict` only.

A file or command may appear later, or exist only on the machine that serves.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
from collections.abc import Iterator
from typing import get_args
from urllib.parse import urlsplit

from llmux.config.places import placed
from llmux.config.recipes import HookName
from llmux.config.section import Keys
from llmux.config.shape import Config

PLAIN_COMMAND = re.compile(
    r"(?:\s*#[^\n]*\n)*\s*"
    r"(?P<variables>(?:\w+=[\w./:-]*\s+)*)"
    r"(?:(?:exec|command)\s+)?"
    r"(?P<command>[A-Za-z_][\w.+-]*)(?=\s|[;&|<>]|$)(?!\s*\()"
)
"""A script that begins with the name of a command: comments, variables, command."""

BUILT_IN = frozenset({
    "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "echo", "elif",
    "else", "esac", "eval", "exec", "exit", "export", "false", "fc", "fg", "fi", "for",
    "function", "getopts", "hash", "if", "jobs", "kill", "local", "printf", "pwd", "read",
    "readonly", "return", "select", "set", "shift", "test", "then", "time", "times", "trap",
    "true", "type", "ulimit", "umask", "unalias", "unset", "until", "wait", "while",
})  # fmt: skip
"""Words that `sh` itself knows, and that need no file."""


def command_remarks(config: Config) -> list[str]:
    """Return one line for each hook that begins with a command which is not found."""
    return [
        placed(("models", name, hook), remark, config.source)
        for name, model in config.models.items()
        for hook in get_args(HookName)
        if (script := model.script(hook)) is not None
        for remark in _unknown_command(script, config)
    ]


def _unknown_command(script: str, config: Config) -> Iterator[str]:
    found = PLAIN_COMMAND.match(script)
    if found is None or re.search(r"\bPATH=", found["variables"]):
        return
    name = found["command"]
    if name in BUILT_IN or shutil.which(name) is not None:
        return
    path = config.directory / name
    hint = f"; for the file in {config.directory} write ./{name}" if path.is_file() else ""
    yield f"there is no command {name!r} in $PATH{hint}"


def address_remarks(config: Config, host: str) -> list[str]:
    """Return one line for each address that looks wrong.

    Args:
        config: The config.
        host: Address that llmux listens on, which the command line may have changed.
    """
    return [placed(keys, text, config.source) for keys, text in _odd_addresses(config, host)]


def tls_remarks(config: Config) -> list[str]:
    """Return one line for each thing that looks wrong about the certificate and its key."""
    if config.tls is None:
        return []
    return [
        placed(("tls", which), text, config.source) for which, text in config.tls.pair.remarks()
    ]


def _odd_addresses(config: Config, host: str) -> Iterator[tuple[Keys, str]]:
    if not config.api_keys and not is_loopback(host):
        why = f"{host} is open to other machines, and anyone there may use the models"
        yield ("host",), f"{why}: set api_keys, or listen on 127.0.0.1"
    for model in config.models.values():
        if model.url is not None:
            yield from _doubled(("models", model.name, "url"), model.base_url)
    if config.fallback is not None:
        yield from _doubled(("fallback",), config.fallback)


def _doubled(keys: Keys, url: str) -> Iterator[tuple[Keys, str]]:
    """Warn of an address as clients need it: paths come from clients, and begin with /v1 there."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if parts.scheme in {"http", "https"} and path.endswith("/v1"):
        why = "ends in /v1, with which the paths of clients begin"
        becomes = f"/v1/models becomes {path}/v1/models"
        yield keys, f"{why}: {becomes}. Write {url.rstrip('/').removesuffix('/v1')}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a listener on `host`."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
