"""The journal for `llmux replay`: one line of JSON for each request and each switch.

No prompts, no headers, no keys: models, times, and the policy's settings. Times are Unix
times, in seconds.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from llmux.base.plainfiles import open_own
from llmux.observe.clock import WallClock
from llmux.observe.logs import get_logger

FLUSH_S = 1.0
"""Interval between writes, and so the most that is lost when the process is killed."""

MAX_BYTES = 64 << 20
"""A journal over this becomes `journal.1.jsonl`, in place of the one before."""

LATEST_BYTES = 4 << 20
"""How much of its end `latest` reads: some 30,000 entries."""

AT_ONCE = 500
"""Entries written before other tasks may run: about a millisecond."""

log = get_logger(__name__)


class Started(msgspec.Struct, tag_field="event", tag="started", frozen=True):
    """llmux has started: nothing is awake.

    Attributes:
        at: When.
        policy: The name of the policy.
        groups: The group of each model.
        slots: `max_in_flight` of the models that have one.
        max_wait_s, min_active_s: What the policy was given.
        freezes: The models that sleep with their requests (`preserves_in_flight`).
        options: What else the policy was given, if JSON can say it.
        drains: Whether a model that is left finishes its requests (`drain_before_switch`).
    """

    at: float
    policy: str
    groups: Mapping[str, str]
    slots: Mapping[str, int]
    max_wait_s: float
    min_active_s: float
    freezes: Collection[str] = ()
    options: Mapping[str, Any] = {}
    drains: bool = True


class Request(msgspec.Struct, tag_field="event", tag="request", frozen=True, omit_defaults=True):
    """One request has ended.

    Attributes:
        model: What it was for.
        arrived: When it came to the model's door, its body read.
        ended: When its last byte was sent, or it was refused, or left.
        status: What it was counted as.
        admitted: When it was let in; None if it never was.
        company: How many were in flight on the model then, itself included.
    """

    model: str
    arrived: float
    ended: float
    status: int
    admitted: float | None = None
    company: int = 0


class Switch(msgspec.Struct, tag_field="event", tag="switch", frozen=True, omit_defaults=True):
    """One switch has ended.

    Attributes:
        source: The model that was left; None if nothing was awake.
        target: The model that was wanted.
        started: When it began: the source admits nobody from then on.
        ended: When it was over.
        drain_s: Of that, until the last request of the source had ended.
        hooks_s: Of that, run time of hooks.
        result: success, failure, or abandoned.
        reason: Why it was decided.
    """

    source: str | None
    target: str
    started: float
    ended: float
    drain_s: float
    hooks_s: float
    result: str
    reason: str = ""


Entry = Started | Request | Switch


class Journal:
    """Entries, collected here and written by one task; see `Entry` for what they say.

    Entries come with times of Trio's clock; Unix times are what is written.

    Args:
        path: The file; None: nothing is kept.
        clock: Turns Trio times into Unix times.
    """

    def __init__(self, path: Path | None, clock: WallClock | None = None) -> None:
        self._path = path
        self._clock = clock or WallClock()
        self._head = b""  # of each file: what was started
        self._entries: list[Callable[[float], Entry]] = []
        self._has_failed = False

    @property
    def is_kept(self) -> bool:
        """True if entries are written."""
        return self._path is not None

    def add(self, entry: Callable[[float], Entry]) -> None:
        """Keep an entry, made when it is written: it is called with Unix minus Trio time."""
        if self._path is not None:
            self._entries.append(entry)

    def latest(self, since: float, limit: int) -> list[Entry]:
        """The last entries that ended since a Unix time, oldest first; at most so many.

        Only of the file that is being written, and of that the last `LATEST_BYTES`.
        """
        if self._path is None:
            return []
        with suppress(OSError), os.fdopen(open_own(self._path, os.O_RDONLY), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LATEST_BYTES))
            lines = file.read(LATEST_BYTES).splitlines()
            entries = list(_decoded(lines))
            found = [each for each in entries if _at(each) >= since]
            return found[len(found) - min(limit, len(found)) :]
        return []

    async def run(self) -> None:
        """Write pending entries every second, and the rest when cancelled."""
        if self._path is None:
            return
        self._clock.start()
        try:
            while True:
                while self._entries:
                    self._flush(self._path, AT_ONCE)
                    await trio.lowlevel.checkpoint()
                await trio.sleep(FLUSH_S)
        finally:
            self._flush(self._path)

    def _flush(self, path: Path, count: int | None = None) -> None:
        """Write the first entries. A disk that is full costs entries, and nothing else."""
        entries, self._entries[:count] = self._entries[:count], []
        if not entries:
            return
        try:
            offset_s = self._clock.offset_s
            made = [entry(offset_s) for entry in entries]
            lines = msgspec.json.Encoder().encode_lines(made)
            started = [entry for entry in made if isinstance(entry, Started)]
            if started:
                self._head = msgspec.json.encode(started[-1]) + b"\n"
            self._write(path, lines, self._head)
        except (OSError, TypeError, ValueError) as error:  # the latter of a policy's odd reason
            if not self._has_failed:
                log.error("journal_failed", error=str(error))
            self._has_failed = True
        else:
            self._has_failed = False

    @staticmethod
    def _write(path: Path, lines: bytes, head: bytes) -> None:
        """Append whole lines or nothing; raises OSError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        if os.fstat(descriptor).st_size + len(lines) > MAX_BYTES:
            os.close(descriptor)
            path.replace(path.with_suffix(".1" + path.suffix))  # over a link, not through it
            descriptor = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            if not size and not lines.startswith(head):
                lines = head + lines
            elif size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # a killed process left half a line
            if os.write(descriptor, lines) < len(lines):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def _decoded(
    lines: Iterable[bytes], skip: Callable[[int, ValueError], object] = lambda _number, _error: None
) -> Iterator[Entry]:
    """The entries of these lines; `skip` is told the number of each that is none, and why."""
    decoder = msgspec.json.Decoder(Entry)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except ValueError as error:  # UnicodeDecodeError, too
            skip(number, error)


def _at(entry: Entry) -> float:
    return entry.at if isinstance(entry, Started) else entry.ended


NO_JOURNAL = Journal(None)
"""A journal that drops its entries."""


def read_journal(
    path: Path, skip: Callable[[int, ValueError], object] = lambda _number, _error: None
) -> Iterator[Entry]:
    """The entries of a journal, in the order they were written.

    Args:
        path: The file.
        skip: Called with the number of each line that is no entry, and why: a killed process
            leaves lines that are cut off, and a power cut leaves zeros.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from _decoded(file, skip)
