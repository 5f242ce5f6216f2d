"""The awake record: a file of the models that may be awake, read by the next llmux after a crash.

It is written at each change of phase, before a hook starts and after it has ended, by renaming a
new file over the old one. So it survives a killed process. It need not survive a power cut, after
which no model is awake: hence no fsync.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from llmux.base.plainfiles import open_own, read_own
from llmux.observe.logs import get_logger

MOST_BYTES = 16 << 20
"""Upper bound of a record that is read: enough for a hundred thousand models."""

log = get_logger(__name__)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that is not known to be asleep.

    Attributes:
        state: awake: its wake hook has succeeded, and no sleep hook was started since. unsure: a
            wake or sleep hook was started and has failed, or its end was not seen.
        mark: The mark in the environment of that hook's processes (`llmux.hooks.orphans`).
    """

    state: Literal["awake", "unsure"]
    mark: str = ""


class _File(msgspec.Struct, frozen=True):
    models: dict[str, Entry]


class AwakeRecord:
    """The record of one config's models.

    If it cannot be written, that is logged and llmux goes on: an outage would be worse.

    Args:
        path: The file; None to keep no record.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        self._left: dict[str, Entry] = {}  # models that are not in the config
        self._has_failed = False

    def load(self, models: Iterable[str]) -> None:
        """Read the record that the previous llmux left.

        If the file exists but cannot be read, any model may be awake.

        Args:
            models: The config's models. Others in the file are kept until the config has them
                again: their hooks are unknown until then.
        """
        known = set(models)
        found = self._read(known)
        self._entries = {name: entry for name, entry in found.items() if name in known}
        self._left = {name: entry for name, entry in found.items() if name not in known}
        for name in self._left:
            hint = (
                "it was left awake, and is no longer in the config: its server may still hold the "
                "GPU. End that server, or add the model to the config again"
            )
            log.warning("awake_unknown", model=name, hint=hint)

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
        """Return the entry of a model; None if it is asleep."""
        return self._entries.get(model)

    def left_marks(self) -> list[str]:
        """Return the marks of hooks that ran for models that the config does not have."""
        return [entry.mark for entry in self._left.values() if entry.mark]

    def take_left(self, model: str) -> bool:
        """Return whether a newly added model may have been left awake; True at most once each."""
        return self._left.pop(model, None) is not None

    def mark(self, model: str) -> str:
        """Return the mark for the environment of a model's hook; empty for none."""
        entry = self._entries.get(model)
        return entry.mark if entry else ""

    def note(self, model: str, state: Literal["awake", "unsure"] | None) -> None:
        """Record the state of a model; None means asleep."""
        before = self._entries.get(model)
        if state is None:
            self._entries.pop(model, None)
        elif state == "awake":
            self._entries[model] = Entry("awake")
        else:
            self._entries[model] = Entry("unsure", secrets.token_hex(8))
        if self._entries.get(model) != before:
            self._write()

    @contextmanager
    def unsure(self, model: str) -> Iterator[None]:
        """Record a hook of a model that sleeps, for as long as the context lasts."""
        self.note(model, "unsure")
        try:
            yield
        finally:
            self.note(model, None)

    def _write(self) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A leftover of an interrupted write, or a link that another user has planted.
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
            # An unreadable record is safe, since any model may then be awake; a stale one is not.
            with suppress(OSError):
                old = open_own(self._path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
                os.write(old, b"?")
                os.close(old)
        else:
            self._has_failed = False


Marks = Callable[[str], str]
"""Returns the mark of a model's hook."""
