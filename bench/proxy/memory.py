"""Resident memory of the contestants while streams are open in which nothing happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from bench.contestants import Contestant, Stage, Starter
from bench.machine import say
from bench.native import Native, Workload
from bench.processes import most_streams, resident_bytes
from bench.proxy.figures import Figure, Figures
from bench.proxy.workloads import ratio

IDLE_STREAMS = (0, 1000, 10_000)


def measure_memory(native: Native, stage: Stage, starters: Mapping[str, Starter]) -> Figures:
    """Resident memory of fresh processes, in MiB, at each number of idle streams."""
    most = most_streams(stage.descriptors)
    levels = sorted({min(count, most) for count in IDLE_STREAMS})
    if most < max(IDLE_STREAMS):
        say(f"{stage.descriptors} descriptors allow {most} streams, two each: not 10,000")
    resident: dict[str, dict[int, float | None]] = {}
    for name, start in starters.items():
        if name == "echo":
            continue
        say(f"memory: {name}")
        with start(stage) as contestant:
            if contestant is not None:
                resident[name] = dict(hold_streams(native, contestant, levels))
    return {
        f"memory_{level}": {
            name: _figure(by_level[level], resident.get("nginx", {}).get(level))
            for name, by_level in resident.items()
        }
        for level in levels
    }


def hold_streams(
    native: Native, contestant: Contestant, levels: list[int]
) -> Iterator[tuple[int, float | None]]:
    """Open more and more streams; gives the memory in MiB at each level, None where one failed."""
    assert contestant.pid is not None
    native.load(contestant.port, Workload(connections=1, seconds=0.1))
    with ExitStack() as stack:
        held = 0
        for level in levels:
            if level > held:
                asked = stack.enter_context(
                    native.holding(contestant.port, level - held, path="/v1/chat/completions?/idle")
                )
                if errors := asked.wait_answered().errors:
                    say(f"{contestant.name}: {errors} of {level - held} streams failed")
                    yield level, None
                    continue
                held = level
            yield level, resident_bytes(contestant.pid) / 2**20


def _figure(value: float | None, nginx: float | None) -> Figure:
    return Figure(value, ratio(value, nginx))
