"""Memory and load of the machine's GPUs, as nvidia-smi reports them.

nvidia-smi is only run while somebody looks at the numbers, at most every `EVERY_S`, and to measure
models (`llmux.hooks.measuring`); never on the data path. When a GPU falls off the bus, nvidia-smi
can hang where not even SIGKILL ends it; so the wait for its end is bounded, and no second one is
started beside it.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import trio

from llmux.observe.logs import get_logger
from llmux.observe.schemas import Gpu

COMMAND = "nvidia-smi"
FIELDS = ("index", "name", "memory.used", "memory.total", "utilization.gpu")

EVERY_S = 10.0
"""Interval between queries while somebody looks."""

LOOKED_AT_S = 60.0
"""Time without a look after which queries pause; a scrape interval is at most this long."""

FRESH_S = 30.0
"""Age from which numbers are not shown any more."""

LONGEST_S = 8.0
"""Time that a query may take; without persistence mode, the driver takes seconds to load."""

END_S = 1.0
"""Time that a killed nvidia-smi may take to end."""

MOST_BYTES = 64 << 10
"""Limit of its output: about 80 bytes for each GPU."""

MIB = 1 << 20

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES")
"""Its environment: the rest of llmux's own, which may hold keys, is none of its business."""

log = get_logger(__name__)


class QueryFailed(Exception):
    """nvidia-smi gave no numbers; the message says why."""


class NvidiaSmi:
    """Runs nvidia-smi, never two at a time.

    Args:
        command: Its path.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._one_at_a_time = trio.Lock()
        self._left: trio.Process | None = None  # one that could not be killed

    async def query(self, what: str) -> str:
        """Return its answer as CSV without a header and units.

        Args:
            what: The option that asks, such as `--query-gpu=index,name`.

        Raises:
            QueryFailed: It has no answer.
        """
        async with self._one_at_a_time:
            return await self._output(what)

    async def _output(self, what: str) -> str:
        if self._left is not None and self._left.poll() is None:
            raise QueryFailed("an earlier nvidia-smi cannot be ended: the driver may have hung")
        self._left = None
        environment = {key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ}
        try:
            process = await trio.lowlevel.open_process(
                [self._command, what, "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**environment, "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            raise QueryFailed(f"{self._command}: {error.strerror}") from None
        try:
            with trio.fail_after(LONGEST_S):
                data = await _read(process)
                code = await process.wait()
        except trio.TooSlowError:
            raise QueryFailed(f"nvidia-smi took more than {LONGEST_S:g} s") from None
        finally:
            _kill_group(process)
            with trio.move_on_after(END_S, shield=True):
                await _close(process)
            if process.returncode is None:
                self._left = process
        text = data.decode(errors="replace").strip()
        if code != 0:
            first = text.partition("\n")[0][:200]
            raise QueryFailed(f"nvidia-smi exited with {code}: {first}")
        return text


class Gpus:
    """The GPUs' latest numbers.

    Args:
        smi: Runs nvidia-smi; None if it is missing or not to be used.
    """

    def __init__(self, smi: NvidiaSmi | None) -> None:
        self._smi = smi
        self._found: list[Gpu] = []
        self._found_at = -math.inf
        self._looked_at = -math.inf
        self._wanted = trio.Event()
        self._error = ""

    @property
    def are_watched(self) -> bool:
        """True if nvidia-smi is there and to be used."""
        return self._smi is not None

    def look(self) -> list[Gpu]:
        """Return the latest numbers; none if there is no query of the last `FRESH_S`."""
        now = trio.current_time()
        self._looked_at = now
        self._wanted.set()
        return self._found if now - self._found_at < FRESH_S else []

    async def run(self) -> None:
        """Query once, and then regularly while somebody looks, until cancelled."""
        if self._smi is None:
            return
        while True:
            await self._query(self._smi)
            await trio.sleep(EVERY_S)
            if trio.current_time() - self._looked_at > LOOKED_AT_S:
                self._wanted = trio.Event()
                await self._wanted.wait()

    async def _query(self, smi: NvidiaSmi) -> None:
        try:
            found = list(parse(await smi.query(f"--query-gpu={','.join(FIELDS)}")))
        except QueryFailed as error:
            if str(error) != self._error:
                log.warning("gpu_query_failed", error=str(error))
            self._error = str(error)
        else:
            self._found, self._found_at, self._error = found, trio.current_time(), ""


def _kill_group(process: trio.Process) -> None:
    """Kill the process, and what it has started, if it still runs."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


async def _close(process: trio.Process) -> None:
    """Close its output and wait for its end."""
    if process.stdout is not None:
        await process.stdout.aclose()
    await process.wait()


def find_nvidia_smi() -> str | None:
    """Return the path of nvidia-smi, if this machine has it."""
    return shutil.which(COMMAND)


def nvidia_smi() -> NvidiaSmi | None:
    """Return what runs nvidia-smi, if this machine has it."""
    command = find_nvidia_smi()
    return None if command is None else NvidiaSmi(command)


async def _read(process: trio.Process) -> bytes:
    """Return the whole output; raises QueryFailed if it is longer than `MOST_BYTES`."""
    assert process.stdout is not None
    data = b""
    async for piece in process.stdout:
        data += piece
        if len(data) > MOST_BYTES:
            raise QueryFailed("nvidia-smi printed too much")
    return data


def parse(text: str) -> Iterator[Gpu]:
    """Yield the GPUs of nvidia-smi's CSV; a number that it does not know, `[N/A]`, is None.

    Raises:
        QueryFailed: A line has other fields.
    """
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if not row:
            continue
        if len(row) != len(FIELDS) or not row[0].isdecimal() or len(row[0]) > 6:
            raise QueryFailed(f"unexpected output of nvidia-smi: {', '.join(row)[:200]}")
        used, total, percent = map(_number, row[2:])
        yield Gpu(
            index=int(row[0]),
            name=row[1],
            memory_used_bytes=None if used is None else int(used * MIB),
            memory_total_bytes=None if total is None else int(total * MIB),
            utilization=None if percent is None else round(percent / 100, 3),
        )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < 1e12 else None  # neither infinite nor NaN
