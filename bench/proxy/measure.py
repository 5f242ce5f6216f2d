"""The rounds: in each, all contestants take turns at every workload."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from bench.contestants import Contestant, Stage, Starter
from bench.counters import Meter
from bench.machine import say
from bench.native import Native, Workload
from bench.processes import CannotRun
from bench.proxy.samples import Round, Sample

DIRECT = "direct"
"""The backend without a proxy, as a contestant."""

WARM_UP_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Turns of warming up, until one has a response: waking a model takes seconds on a busy machine."""


def measure(
    native: Native,
    stage: Stage,
    starters: Mapping[str, Starter],
    workloads: Mapping[str, Workload],
    rounds: int,
) -> list[Round]:
    """Start all contestants that are installed, and play the rounds."""
    if not workloads:
        return []
    with ExitStack() as stack:
        standing = [Contestant(DIRECT, stage.backend, None)]
        for name, start in starters.items():
            contestant = stack.enter_context(start(stage))
            if contestant is None:
                say(f"{name} is not installed: left out")
            else:
                standing.append(contestant)
        for contestant in standing:
            warm_up(native, contestant)
        return [play_round(native, standing, workloads, at + 1, rounds) for at in range(rounds)]


def warm_up(native: Native, contestant: Contestant) -> None:
    """Load a contestant until it has woken its model and filled its pools; raises CannotRun."""
    for seconds in WARM_UP_S:
        if native.load(contestant.port, Workload(connections=8, seconds=seconds)).requests:
            return
    raise CannotRun(f"{contestant.name} answers no request")


def play_round(
    native: Native,
    standing: list[Contestant],
    workloads: Mapping[str, Workload],
    at: int,
    rounds: int,
) -> Round:
    result: dict[str, dict[str, Sample]] = {}
    for key, work in workloads.items():
        say(f"round {at} of {rounds}: {key}")
        # The echo does not stream.
        able = [one for one in standing if one.name != "echo" or not work.chunks]
        # Every second round runs backwards: a machine that slows down gradually favours nobody.
        if at % 2 == 0:
            able.reverse()
        result[key] = {one.name: take_turn(native, one, work) for one in able}
    return result


def take_turn(native: Native, contestant: Contestant, work: Workload) -> Sample:
    """Put one contestant under one load; print how many answers were wrong."""
    with Meter(contestant.pid) as meter:
        load = native.load(contestant.port, work)
    if load.errors:
        say(f"{contestant.name}: {load.errors} wrong answers")
    return Sample(load, meter.cost.cpu_us, meter.cost.instructions)
