"""Log file of a model's hooks and of the servers that they leave behind."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import quote

from llmux.base.plainfiles import open_own
from llmux.config.masking import MASKER

MAX_LOG_BYTES = 16 << 20
"""A larger log is cut to half of this before the next run."""

# Enough for the last exception of a Python program, and short enough for an error message.
TAIL_BYTES = 2048
TAIL_LINES = 5

KEPT_BYTES = 65536
"""Most of a failed check's output that is kept."""

MAX_STEM_BYTES = 200
"""Longest percent-encoded model name used as it is; file names end at 255 bytes (NAME_MAX)."""

NOT_TEXT = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Terminal escape sequences (ECMA-48 section 5.4) as a whole, then single control characters."""


def log_name(model: str) -> str:
    """Return the name of a model's log file: a safe one, and no other model's."""
    stem = quote(model, safe="")
    if len(stem) > MAX_STEM_BYTES:
        # Percent-encoding leaves no "+", so this is not the name of a model with a short name.
        stem = f"{stem[: MAX_STEM_BYTES // 2]}+{hashlib.sha256(model.encode()).hexdigest()}"
    return f"{stem}.log"


class RunLog:
    """The part of a model's log file below the line that marks one run of a hook.

    Plain blocking calls: they are few, small and on a local file, where a thread would cost more.

    Attributes:
        descriptor: File descriptor for the run's standard output and error.
    """

    def __init__(self, descriptor: int, title: str) -> None:
        self.descriptor = descriptor
        _truncate(descriptor)
        self._marker = _marker(title)
        os.write(descriptor, _gap(descriptor) + self._marker)

    @classmethod
    @contextmanager
    def open(cls, path: Path, title: str) -> Iterator[RunLog]:
        """Append to the file; create it if it is missing.

        Raises:
            OSError: It cannot be written.
        """
        with _opened(path) as descriptor:
            yield cls(descriptor, title)

    def tail(self) -> str:
        """Return the last lines that this run printed, as plain text.

        They include what others (a server left behind) write to the log at the same time.
        """
        with suppress(OSError):
            most = 4 * TAIL_BYTES + MASKER.longest
            window = _last_bytes(self.descriptor, most + len(self._marker))
            _, marker, data = window.rpartition(self._marker)
            printed = data.decode(errors="replace")
            # Before it is cut: half a secret would not be recognized.
            masked = MASKER.mask(printed) if marker else MASKER.mask_end(printed)
            return _plain_tail(masked.encode()[-TAIL_BYTES:].decode(errors="replace"))
        return ""


class CheckLog:
    """The output of one run of a check, which reaches the model's log only if `keep` is called.

    A model is checked every few seconds: the header of each run would bury the server's own lines.

    Attributes:
        descriptor: File descriptor for the run's standard output and error.
    """

    def __init__(self, path: Path, descriptor: int, title: str) -> None:
        self.descriptor = descriptor
        self._path = path
        self._marker = _marker(title)

    @classmethod
    @contextmanager
    def open(cls, path: Path, title: str) -> Iterator[CheckLog]:
        """Open a file without a name beside the model's log; see `RunLog.open`.

        The log is cut if it is too large: its server may print for weeks without another hook. It
        is not kept open: a check must not need more descriptors than the wake before it.
        """
        with _opened(path) as log:
            _truncate(log)
        with TemporaryFile(dir=path.parent, buffering=0) as printed:
            yield cls(path, printed.fileno(), title)

    def tail(self) -> str:
        """Return the last lines that the run printed, as plain text."""
        with suppress(OSError):
            size = os.fstat(self.descriptor).st_size
            most = 4 * TAIL_BYTES + MASKER.longest
            printed = _last_bytes(self.descriptor, most).decode(errors="replace")
            masked = MASKER.mask(printed) if size <= most else MASKER.mask_end(printed)
            return _plain_tail(masked.encode()[-TAIL_BYTES:].decode(errors="replace"))
        return ""

    def keep(self) -> None:
        """Append the run to the model's log; of a long output only the end."""
        with suppress(OSError):
            printed = _last_bytes(self.descriptor, KEPT_BYTES)
            end = b"" if printed.endswith(b"\n") or not printed else b"\n"
            with _opened(self._path) as log:
                # One call, so that no line of the server's comes between.
                os.write(log, _gap(log) + self._marker + printed + end)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # O_APPEND: other runs and servers that they left behind write to it too.
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, in_own_folder=True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _marker(title: str) -> bytes:
    """Return the line that begins a run. In microseconds: no two runs have the same."""
    return f"--- {datetime.now(UTC).isoformat()} {title} ---\n".encode()


def _gap(descriptor: int) -> bytes:
    """Return a blank line between runs, for the last one may have ended in the middle of a line."""
    return b"\n" if os.fstat(descriptor).st_size else b""


def _truncate(descriptor: int) -> None:
    """Keep only the end of a log that has grown too large.

    In place: a server that a hook left behind would go on writing to a renamed file.
    """
    if os.fstat(descriptor).st_size <= MAX_LOG_BYTES:
        return
    kept = _last_bytes(descriptor, MAX_LOG_BYTES // 2)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, kept.partition(b"\n")[2] or kept)


def _last_bytes(descriptor: int, count: int) -> bytes:
    return os.pread(descriptor, count, max(0, os.fstat(descriptor).st_size - count))


def _plain_tail(text: str) -> str:
    lines = (NOT_TEXT.sub("", line).rstrip() for line in text.splitlines())
    return "\n".join([line for line in lines if line][-TAIL_LINES:])
