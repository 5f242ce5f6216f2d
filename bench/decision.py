"""Measure how long a decision of `adaptive` takes: `python -m bench.decision`.

One model is awake and busy, and equally many requests wait for each of the others. In the three
situations the model stays awake, closes because requests have waited long enough, or stays although
a request is overdue. A seed decides which pairs of models have known switch costs. Figures are CPU
time, the best of several repeats, and include building the view of the group.

A second table is for shared memory: several models are awake, half of them busy, and requests wait
for as many others.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
import timeit
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from bench.machine import cpu_model
from bench.table import number, render
from llmux.config import PolicyConfig
from llmux.policy import AdaptivePolicy, Decision, GroupView
from llmux.policy.base import RoomView, by_name
from llmux.policy.estimates import ARRIVALS, Measures
from llmux.policy.room import Memory, Needs, total
from llmux.simulate.backends import Job
from llmux.switching.core import ModelState
from llmux.switching.lines import Line, Occupancy

MODELS = (8, 27, 60, 100)
WAITING = 1000
SHARES = (0.5, 1.0)
"""Share of the pairs of models whose switch cost is known."""

SITUATIONS = ("stays", "closes", "overdue")
AWAKE = (4, 9, 16)
WITH_ROOM = ("stays", "closes")
REPEATS, TIMES = 40, 20
NOW = 1000.0
SWITCH_S = 10.0


def decision_in(situation: str, models: int, share: float, waiting: int) -> Callable[[], Decision]:
    """Make a repeatable decision; the first one, to which all queues are new, is already taken."""
    config = PolicyConfig()
    names = [f"m{index}" for index in range(models)]
    waited_s = 290.0 if situation == "closes" else 1.0
    arrivals: dict[str, list[float]] = {name: [] for name in names}
    for place in range(waiting):
        arrivals[names[1 + place % (models - 1)]].append(NOW - waited_s + place / waiting)
    if situation == "overdue":
        arrivals["m1"] = [NOW - config.max_wait_secs - 1]
    states = [_state(name, arrivals[name], 8 if name == "m0" else 0) for name in names]
    since = NOW - 1 if situation == "overdue" else 0.0
    estimates = _measured(names, share).estimates
    policy = AdaptivePolicy(config)

    def decide() -> Decision:
        views = by_name([state.view() for state in states])
        return policy.decide(GroupView(NOW, "m0", since, views, estimates))

    decide()
    return decide


def decision_with_room(situation: str, awake: int, waiting: int) -> Callable[[], Decision]:
    """Make a repeatable decision of a group with this many models awake, and as many asleep."""
    draw = random.Random(1)
    names = [f"m{index}" for index in range(2 * awake)]
    needs = {name: Needs.of((draw.randint(2, 40),)) for name in names}
    amount = total((needs[name].awake for name in names[:awake]), (0,))
    room = RoomView(Memory(("gpu",), amount, needs), (0,))
    waited_s = 290.0 if situation == "closes" else 0.01
    arrivals: dict[str, list[float]] = {name: [] for name in names}
    for place in range(waiting):
        arrivals[names[awake + place % awake]].append(NOW - waited_s + 0.01 * place / waiting)
    states = [_state(name, arrivals[name], 0) for name in names]
    for state in states[:awake:2]:
        state.in_flight.in_use = 8
    measures = _measured(names, 0.0)
    for name in names:
        measures.note_woken(name, SWITCH_S * draw.uniform(0.5, 1.5))
        measures.note_slept(name, draw.uniform(0.5, 1.5))
        for place in range(ARRIVALS):
            measures.note_arrival(name, NOW - (ARRIVALS - place) * draw.uniform(0.002, 0.02))
    policy = AdaptivePolicy(PolicyConfig())

    def decide() -> Decision:
        views = [state.view() for state in states]
        for index in range(awake):
            views[index] = replace(views[index], awake_since=0.0, used_at=NOW - index / 1000)
        return policy.decide(GroupView(NOW, None, None, by_name(views), measures.estimates, room))

    decide()
    return decide


def _state(name: str, arrivals: Sequence[float], in_flight: int) -> ModelState:
    state = ModelState(name, Line[Job](), Occupancy())
    state.in_flight.in_use = in_flight
    for arrived_at in arrivals:
        state.waiters.add(Job(name, arrived_at, 1.0))
    return state


def _measured(names: Sequence[str], share: float) -> Measures:
    """Measures of a group that has run for a while."""
    measures, draw = Measures(), random.Random(1)
    for source in (None, *names):
        for target in names:
            if source != target and draw.random() < share:
                measures.costs.record(source, target, SWITCH_S * draw.uniform(0.5, 1.5))
    for name in names:
        for in_flight in (1, 2, 4, 8, 16):
            measures.note_drained(name, in_flight, 1.0 + in_flight)
            measures.note_served(name, in_flight, 1.0 + in_flight)
    for place in range(ARRIVALS):
        measures.note_arrival("m0", NOW - 0.1 * (1 - place / ARRIVALS))
    return measures


def microseconds(decide: Callable[[], Decision], repeats: int, times: int) -> float:
    """CPU time of one decision in microseconds, the best of several repeats."""
    best_s = min(timeit.repeat(decide, timer=time.process_time, number=times, repeat=repeats))
    return 1e6 * best_s / times


def table(models: Sequence[int], waiting: int, repeats: int, times: int) -> str:
    """A row for each number of models."""
    columns = [(share, situation) for share in SHARES for situation in SITUATIONS]
    heads = ["models", *(f"{share:.0%} known: {situation}" for share, situation in columns)]

    def cell(count: int, share: float, situation: str) -> str:
        decide = decision_in(situation, count, share, waiting)
        return number(microseconds(decide, repeats, times))

    rows = [[str(count), *(cell(count, *column) for column in columns)] for count in models]
    return render([heads, *rows])


def table_with_room(awake: Sequence[int], waiting: int, repeats: int, times: int) -> str:
    """A row for each number of models that are awake."""

    def cell(count: int, situation: str) -> str:
        return number(microseconds(decision_with_room(situation, count, waiting), repeats, times))

    rows = [[str(count), *(cell(count, how) for how in WITH_ROOM)] for count in awake]
    return render([["awake", *WITH_ROOM], *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decision", description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=MODELS, help="2 or more")
    parser.add_argument("--awake", type=int, nargs="+", default=AWAKE, help="in shared memory")
    parser.add_argument("--waiting", type=int, default=WAITING, help="requests in line, in all")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--times", type=int, default=TIMES, help="decisions in each repeat")
    options = parser.parse_args(arguments)
    print(f"µs for a decision, {options.waiting:,} waiting; of the pairs of models so many known\n")
    print(table(options.models, options.waiting, options.repeats, options.times))
    print("\nSeveral models awake within shared memory\n")
    print(table_with_room(options.awake, options.waiting, options.repeats, options.times))
    print(f"\nPython {platform.python_version()}, {cpu_model()}")


if __name__ == "__main__":
    main()
