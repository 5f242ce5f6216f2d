"""CPU time and event counts of processes, their threads and their children."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.counters import Meter, counters, tree, why_not_counted

TASK_CLOCK = (1, 1)
"""PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK: nanoseconds, on machines without counters too."""

BURN = "import time\nend = time.thread_time() + 0.2\nwhile time.thread_time() < end: pass"
INDENTED = BURN.replace("\n", "\n    ")
IN_A_THREAD = f"""
import threading
def burn():
    {INDENTED}
thread = threading.Thread(target=burn)
thread.start()
thread.join()
"""
BURN_AND_STAY = f"{BURN}\nprint('done', flush=True)\ninput()"
IN_A_CHILD = f"""
import subprocess, sys
command = [sys.executable, "-c", {BURN_AND_STAY!r}]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
"""


@contextmanager
def program(source: str) -> Iterator[subprocess.Popen[str]]:
    """A program that runs once it is sent a line, prints one, and waits for another."""
    whole = f"print('up', flush=True)\ninput()\n{source}\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", whole], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def run(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.mark.parametrize("source", [BURN, IN_A_THREAD, IN_A_CHILD])
def test_cpu_time_is_that_of_all_threads_and_children(source: str) -> None:
    with program(source) as process, Meter(process.pid) as meter:
        run(process)
    # Not much less than 0.2 s, and more by what starting Python takes.
    assert 190_000 < meter.cost.cpu_us < 2_000_000


@pytest.mark.parametrize("source", [BURN, IN_A_THREAD])
def test_a_counter_counts_threads_that_start_later(source: str) -> None:
    with program(source) as process:
        with Meter(process.pid, TASK_CLOCK) as meter:
            run(process)
    if meter.cost.instructions is None:
        pytest.skip("no perf_event_open")
    assert 190e6 < meter.cost.instructions < 2e9


def test_a_process_that_did_nothing_cost_nothing() -> None:
    with program("") as process, Meter(process.pid) as meter:
        pass
    assert meter.cost.cpu_us == 0.0


def test_without_a_process_nothing_is_measured() -> None:
    with Meter(None) as meter:
        pass
    assert (meter.cost.cpu_us, meter.cost.instructions) == (0.0, None)


def test_instructions_are_counted_or_a_reason_is_given() -> None:
    with program(BURN) as process, Meter(process.pid) as meter:
        run(process)
    assert (meter.cost.instructions is None) == (why_not_counted() is not None)


def test_a_process_that_has_ended_has_no_threads() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert list(tree(process.pid)) == [process.pid]
    assert counters([process.pid], TASK_CLOCK) == []
