"""The stage of a run: models, the folder with config and hooks, and what those have recorded."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.soak import backend
from bench.soak.hooks import HOOKS
from bench.soak.settings import HOOK_S, LIMITS, POLICY
from bench.soak.sharing import Share, resources
from bench.soak.watchdog import MARK_VARIABLE
from llmux.config.shape import Config


@dataclass(frozen=True)
class Member:
    """A model of the run.

    Attributes:
        is_verified: It has a verify_asleep hook that no reload takes away.
        is_guest: Reloads remove and add it.
        share: What it needs, in a run whose models share memory; else None.
    """

    name: str
    alias: str
    group: str
    port: int
    starter: str
    is_verified: bool
    limit: int | None
    is_guest: bool
    share: Share | None

    @property
    def slug(self) -> str:
        """Name in file names; the hooks compute the same."""
        return slug_of(self.name)

    def hook(self, what: str) -> str:
        """Return a hook that runs functions of `hooks.sh`."""
        return f". ./hooks.sh; {self.share.variables if self.share else ''}{what}"

    @property
    def sleep(self) -> str:
        """The sleep hook."""
        return self.hook(f"go_to_sleep {self.group}")

    @property
    def verify_asleep(self) -> str:
        """The verify_asleep hook."""
        return self.hook(f"is_asleep {self.group}")

    def config(self) -> dict[str, Any]:
        """The model in llmux's config."""
        keys: dict[str, Any] = {
            "port": self.port,
            "group": self.group,
            "aliases": [self.alias],
            "wake": self.hook(f"wake_up {self.group} {self.starter}"),
            "sleep": self.sleep,
            "alive": self.hook("is_alive"),
            "hook_timeouts": HOOK_S,
        }
        if self.is_verified:
            keys["verify_asleep"] = self.verify_asleep
        else:
            keys["prefetch"] = "sleep 0.05"
        if self.limit is not None:
            keys["max_in_flight"] = self.limit
        if self.share is not None:
            keys |= self.share.config()
        return keys


@dataclass(frozen=True)
class Fault:
    """A fault injected into a model, or an act of llmux for a reason that is no fault."""

    at: float
    kind: str
    model: str


class Stage:
    """The folder of a run: config, hooks, and the records of hooks and servers."""

    def __init__(
        self,
        folder: Path,
        *,
        models: int,
        groups: int,
        ports: Sequence[int],
        http2: bool,
        shares: bool = False,
    ) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(8)
        self.port, *backends = ports
        self.http2 = http2
        self.resources = resources(groups) if shares else {}
        names = [
            f"maker/model-{index}" if index % 3 == 1 else f"model-{index}"
            for index in range(models + 1)
        ]
        self.members = [
            Member(
                name=name,
                alias=f"also-{index}",
                group=f"g{index % groups}",
                port=backends[index],
                starter="setsid" if (index // groups) % 2 else "",
                is_verified=(index // groups) % 3 != 1,
                limit=4 if (index // groups) % 3 == 2 else None,
                is_guest=index == models,
                share=Share.of(
                    f"g{index % groups}", slug_of(name), index // groups, is_guest=index == models
                )
                if shares
                else None,
            )
            for index, name in enumerate(names)
        ]
        self.by_name = {member.name: member for member in self.members}
        self.environment = {
            MARK_VARIABLE: self.mark,
            "SOAK_PYTHON": sys.executable,
            "SOAK_SERVER": str(Path(backend.__file__).parent),
        }
        self.tickets = folder / "tickets"
        self.tickets.mkdir()
        (folder / "hooks.sh").write_text(HOOKS)
        self.config = folder / "llmux.json"
        self.write(self.base_config())

    def base_config(self) -> dict[str, Any]:
        """Return the config that a run begins and ends with."""
        config: dict[str, Any] = {
            "port": self.port,
            "state_dir": "state",
            "policy": dict(POLICY),
            "limits": dict(LIMITS),
            "shutdown_grace_secs": 10,
            "on_shutdown": "sleep",
            "models": {member.name: member.config() for member in self.members},
        }
        if self.resources:
            config["resources"] = dict(self.resources)
        if "http2" in Config.__struct_fields__:
            config["http2"] = self.http2
        return config

    def write(self, config: dict[str, Any] | str) -> None:
        """Replace the config atomically."""
        new = self.config.with_suffix(".new")
        new.write_text(config if isinstance(config, str) else json.dumps(config))
        new.replace(self.config)

    def restore_members(self) -> None:
        """Restore models that reloads removed, since they may be awake.

        If llmux is killed while its config lacks an awake model, the next llmux has no hook to put
        that model to sleep, and reports `awake_unknown`.
        """
        with suppress(ValueError):
            config = json.loads(self.config.read_text())
            for member in self.members:
                config["models"].setdefault(member.name, member.config())
            self.write(config)

    def faults(self) -> list[Fault]:
        """Return all faults that hooks, servers and this program have recorded."""
        return [Fault(**entry) for entry in read_lines(self.folder / "faults")]

    def note(self, kind: str, model: str) -> None:
        """Record a fault."""
        with (self.folder / "faults").open("a") as file:
            print(json.dumps({"at": time.time(), "kind": kind, "model": model}), file=file)

    def server_of(self, member: Member) -> int | None:
        """Return the process id of a model's server, if it runs."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / f"ready-{member.slug}").read_text())
            wanted = f"--id={self.mark}-{member.slug}-".encode()
            if wanted in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        return None

    def hook_runs(self) -> bool:
        """Return whether a wake or sleep hook is running."""
        locks = Path("/proc/locks").read_text()
        return any(is_locked(lane, locks) for lane in self.folder.glob("hooks-*"))


def slug_of(name: str) -> str:
    """Return a model's name in file names."""
    return re.sub(r"[^A-Za-z0-9]", "_", name)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that others append whole lines to."""
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def is_locked(path: Path, locks: str) -> bool:
    """Return whether /proc/locks lists a file. Trying the lock could block a hook."""
    return path.exists() and f":{path.stat().st_ino} " in locks
