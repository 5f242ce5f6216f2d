"""Measure the cost of event readers to model traffic: `python -m bench.watchers`.

Two llmux run on one core, in front of one backend. One has readers of its live events: half of them
read, half have stopped reading. The load alternates between the two.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import contestants
from bench.contestants import Stage
from bench.counters import cpu_us
from bench.native import HOST, Load, Native, Workload
from bench.processes import end_on_sigterm, raise_descriptor_limit
from bench.table import number, render

ASK = b"GET /control/events HTTP/1.1\r\nHost: localhost\r\n\r\n"

WORKLOADS = {
    "requests/s, 16 connections": Workload(connections=16, seconds=3),
    "chunks/s, 32 streams as fast as they go": Workload(connections=32, seconds=3, chunks=200),
    "chunks/s, 256 streams x 50/s": Workload(
        connections=256, seconds=5, chunks=100, interval_us=20_000
    ),
}


class Readers:
    """Connections that follow the events of an llmux; every second one never reads."""

    def __init__(self, port: int, count: int) -> None:
        self.read_bytes = 0
        self.closed = 0
        self._sockets = [socket.create_connection((HOST, port)) for _ in range(count)]
        self._selector = selectors.DefaultSelector()
        for index, each in enumerate(self._sockets):
            if index % 2:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            each.sendall(ASK)
            if not index % 2:
                self._selector.register(each, selectors.EVENT_READ)
        self._is_over = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select(timeout=0.2):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1 << 20)
                self.read_bytes += len(data)
                if not data:
                    self._selector.unregister(key.fileobj)
                    self.closed += 1

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def readers(port: int, count: int) -> Iterator[Readers]:
    """Keep readers connected within the context."""
    found = Readers(port, count)
    try:
        yield found
    finally:
        found.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--readers", type=int, default=100)
    options = parser.parse_args()
    end_on_sigterm()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        native = Native(Path(name))
        backend = stack.enter_context(native.backend())
        descriptors = raise_descriptor_limit()
        sides = []
        for title in ("watched", "alone"):
            folder = Path(name) / title
            folder.mkdir()
            stage = Stage(folder, backend, descriptors)
            sides.append(stack.enter_context(contestants.llmux(stage)))
        watched, alone = sides
        assert watched.pid is not None
        assert alone.pid is not None
        seen = stack.enter_context(readers(watched.port, options.readers))
        rows = []
        for title, work in WORKLOADS.items():
            ratios, costs = [], []
            for turn in range(options.rounds):
                samples: dict[int, tuple[Load, float]] = {}
                for side in (watched, alone) if turn % 2 else (alone, watched):
                    assert side.pid is not None
                    began = cpu_us(side.pid)
                    load = native.load(side.port, work)
                    samples[side.pid] = (load, cpu_us(side.pid) - began)
                (one, one_cpu), (two, two_cpu) = samples[watched.pid], samples[alone.pid]
                ratios.append(figure(one, work) / figure(two, work))
                costs.append((one_cpu / figure(one, work)) / (two_cpu / figure(two, work)))
            cells = (f"{statistics.median(each):.3f}" for each in (ratios, costs))
            rows.append([title, *cells, f"{min(ratios):.3f} to {max(ratios):.3f}"])
        print(f"{options.readers} readers, half of them stuck; watched to alone, in turns\n")
        print(render([["", "ratio", "CPU", "range"], *rows]))
        print(f"\nread {number(seen.read_bytes)} bytes; {seen.closed} readers were dropped")


def figure(load: Load, work: Workload) -> float:
    """Return the workload's main figure: chunks or requests per second."""
    return (load.chunks if work.chunks else load.requests) / load.seconds


if __name__ == "__main__":
    main()
