"""Which models may be awake, on disk: for the llmux that comes after one that was killed.

Written before a hook starts and after it has ended, in the one place that changes phases, by
renaming a new file over the old: it survives a killed process, not a power cut (no fsync, for after
that nothing is awake).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from llmux.base.plainfiles import open_own, read_own
from llmux.observe.logs import get_logger

MOST_BYTES = 16 << 20
"""More than that is no record: a hundred thousand models."""

log = get_logger(__name__)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that is not known to be asleep.

    Attributes:
        state: awake: its wake hook has succeeded, and no sleep hook was started since. unsure: one
            of them was started, and its end was not seen, or it failed.
        mark: What the processes of that hook have in their environment (`llmux.hooks.orphans`).
    """

    state: Literal["awake", "unsure"]
    mark: str = ""


class _File(msgspec.Struct, frozen=True):
    models: dict[str, Entry]


class AwakeRecord:
    """The record of one config's models.

    If it cannot be written, that is logged and llmux goes on: an outage would be worse.
    """

    def __init__(self, path: Path | None) -> None:
        """Read nothing yet.

        Args:
            path: The file; None to keep no record.
        """
        self._path = path
        self._entries: dict[str, Entry] = {}
        self._left: dict[str, Entry] = {}  # of models that the config does not have
        self._has_failed = False

    def load(self, models: Iterable[str]) -> None:
        """Read what the last llmux has left.

        A file that cannot be read says only that there was one: any of the models may be awake.

        Args:
            models: All that there are. Others in the file are kept for when the config has them
                again: their hooks are unknown until then.
        """
        known = set(models)
        found = self._read(known)
        self._entries = {name: entry for name, entry in found.items() if name in known}
        self._left = {name: entry for name, entry in found.items() if name not in known}
        for name in self._left:
            log.warning("awake_unknown", model=name, hint="not in the config; left as it is")

    def _read(self, models: Iterable[str]) -> Mapping[str, Entry]:
        if self._path is None:
            return {}
        try:
            return msgspec.json.decode(read_own(self._path, MOST_BYTES), type=_File).models
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("awake_unreadable", path=str(self._path), error=str(error))
            return {name: Entry("unsure") for name in models}

    def entry(self, model: str) -> Entry | None:
        """What is known of a model; None if it is asleep."""
        return self._entries.get(model)

    def left_marks(self) -> list[str]:
        """Marks of hooks that ran for models that the config does not have."""
        return [entry.mark for entry in self._left.values() if entry.mark]

    def take_left(self, model: str) -> bool:
        """The config has a model now: whether it may be awake since before llmux started."""
        return self._left.pop(model, None) is not None

    def mark(self, model: str) -> str:
        """What the processes of its hook are to have in their environment; empty for nothing."""
        entry = self._entries.get(model)
        return entry.mark if entry else ""

    def note(self, model: str, state: Literal["awake", "unsure"] | None) -> None:
        """Write down what a model is now; None: asleep."""
        before = self._entries.get(model)
        if state is None:
            self._entries.pop(model, None)
        elif state == "awake":
            self._entries[model] = Entry("awake")
        else:
            self._entries[model] = Entry("unsure", secrets.token_hex(8))
        if self._entries.get(model) != before:
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What is there is one that was not finished, or a link of somebody's.
            new.unlink(missing_ok=True)
            with os.fdopen(open_own(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(msgspec.json.encode(_File(self._left | self._entries)) + b"\n")
            new.replace(self._path)
        except OSError as error:
            if not self._has_failed:  # once, until it works again
                log.error(
                    "awake_not_written",
                    path=str(self._path),
                    error=str(error),
                    hint="free space in state_dir or make it writable; llmux goes on",
                )
            self._has_failed = True
            with suppress(OSError):  # better nothing known than something wrong
                old = open_own(self._path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
                os.write(old, b"?")
                os.close(old)
        else:
            self._has_failed = False


Marks = Callable[[str], str]
"""The mark of a model's hook."""
