"""Compiles and runs `native.c`: the backend and the load generator."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from bench.processes import BACKEND_CORE, LOAD_CORE, CannotRun, on_core, running, wait_logged

SOURCE = Path(__file__).with_name("native.c")
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Workload:
    """The clients' behaviour, in a closed loop.

    Attributes:
        connections: Each sends its next request as soon as it has the response.
        seconds: Duration of the load.
        chunks: Chunks in each response; 0 for one that is not streamed.
        interval_us: Time between chunks; 0 for no pause.
        burst: Chunks that the backend sends with one system call.
    """

    connections: int
    seconds: float
    chunks: int = 0
    interval_us: int = 0
    burst: int = 1


class Load(msgspec.Struct, frozen=True):
    """Results of `native load`; times in microseconds, None where nothing was counted.

    Attributes:
        chunks: Computed from the bytes of the bodies, since proxies join and split chunks.
        reconnects: Connections that the server closed between two answers.
        first_chunk_p50_us: From the request to the first byte of the body.
        gap_p50_us: Between receive events of one paced stream.
    """

    requests: int
    errors: int
    reconnects: int
    chunks: float
    seconds: float
    latency_p50_us: float | None
    latency_p99_us: float | None
    first_chunk_p50_us: float | None
    first_chunk_p99_us: float | None
    gap_p50_us: float | None
    gap_p99_us: float | None


@dataclass(frozen=True)
class Held:
    """Requests that were sent at once, each on a connection that is still open.

    Attributes:
        start_s: Time at which the first was sent (`time.monotonic`).
        first_s: Time at which the first of them got a byte of its body.
        last_s: Time at which the last of them did.
        errors: Number of wrong responses.
    """

    start_s: float
    first_s: float
    last_s: float
    errors: int


class Native:
    """The program, compiled into `directory`; raises CannotRun without a compiler."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise CannotRun("the bench needs a C compiler (cc)")
        self._directory = directory
        self._program = str(directory / "native")
        subprocess.run([compiler, "-O2", "-o", self._program, SOURCE], check=True)

    @contextmanager
    def backend(self) -> Iterator[int]:
        """Run the backend; yields its port."""
        log = self._directory / "backend.log"
        with running([self._program, "backend"], core=BACKEND_CORE, log=log) as process:
            yield int(wait_logged(process, r'"port": (\d+)', log))

    def load(self, port: int, work: Workload) -> Load:
        """Generate load; wrong responses are printed on stderr and counted."""
        numbers = [work.connections, work.seconds, work.chunks, work.interval_us, work.burst]
        command = [self._program, "load", HOST, str(port), *map(str, numbers)]
        done = subprocess.run(on_core(LOAD_CORE, command), stdout=subprocess.PIPE, check=True)
        return msgspec.json.decode(done.stdout, type=Load)

    @contextmanager
    def holding(self, port: int, count: int, path: str, model: str = "m") -> Iterator[Asked]:
        """Send requests on many connections at once, and keep these open within the context."""
        command = [self._program, "hold", HOST, str(port), str(count), path, model]
        with subprocess.Popen(
            on_core(LOAD_CORE, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield Asked(process.stdout)
            finally:
                process.stdin.close()
                process.terminate()


class Asked:
    """The reports of one `native hold`."""

    def __init__(self, reports: IO[bytes]) -> None:
        self._reports = reports

    def wait_answered(self) -> Held:
        """Wait until every request has the first byte of its response; raises CannotRun."""
        asked, answered = (self._next_report() for _ in range(2))
        return Held(
            start_s=asked["start_s"],
            first_s=answered["first_s"],
            last_s=answered["last_s"],
            errors=int(answered["errors"]),
        )

    def _next_report(self) -> dict[str, float]:
        line = self._reports.readline()
        if not line:
            raise CannotRun("the clients that hold connections open have ended")
        report: dict[str, float] = json.loads(line)
        return report
