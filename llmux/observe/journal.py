"""The journal: one line of JSON for each request, switch and change of a model's state.

`llmux replay` reads it, and so does the next start, for the history of the last hour
(`llmux.observe.recall`). It holds models, times and the policy's settings, but no prompts, headers
or keys. Times are Unix times, in seconds.
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
from llmux.observe.schemas import ModelState, SwitchResult

FILE_NAME = "journal.jsonl"
"""Its name in `state_dir`."""

FLUSH_S = 1.0
"""Interval between writes, and so the most that is lost when the process is killed."""

MAX_BYTES = 64 << 20
"""A larger journal is renamed to `journal.1.jsonl`, which replaces the previous one."""

LATEST_BYTES = 4 << 20
"""Bytes at the end of the file that `latest` reads: about 30,000 entries."""

AT_ONCE = 500
"""Entries written before other tasks may run: about a millisecond."""

log = get_logger(__name__)


class SharedMemory(msgspec.Struct, frozen=True, omit_defaults=True):
    """The memory that the models of a group share, and what limits them beside it.

    Needs are by model and resource; what is left out is 0.

    Attributes:
        resources: How much there is of each resource, in bytes. Those whose names begin with "#"
            are llmux's own: they count models.
        awake: What each model holds while it is awake.
        asleep: What it holds while it sleeps.
        waking: What it holds while it wakes, where that is more.
        touches: The resources that each model's hooks touch.
        overlapping_hooks: True if hooks that touch the same resource may overlap.
        keep: The models that are evicted for no other.
        busy: Number of models that may be at work at once on a resource; null: all.
    """

    resources: Mapping[str, int]
    awake: Mapping[str, Mapping[str, int]]
    asleep: Mapping[str, Mapping[str, int]] = {}
    waking: Mapping[str, Mapping[str, int]] = {}
    touches: Mapping[str, Collection[str]] = {}
    overlapping_hooks: bool = False
    keep: Collection[str] = ()
    busy: int | None = None


class Started(msgspec.Struct, tag_field="event", tag="started", frozen=True):
    """llmux has started, or its config has changed.

    Attributes:
        at: When.
        policy: The name of the policy.
        groups: The group of each model.
        slots: `max_in_flight` of the models that have one.
        max_wait_s, min_active_s: Settings of the policy.
        freezes: The models that sleep with their requests (`preserves_in_flight`).
        options: The policy's options, if they can be written as JSON.
        drains: True if a switch waits for requests in flight (`drain_before_switch`).
        boot: Identifies the start of llmux; the same in all entries of one run. Empty in journals
            of earlier versions.
        memory: The memory of the groups whose models share it; in others one is awake at a time.
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
    boot: str = ""
    memory: Mapping[str, SharedMemory] = {}


class Stopped(msgspec.Struct, tag_field="event", tag="stopped", frozen=True):
    """llmux has stopped in order; a killed one leaves no such entry.

    Attributes:
        at: When.
    """

    at: float


class Request(msgspec.Struct, tag_field="event", tag="request", frozen=True, omit_defaults=True):
    """One request has ended.

    Attributes:
        model: The requested model.
        arrived: When it was ready for admission, with its body read.
        ended: When its last byte was sent, or when it was refused or its client left.
        status: The status that it was counted as.
        admitted: When it was admitted; None if it never was.
        company: Requests in flight on the model when it was admitted, itself included.
    """

    model: str
    arrived: float
    ended: float
    status: int
    admitted: float | None = None
    company: int = 0


class Phase(msgspec.Struct, tag_field="event", tag="phase", frozen=True):
    """A model has changed its state.

    Attributes:
        at: When.
        model: The model.
        state: Its new state.
        left: Its previous state.
    """

    at: float
    model: str
    state: ModelState
    left: ModelState


class Switch(msgspec.Struct, tag_field="event", tag="switch", frozen=True, omit_defaults=True):
    """One switch has ended.

    Attributes:
        source: The model that was put to sleep, the first if several were; None if none was.
        target: The model to wake.
        started: When it began; from then on the source admitted no requests.
        ended: When it ended.
        drain_s: Part of the duration spent on the drain of the source.
        hooks_s: Part of the duration spent in hooks.
        result: success, failure, or abandoned.
        reason: The reason for the decision.
        evicts: The models that it was to put to sleep. Journals of earlier versions lack it; there
            the source is the only one.
    """

    source: str | None
    target: str
    started: float
    ended: float
    drain_s: float
    hooks_s: float
    result: SwitchResult
    reason: str = ""
    evicts: Collection[str] = ()


Entry = Started | Stopped | Phase | Request | Switch
Kinds = tuple[type[Entry], ...]

REPLAYED: Kinds = (Started, Request, Switch)
EVERY_KIND: Kinds = (Started, Stopped, Phase, Request, Switch)


class Journal:
    """Collects entries, which one task writes to the file.

    Args:
        path: The file; None to write no journal.
        clock: Turns Trio times into Unix times.
    """

    def __init__(self, path: Path | None, clock: WallClock | None = None) -> None:
        self._path = path
        self._clock = clock or WallClock()
        self._head = b""  # the first line of each file: the last `Started`
        self._entries: list[Callable[[float], Entry]] = []
        self._has_failed = False

    @property
    def is_kept(self) -> bool:
        """True if entries are written."""
        return self._path is not None

    def add(self, entry: Callable[[float], Entry]) -> None:
        """Add an entry; `entry` makes it when it is written, given Unix minus Trio time."""
        if self._path is not None:
            self._entries.append(entry)

    def latest(self, since: float, limit: int, kinds: Kinds = REPLAYED) -> list[Entry]:
        """Return up to `limit` of the last entries that ended since a Unix time, oldest first.

        Only entries of these kinds are returned; by default those that `llmux replay` uses. Only
        the last `LATEST_BYTES` of the current file are read.
        """
        if self._path is None:
            return []
        with suppress(OSError), os.fdopen(open_own(self._path, os.O_RDONLY), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LATEST_BYTES))
            lines = file.read(LATEST_BYTES).splitlines()
            entries = list(_decoded(lines))
            found = [e for e in entries if isinstance(e, kinds) and time_of(e) >= since]
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
        """Write the first `count` entries, or all; if the disk is full, they are lost."""
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
        # TypeError and ValueError: a policy's reason that cannot be encoded as JSON.
        except (OSError, TypeError, ValueError) as error:
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
            path.replace(_older(path))  # replaces a link, not its target
            descriptor = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            if not size and not lines.startswith(head):
                lines = head + lines
            elif size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # a killed process left an incomplete line
            if os.write(descriptor, lines) < len(lines):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def _decoded(
    lines: Iterable[bytes], skip: Callable[[int, ValueError], object] = lambda _number, _error: None
) -> Iterator[Entry]:
    """Yield the entries of these lines; `skip` gets the number and error of each invalid line."""
    decoder = msgspec.json.Decoder(Entry)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except ValueError as error:  # includes UnicodeDecodeError
            skip(number, error)


def time_of(entry: Entry) -> float:
    """Return the Unix time of what an entry is about: of its end, if it lasts."""
    return entry.ended if isinstance(entry, Request | Switch) else entry.at


NO_JOURNAL = Journal(None)
"""A journal that discards its entries."""


def journal_files(state_dir: Path) -> list[Path]:
    """Return the journals in a folder, the older one first; none if llmux has written none."""
    path = state_dir / FILE_NAME
    return [file for file in (_older(path), path) if file.is_file()]


def _older(path: Path) -> Path:
    return path.with_suffix(".1" + path.suffix)


def read_journal(
    path: Path, skip: Callable[[int, ValueError], object] = lambda _number, _error: None
) -> Iterator[Entry]:
    """Yield the entries of a journal, in the order in which they were written.

    Args:
        path: The file.
        skip: Called with the number and the error of each invalid line: a killed process leaves
            truncated lines, and a power cut leaves zeros.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from _decoded(file, skip)
