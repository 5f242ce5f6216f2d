"""Read the log of a model's hooks and server: its last lines, then new ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from llmux.base.plainfiles import open_own
from llmux.config.masking import MASKER
from llmux.hooks.log_file import NOT_TEXT

LOOK_S = 0.5
"""Seconds between looks for new data."""

PIECE_BYTES = 64 << 10
"""Bytes read at a time."""

LEAST_AFTER_CUT = 200
"""Lines repeated, at least, after the log was truncated."""

MOST_TAIL_BYTES = 4 << 20
"""Bytes at the end that are searched for lines, at most."""


class LogReader:
    """Iterates over the last lines of a growing log, and over new ones as they come.

    The file may not exist yet, and may be truncated in place, as llmux does with one too large.

    Args:
        path: The file.
        lines: Number of last lines to begin with.
        follow: Returns whether to wait for new lines.
    """

    def __init__(self, path: Path, *, lines: int, follow: Callable[[], bool]) -> None:
        self._path = path
        self._follow = follow
        self._position: int | None = None
        self._lines = lines
        self._rest = b""

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> bytes:
        while True:
            data = self._read()
            if not data:
                if not self._follow():
                    data, self._rest = self._rest, b""
                    if not data:
                        raise StopAsyncIteration
                    return _plain(data)
                await trio.sleep(LOOK_S)
                continue
            whole, newline, rest = (self._rest + data).rpartition(b"\n")
            self._rest = rest
            if len(rest) > PIECE_BYTES:  # an endless line: pass on what holds no secret in part
                text = rest.decode(errors="replace")
                end = MASKER.whole(text)
                whole, newline, self._rest = (
                    whole + newline + text[:end].encode(),
                    b"",
                    text[end:].encode(),
                )
            if whole or newline:
                await trio.lowlevel.checkpoint()
                return _plain(whole + newline)

    async def aclose(self) -> None:
        """Do nothing: no file is kept open."""

    def _open(self) -> int:
        return open_own(self._path, os.O_RDONLY, in_own_folder=True)

    def _read(self) -> bytes:
        """Return the next data, if there is any. Local and small, so not worth a thread."""
        with suppress(OSError), os.fdopen(self._open(), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if self._position is None:
                self._position = _tail_begins(file.fileno(), size, self._lines)
            elif size < self._position:  # truncated: most of what is left was read before
                lines = max(self._lines, LEAST_AFTER_CUT)
                self._position, self._rest = _tail_begins(file.fileno(), size, lines), b""
            data = os.pread(file.fileno(), PIECE_BYTES, self._position)
            self._position += len(data)
            return data
        self._position = 0
        return b""


def _tail_begins(descriptor: int, size: int, lines: int) -> int:
    """Return the offset at which the last lines begin."""
    start = max(0, size - MOST_TAIL_BYTES)
    data = os.pread(descriptor, size - start, start)
    end = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        end = data.rfind(b"\n", 0, end)
        if end < 0:
            return start
    return min(start + end + 1, size)


def _plain(data: bytes) -> bytes:
    """Remove terminal control codes and the config's secrets."""
    return MASKER.mask(NOT_TEXT.sub("", data.decode(errors="replace"))).encode()
