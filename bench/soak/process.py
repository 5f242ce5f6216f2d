"""The processes of a run: llmux on one of its lanes, its leftovers, and the watchdog."""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from bench.processes import CannotRun
from bench.soak import watchdog as watchdog_program
from bench.soak.stage import Stage

ROOT = Path(__file__).parents[2]
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""

LANES = {
    "serve": ["-m", "llmux", "--log-format", "json"],
    "trio": ["-m", "hypercorn", "-k", "trio", "-b", "{address}", "llmux.app:app"],
    "asyncio": ["-m", "hypercorn", "-b", "{address}", "llmux.app:app"],
}
"""The commands that serve llmux; each takes its config from $LLMUX_CONFIG."""

READY = {"serve": b'"serving"', "trio": b"Running on ", "asyncio": b"Running on "}
"""Log line of each command once it listens and its lifespan has begun."""

STOPS_WITH = {"serve": {0}, "trio": {0}, "asyncio": {0}}


class Llmux:
    """The llmux process, which may be killed and started again.

    Attributes:
        lane: Key of `LANES`.
        pid: The process that serves at present: on Hypercorn its worker.
        lives: Number of starts.
        since: Time at which the present one began to listen (wall clock).
        away: Intervals in which none listened (wall clock).
    """

    def __init__(self, stage: Stage, lane: str) -> None:
        self._stage = stage
        self._process: subprocess.Popen[bytes] | None = None
        self._restarting = trio.Lock()
        self.lane = lane
        self.pid = 0
        self.lives = 0
        self.since = 0.0
        self.away: list[tuple[float, float]] = []
        self.logs: list[Path] = []

    async def start(self) -> None:
        """Start llmux; returns once it listens."""
        self.lives += 1
        log = self._stage.folder / f"llmux-{self.lives}.log"
        self.logs.append(log)
        address = f"127.0.0.1:{self._stage.port}"
        command = [sys.executable, *(word.format(address=address) for word in LANES[self.lane])]
        environment = {"LLMUX_CONFIG": str(self._stage.config), "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a few times in all
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | self._stage.environment | environment,
                start_new_session=True,
            )
        with trio.move_on_after(60):
            while READY[self.lane] not in log.read_bytes():
                if self._process.poll() is not None:
                    break
                await trio.sleep(0.02)
            else:
                self.pid = self._serving_pid()
                self.since = time.time()
                return
        raise CannotRun(f"llmux does not start: {log.read_text(errors='replace')[-1000:]}")

    def _serving_pid(self) -> int:
        """Return the process itself, or Hypercorn's worker, which is one of its children."""
        assert self._process is not None
        parent = self._process.pid
        if self.lane == "serve":
            return parent
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            # The other child is multiprocessing's resource tracker.
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise CannotRun("Hypercorn has no worker")

    @property
    def parent_pid(self) -> int:
        """Return the process that was started, which only `Llmux` waits for."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_starting(self) -> bool:
        """True from a kill until llmux listens again."""
        return self.since == math.inf

    @property
    def has_ended(self) -> bool:
        """True if it has ended, or no longer listens and is about to end."""
        if self._process is None or self._process.poll() is not None:
            return self._process is not None
        with suppress(OSError):
            listens = f"0100007F:{self._stage.port:04X} 00000000:0000 0A"
            return listens not in Path(f"/proc/{self.pid}/net/tcp").read_text()
        return True

    async def kill_and_restart(self, down_s: float, ended_s: float = 0.0) -> None:
        """Kill all processes of llmux (SIGKILL), and start it again after a while.

        Args:
            down_s: Pause before the new start.
            ended_s: Longest time for which it may have been gone already.
        """
        async with self._restarting:
            assert self._process is not None
            killed_at = time.time() - ended_s
            self.away.append((killed_at, math.inf))
            self.since = math.inf
            for pid in {self._process.pid, self.pid}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            await trio.sleep(down_s)
            self._stage.restore_members()
            await self.start()
            self.away[-1] = (killed_at, self.since)

    def was_away(self, begun_at: float, ended_at: float) -> bool:
        """Return whether it was killed or absent at any time in this interval."""
        return any(begun_at <= until and since <= ended_at for since, until in self.away)

    def hang_up(self) -> None:
        """Send SIGHUP to reload the config; under Hypercorn, llmux does not handle it."""
        assert self.lane == "serve"
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGHUP)

    async def stop(self) -> int | None:
        """Send SIGTERM; returns the exit code, or None if llmux does not end."""
        assert self._process is not None
        self._process.terminate()
        with trio.move_on_after(45):
            while self._process.poll() is None:  # noqa: ASYNC110 - Popen, for kill() must not wait
                await trio.sleep(0.05)
        return self._process.poll()

    @property
    def descriptors(self) -> int:
        """Return the number of open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - names only

    def open_files(self) -> list[str]:
        """List its descriptors; connections by their ends in hexadecimal, and their state."""
        ends = {
            f"socket:[{fields[9]}]": " ".join(fields[1:4])
            for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
            if (fields := line.split())
        }
        links = [str(entry.readlink()) for entry in Path(f"/proc/{self.pid}/fd").iterdir()]
        return [ends.get(link, link) for link in links]

    def connections_to(self, ports: set[int]) -> int:
        """Count those connected to these ports: pools keep some open, which is no leak."""
        remote: dict[str, int] = {}
        for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            remote[fields[9]] = int(fields[2].partition(":")[2], 16)
        count = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
                count += found is not None and remote.get(found[1]) in ports
        return count

    def peak_bytes(self) -> int:
        """Return the peak of resident memory (VmHWM), in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0


@contextmanager
def watchdog(mark: str) -> Iterator[None]:
    """Ensure that nothing outlives the run, not even after SIGKILL."""
    command = [sys.executable, "-I", "-S", watchdog_program.__file__, mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            reap(set())


@asynccontextmanager
async def reaping(llmux: Llmux) -> AsyncIterator[None]:
    """Reap orphans of llmux in the place of process 1 (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    async def reap_for_ever() -> None:
        while True:
            reap({llmux.parent_pid})
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_for_ever)
        yield
        nursery.cancel_scope.cancel()


def reap(spared: set[int]) -> None:
    """Reap ended children; stop at one that a Popen waits for."""
    with suppress(ChildProcessError):
        while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if info.si_pid in spared:
                return
            os.waitpid(info.si_pid, 0)


def command_of(pid: int) -> str:
    """Return a process's command line, for people."""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return command.replace(b"\0", b" ").decode(errors="replace")[:300]
    return "gone"
