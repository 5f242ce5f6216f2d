"""Measure what llmux adds to a switch beyond its hooks: `python -m bench.switch`.

Two models with hooks that do nothing (`true`) alternate. After each switch, two bare `sh -c true`
are run as llmux runs hooks, on the same core; the switch's extra time is llmux's own. With one
waiter, the time is that of the request for the other model. With more, a stream holds the first
model until all are queued, and the time is from its end to the last response's first byte.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from itertools import cycle, islice
from pathlib import Path
from subprocess import DEVNULL

import trio

from bench import contestants
from bench.contestants import Contestant, Stage
from bench.machine import machine, say
from bench.native import HOST, Native
from bench.processes import (
    LOAD_CORE,
    PROXY_CORE,
    CannotRun,
    end_on_sigterm,
    most_streams,
    raise_descriptor_limit,
    resident_bytes,
)
from bench.table import number, render

IDLE_CONNECTIONS = 2 * 512
"""Connections that llmux keeps open to the two backends between rounds."""

ONE_WAITER_SWITCHES = 100
CROWDS = {100: 20, 10_000: 3}
"""Switches to measure, by number of waiters."""

WARM_UP_SWITCHES = 4
MODELS = ("other", "m")
QUEUE_S = 120.0
"""Longest wait until a crowd is queued."""

ADDED_TARGET_S = 0.015
CROWD_TARGET_S = 2.0
QUEUED_TARGET_BYTES = 40_000


@dataclass(frozen=True)
class Switch:
    """One switch, with the time of two bare hooks.

    Attributes:
        whole_s: From the request, or the end of the stream that held the other model, to the last
            response.
        hooks_s: Duration of two runs of `sh -c true`.
        spread_s: From the first response to the last.
        queued_bytes: Memory of each waiting request; None if there was only one.
        errors: Number of wrong responses.
    """

    whole_s: float
    hooks_s: float
    spread_s: float = 0.0
    queued_bytes: float | None = None
    errors: int = 0


class Client:
    """Asks llmux over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection(HOST, port)

    def ask(self, model: str) -> None:
        """Send a request and read the response; raises CannotRun unless it is a 200."""
        self._send(model, "/v1/chat/completions").read()

    def hold(self, model: str) -> None:
        """Start a stream that ends when this client closes."""
        self._send(model, "/idle").read1(1)

    def waiting(self, model: str) -> int:
        """Return the number of requests queued for a model."""
        self._connection.request("GET", "/metrics")
        text = self._connection.getresponse().read().decode()
        found = re.search(rf'llmux_request_queue_depth{{model="{model}"}} (\d+)', text)
        return int(found[1]) if found else 0

    def close(self) -> None:
        self._connection.close()

    def _send(self, model: str, path: str) -> HTTPResponse:
        body = f'{{"model": "{model}"}}'
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        if response.status != 200:
            raise CannotRun(f"llmux answered {response.status}: {response.read()[:300]!r}")
        return response


async def run_two_hooks(log: int) -> float:
    """Time two bare hooks, run as llmux runs them, in seconds."""
    start_s = time.monotonic()
    for _ in range(2):
        await trio.run_process(
            ["sh", "-c", "true"], stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return time.monotonic() - start_s


class Bench:
    """Switches of one running llmux."""

    def __init__(self, native: Native, llmux: Contestant, hook_log: int) -> None:
        self._native = native
        self._llmux = llmux
        self._hook_log = hook_log
        self._client = Client(llmux.port)

    def warm_up(self) -> None:
        """Wake each model a few times; `m` is awake at the end."""
        for model in islice(cycle(MODELS), WARM_UP_SWITCHES):
            self._client.ask(model)

    def switch_for_one(self, model: str) -> Switch:
        """Send a request for the sleeping model."""
        with on_core(LOAD_CORE):
            start_s = time.monotonic()
            self._client.ask(model)
            whole_s = time.monotonic() - start_s
        return Switch(whole_s, self._hooks_s())

    def switch_for_crowd(self, model: str, count: int) -> Switch:
        """Let many requests wait for the sleeping model, then end the stream on the other one."""
        assert self._llmux.pid is not None
        holder = Client(self._llmux.port)
        holder.hold(next(other for other in MODELS if other != model))
        before_bytes = resident_bytes(self._llmux.pid)
        path = "/v1/chat/completions"
        with self._native.holding(self._llmux.port, count, path, model) as crowd:
            self._wait_in_line(model, count)
            queued_bytes = (resident_bytes(self._llmux.pid) - before_bytes) / count
            start_s = time.monotonic()
            holder.close()
            held = crowd.wait_answered()
        return Switch(
            held.last_s - start_s,
            self._hooks_s(),
            held.last_s - held.first_s,
            queued_bytes,
            held.errors,
        )

    def _wait_in_line(self, model: str, count: int) -> None:
        deadline = time.monotonic() + QUEUE_S
        while (waiting := self._client.waiting(model)) < count:
            if time.monotonic() > deadline:
                raise CannotRun(f"{waiting} of {count} requests in line after {QUEUE_S:g} s")
            time.sleep(0.01 if count < 1000 else 0.2)

    def _hooks_s(self) -> float:
        with on_core(PROXY_CORE):
            return trio.run(run_two_hooks, self._hook_log)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this process and its children to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(native: Native, stage: Stage) -> dict[int, list[Switch]]:
    """All switches, by number of waiters."""
    with contestants.llmux(stage) as llmux, (stage.directory / "hooks.log").open("ab") as log:
        bench = Bench(native, llmux, log.fileno())
        bench.warm_up()
        say(f"{ONE_WAITER_SWITCHES} switches for one waiter")
        turns = cycle(MODELS)
        result = {1: [bench.switch_for_one(next(turns)) for _ in range(ONE_WAITER_SWITCHES)]}
        for wanted, times in CROWDS.items():
            count = min(wanted, most_streams(stage.descriptors - IDLE_CONNECTIONS))
            say(f"{times} switches for {count} waiters")
            result[count] = [bench.switch_for_crowd(next(turns), count) for _ in range(times)]
        return result


HEADS = ("waiters", "switches", "whole p50 ms", "p99", "bare hooks p50", "added p50", "p99",
         "first to last answer p50", "KB per waiter", "lost")  # fmt: skip


def line(count: int, switches: Sequence[Switch]) -> list[str]:
    """One row of the table."""
    whole_ms = [1000 * one.whole_s for one in switches]
    hooks_ms = [1000 * one.hooks_s for one in switches]
    added_ms = [1000 * (one.whole_s - one.hooks_s) for one in switches]
    spread_ms = [1000 * one.spread_s for one in switches]
    return [
        f"{count:,}",
        str(len(switches)),
        number(percentile(whole_ms, 50)),
        number(percentile(whole_ms, 99)),
        number(percentile(hooks_ms, 50)),
        number(percentile(added_ms, 50)),
        number(percentile(added_ms, 99)),
        number(percentile(spread_ms, 50)),
        number(queued_kb(switches)),
        str(sum(one.errors for one in switches)),
    ]


def queued_kb(switches: Sequence[Switch]) -> float | None:
    """Memory of a waiting request, from the first crowd: later ones reuse freed memory."""
    queued_bytes = switches[0].queued_bytes
    return None if queued_bytes is None else queued_bytes / 1000


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile by nearest rank, without interpolation."""
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def targets(by_count: dict[int, list[Switch]]) -> list[tuple[str, str, str]]:
    """Each target with the measured figure and a verdict."""
    added_s = percentile([one.whole_s - one.hooks_s for one in by_count[1]], 50)
    largest = max(by_count)
    crowd = by_count[largest]
    whole_s = max(one.whole_s for one in crowd)
    errors = sum(one.errors for one in crowd)
    memory_kb = queued_kb(crowd) or 0.0
    judged = [
        ("added to a switch with one waiter, p50 <= 15 ms", 1000 * added_s, 1000 * ADDED_TARGET_S),
        (f"{largest:,} waiters answered within 2 s of the switch's start", whole_s, CROWD_TARGET_S),
        (f"none of {largest:,} lost", errors, 0),
        ("<= 40 KB per waiting request", memory_kb, QUEUED_TARGET_BYTES / 1000),
    ]
    return [
        (text, number(value), "ok" if value <= limit else "SHORT") for text, value, limit in judged
    ]


def main() -> None:
    argparse.ArgumentParser(prog="python -m bench.switch", description=__doc__).parse_args()
    end_on_sigterm()
    try:
        with tempfile.TemporaryDirectory(prefix="llmux-bench-") as name:
            native = Native(Path(name))
            with native.backend() as backend:
                stage = Stage(Path(name), backend, raise_descriptor_limit())
                by_count = measure(native, stage)
    except CannotRun as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(render([HEADS, *(line(count, switches) for count, switches in by_count.items())]))
    print()
    print(render([("target", "measured", ""), *targets(by_count)]))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
