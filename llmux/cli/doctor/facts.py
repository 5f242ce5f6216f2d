"""The facts that probes gather; None means unknown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmux.config import Config
from llmux.observe.schemas import Gpu, RequestList, Status

Trouble = Literal["refused", "silent", "foreign", "key"]


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: Its id.
        name: Its command's name.
        model: The model whose hook started it; None: none did.
        state_dir: State folder of the llmux whose hook started it.
        is_readable: False if its environment cannot be read, since it is another user's.
        state: Its state in the kernel's words: sleeping, stopped, disk sleep, ...
    """

    pid: int
    name: str
    model: str | None = None
    state_dir: str | None = None
    is_readable: bool = True
    state: str = ""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True)
class Listener:
    """A TCP socket that listens.

    Attributes:
        host: Its address.
        port: Its port.
        process: Its owner; None for another user's, and for containers.
    """

    host: str
    port: int
    process: Process | None = None


@dataclass(frozen=True)
class ConfigFacts:
    """The config file.

    Attributes:
        path: Where it is; None if none was found.
        config: The config; None if there are mistakes.
        mistakes: Its mistakes, a line for each.
        unusable: Remarks about hooks that cannot be run, and models whose file is not there.
        missing: Remarks about programs that are not on the PATH.
        addresses: Remarks about addresses, and about values of recipes.
        has_variables: True if it refers to environment variables.
    """

    path: Path | None = None
    config: Config | None = None
    mistakes: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    has_variables: bool = False


@dataclass(frozen=True)
class SecretFile:
    """A file with keys.

    Attributes:
        path: Where it is.
        key: The list of the config that names it.
        mode: Its permission bits.
    """

    path: Path
    key: str
    mode: int


@dataclass(frozen=True)
class Folder:
    """The state folder, or the folder that it would be made in.

    Attributes:
        path: The state folder.
        exists: True if it is there.
        is_writable: True if this user may write to it.
        owner: Name of its owner.
        is_own: True if this user is the owner.
        unsafe: Why other users can replace files in it; None if they cannot.
        free_bytes: Free space for this user, in bytes.
        free_files: Number of files that can still be made; None if the file system has no limit.
    """

    path: Path
    exists: bool
    is_writable: bool
    owner: str
    is_own: bool
    unsafe: str | None
    free_bytes: int
    free_files: int | None


@dataclass(frozen=True)
class GpuUse:
    """A GPU, and the processes that compute on it with the bytes that each holds."""

    gpu: Gpu
    users: tuple[tuple[Process, int], ...] = ()


@dataclass(frozen=True)
class Descriptors:
    """File descriptors of llmux, or of this process if llmux does not run.

    Attributes:
        limit: Hard limit.
        used: Number of those in use; None if llmux does not run, or is another user's.
    """

    limit: int
    used: int | None = None


@dataclass(frozen=True)
class Running:
    """A running llmux, as it answers.

    Attributes:
        status: Its status.
        requests: Its oldest requests.
        settings: The config in use, without secrets.
        can_switch: False if its switcher has stopped.
    """

    status: Status
    requests: RequestList | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    can_switch: bool = True


@dataclass(frozen=True)
class Facts:
    """All facts.

    Attributes:
        url: Where llmux should be; None if the config does not tell.
        options: What the user has given, for the commands of remedies: `-c other.yaml`.
        is_here: True if that is this machine.
        is_elsewhere: True if llmux was found at that URL, and not at the config's.
        version: The version of this command.
        running: The running llmux; None if it does not answer.
        trouble: Why it does not: nobody listens, no answer in time, not llmux, or a key is needed.
        trouble_text: The same in words.
        holder: The process that holds the lock of the state folder; None: none, or unknown.
        config: The config.
        secrets: Its files with keys.
        folder: The state folder.
        listeners: The machine's listeners; None if they cannot be listed.
        gpus: The GPUs; empty without nvidia-smi.
        gpu_error: Why nvidia-smi gave no answer.
        descriptors: File descriptors.
        unchecked: What could not be looked at, and why.
    """

    url: str | None = None
    options: str = ""
    is_here: bool = True
    is_elsewhere: bool = False
    version: str = ""
    running: Running | None = None
    trouble: Trouble | None = None
    trouble_text: str = ""
    holder: Process | None = None
    config: ConfigFacts = ConfigFacts()
    secrets: tuple[SecretFile, ...] = ()
    folder: Folder | None = None
    listeners: tuple[Listener, ...] | None = None
    gpus: tuple[GpuUse, ...] = ()
    gpu_error: str | None = None
    descriptors: Descriptors | None = None
    unchecked: tuple[tuple[str, str], ...] = ()

    @property
    def is_served(self) -> bool:
        """True if a llmux runs, whether it answers or not."""
        return self.running is not None or self.holder is not None

    def llmux(self, *words: str) -> str:
        """Return a command line of llmux for the same llmux, to be typed."""
        line = shlex.join(["llmux", *words])
        return f"{line} {self.options}".rstrip()
