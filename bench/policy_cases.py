"""The cases of `bench.policies`: four kinds of traffic, and the original llmux's FIFO."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from llmux.config import PolicyConfig
from llmux.policy import POLICIES, Decision, GroupView, Policy, Stay, SwitchTo
from llmux.simulate import (
    Arrival,
    Closed,
    Outcome,
    Setup,
    Slots,
    bursty,
    one_hot,
    poisson,
    simulate,
    zipf,
)
from llmux.simulate.arrivals import exponential, read_rows, seconds
from llmux.simulate.backends import Job
from llmux.simulate.outcome import mean, percentile
from llmux.simulate.spans import Spans

BASELINE = "original"
"""The baseline of all ratios."""

UNBOUNDED = "unbounded"
"""The adaptive policy without its bound."""

SWITCHES_S = (2.0, 10.0, 60.0)
SLOTS = 8
SERVICE_S = 8.0
"""Slots of a backend and mean time of a request, except in grid B and of traces."""

Figures = Mapping[str, float]
"""Figures of a run, in seconds unless the name says otherwise."""


class OriginalFifo:
    """FIFO as the original llmux (2.4, Rust) does it; only for comparison.

    Each request that finds its model not active tries a switch of its own; the tries stand in line
    for one lock. One whose turn it is gives up if its model is active, or if nobody waits for it.
    """

    def __init__(self) -> None:
        self._tries: deque[str] = deque()

    def note_queued(self, model: str) -> None:
        """A request has joined a line; see `Setup.on_queued`."""
        self._tries.append(model)

    def decide(self, view: GroupView, /) -> Decision:
        """Say what to do now."""
        while self._tries:
            model = self._tries.popleft()
            if model != view.active and view.models[model].queued:
                return SwitchTo(model)
        return Stay()


NAMES = (BASELINE, UNBOUNDED, *POLICIES)
BOUND_S = PolicyConfig().max_wait_secs
"""Where a case says no other."""


def make_policy(name: str, bound_s: float = BOUND_S) -> Policy:
    """A policy of llmux by its name, or one of the two that exist only here."""
    if name == BASELINE:
        return OriginalFifo()
    if name == UNBOUNDED:
        return POLICIES["adaptive"](PolicyConfig(max_wait_secs=1e9))
    return POLICIES[name](PolicyConfig(name=name, max_wait_secs=bound_s))


def under(setup: Setup, name: str, bound_s: float = BOUND_S) -> Setup:
    """The same for one run under another policy, by its name."""
    policy = make_policy(name, bound_s)
    on_queued = policy.note_queued if isinstance(policy, OriginalFifo) else None
    return replace(setup, policy=lambda: policy, on_queued=on_queued)


def fleet(
    models: Sequence[str], switch_s: float, slots: int, policy: str, *, limited: bool = False
) -> Setup:
    """Models of which each switch costs the same.

    Limited, no more are in flight than there are slots; the original knows no such limit.
    """
    setup = Setup(
        models=models,
        cost=lambda _source, _target: switch_s,
        server=lambda _model: Slots(slots),
        policy=OriginalFifo,
        max_in_flight=slots if limited and policy != BASELINE else None,
    )
    return under(setup, policy)


class Case(Protocol):
    """One traffic, the same for every policy; a frozen dataclass, its fields are the axes."""

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        ...

    def axes(self) -> dict[str, Any]:
        """Its label in a table's breakdown."""
        ...


def wait_figures(outcome: Outcome, switch_s: float) -> dict[str, float]:
    """State shared by all waits, in llmux's line and inside the backend."""
    waits = outcome.waits()
    total_s = sum(outcome.seconds.values())
    return {
        "mean": mean(waits),
        "p99": percentile(waits, 0.99),
        "max": max(waits),
        "switches": outcome.switches,
        "draining_share": outcome.seconds["draining"] / total_s,
        "switching_share": outcome.seconds["switching"] / total_s,
        **nearest_to_bound(outcome, switch_s),
    }


# ---- Invariant 7 ----


def nearest_to_bound(
    outcome: Outcome, switch_s: float, bound_s: float = BOUND_S
) -> dict[str, float]:
    """The wait with the largest `excess` over its bound (negative if all are within it)."""
    waits = waits_for_model(outcome)
    allowed = allowed_waits(outcome, bound_s, switch_s)
    over = [wait - most for wait, most in zip(waits, allowed, strict=True)]
    worst = max(range(len(over)), key=over.__getitem__)
    return {"excess": over[worst], "worst_wait": waits[worst], "worst_allowed": allowed[worst]}


def waits_for_model(outcome: Outcome) -> list[float]:
    """How long each request was in line while its own model was not open, in seconds.

    While it was, it waited for one of its slots.
    """
    opened = [
        Spans([(start, end) for at, start, end in outcome.spans if at == index])
        for index in range(len(outcome.names))
    ]
    return [
        wait - opened[index].between(until - wait, until)
        for index, wait, until in zip(
            outcome.models, outcome.line_waits(), outcome.admitted_at, strict=True
        )
    ]


def allowed_waits(outcome: Outcome, bound_s: float, switch_s: float) -> list[float]:
    """How long each request may wait in line: invariant 7 of docs/design.md.

    The bound; and for its own model and each with an older request in line, two switches and a
    drain, for which the longest seen stands.
    """
    each_s = 2 * switch_s + outcome.longest_drain_s
    by_arrival = sorted(range(outcome.count), key=outcome.arrived_at.__getitem__)
    # Lines are in order of arrival: if any older request waits for a model, so does its latest one.
    line_until = [0.0] * len(outcome.names)
    allowed = [0.0] * outcome.count
    for at in by_arrival:
        own, arrived_at = outcome.models[at], outcome.arrived_at[at]
        others = sum(until > arrived_at for i, until in enumerate(line_until) if i != own)
        allowed[at] = bound_s + (1 + others) * each_s
        line_until[own] = outcome.admitted_at[at]
    return allowed


# ---- Grids ----


@dataclass(frozen=True)
class GridCase:
    """Made-up traffic.

    Attributes:
        models: How many there are.
        switch_s: Hook time of every switch.
        popularity: zipf or one_hot.
        pattern: poisson or bursty.
        load: Of the slots, if there were no switches.
        slots: Requests that a backend works on at a time.
        service_s: Mean of the (exponential) service time.
        requests: How many come.
        seed: Of all that is drawn at random.
        limited: No more are in flight than there are slots (`max_in_flight`).
    """

    models: int
    switch_s: float
    popularity: str
    pattern: str
    load: float
    slots: int
    service_s: float
    requests: int
    seed: int
    limited: bool = False

    def __str__(self) -> str:
        return (
            f"N {self.models}, {self.switch_s:g} s, {self.popularity}, {self.pattern}, "
            f"load {self.load:g}"
        )

    def axes(self) -> dict[str, Any]:
        """The dimensions of the grid."""
        names = ("models", "switch_s", "popularity", "pattern", "load")
        return {name: getattr(self, name) for name in names}

    def arrivals(self) -> Iterator[Arrival]:
        """The same, each time."""
        shares = {"zipf": zipf, "one_hot": one_hot}[self.popularity](self.models)
        arrive = {"poisson": poisson, "bursty": bursty}[self.pattern]
        rate = self.load * self.slots / self.service_s
        work = exponential(self.service_s)
        return arrive(shares, rate, work, self.requests, random.Random(self.seed))

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        models = [str(index) for index in range(self.models)]
        setup = fleet(models, self.switch_s, self.slots, policy, limited=self.limited)
        return wait_figures(simulate(setup, self.arrivals()), self.switch_s)


LOADS_A = (0.3, 0.5, 0.7, 0.85, 0.95)
LOADS_B = (0.03, 0.1, 0.2, 0.4, 0.6, 0.85)


def grid_a(requests: int, seed: int) -> list[GridCase]:
    """Long requests in large batches, as in a chat service: 180 configurations."""
    return _grid(LOADS_A, SLOTS, SERVICE_S, requests, seed)


def limited(requests: int, seed: int) -> list[GridCase]:
    """Grid A again, with the line in llmux instead of inside of the backends."""
    return [replace(case, limited=True) for case in grid_a(requests, seed)]


def grid_b(requests: int, seed: int) -> list[GridCase]:
    """Short requests, two at a time, mostly little load: 216 configurations."""
    return _grid(LOADS_B, 2, 1.0, requests, seed)


def _grid(
    loads: Sequence[float], slots: int, service_s: float, requests: int, seed: int
) -> list[GridCase]:
    axes = product((2, 4, 8), SWITCHES_S, ("zipf", "one_hot"), ("poisson", "bursty"), loads)
    return [GridCase(*axis, slots, service_s, requests, seed + i) for i, axis in enumerate(axes)]


# ---- Traces ----

TRACES: Mapping[str, Sequence[str]] = {
    "arena": ("prism_vtc_arena27.csv",),
    "servegen": ("servegen_4models_24h_load0.3_seed0.csv",),
    "azure": ("AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv"),
}
"""LMSYS Chatbot Arena as Prism samples it (27 models); alibaba/ServeGen (4 models); two services of
Azure's public data set of 2023, taken for two models. They are not part of this repository:
`--traces` says where they are."""

TRACE_LOADS = (0.3, 0.6, 0.85)
PROMPT_TOKEN_S = 0.0002
OUTPUT_TOKEN_S = 0.015
"""Where a trace says lengths and no times, a request takes 0.2 ms for each token of its prompt
(5,000 a second) and 15 ms for each of its answer (66 a second): about an 8B model on one GPU."""


@lru_cache(maxsize=1)
def read_traces(files: tuple[Path, ...], requests: int | None) -> list[Arrival]:
    """The first requests (None: all) of the files together, by time.

    A file has the column arrival_s or TIMESTAMP; model, or it is one model; and service_s, or the
    lengths in tokens.

    Raises:
        OSError: One cannot be read.
        ValueError: One is no such file, or they have no load that another could be made of.
    """
    rows: list[Arrival] = []
    for path in files:
        rows += read_rows(path, partial(_arrival, path.stem))
    rows = sorted(rows)[:requests]
    if not rows or rows[0].at == rows[-1].at or not any(row.work_s for row in rows):
        where = ", ".join(map(str, files))
        raise ValueError(f"{where}: needs two requests at different times, and one that takes some")
    return rows


def _arrival(file: str, row: Mapping[str, str]) -> Arrival:
    if "arrival_s" in row:
        at = seconds(row, "arrival_s")
    else:
        at = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
    return Arrival(at, row.get("model", file), _work_s(row))


def _work_s(row: Mapping[str, str]) -> float:
    if "service_s" in row:
        return seconds(row, "service_s")
    prompt = int(row.get("prompt_len") or row["ContextTokens"])
    output = int(row.get("output_len") or row["GeneratedTokens"])
    if min(prompt, output) < 0:
        raise ValueError(f"a length of {min(prompt, output)} tokens")
    return PROMPT_TOKEN_S * prompt + OUTPUT_TOKEN_S * output


@dataclass(frozen=True)
class TraceCase:
    """Recorded traffic, as much faster or slower as the load needs.

    Attributes:
        trace: Its name in `TRACES`.
        switch_s: Hook time of every switch.
        load: Of the slots, if there were no switches.
        files: Where it is.
        requests: Only so many are taken; None: all.
    """

    trace: str
    switch_s: float
    load: float
    files: tuple[Path, ...]
    requests: int | None

    def __str__(self) -> str:
        return f"{self.trace}, {self.switch_s:g} s, load {self.load:g}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        return {"trace": self.trace, "switch_s": self.switch_s, "load": self.load}

    def arrivals(self) -> list[Arrival]:
        """From time 0 on, at the load."""
        recorded = read_traces(self.files, self.requests)
        begin, end = recorded[0].at, recorded[-1].at
        work_s = sum(arrival.work_s for arrival in recorded)
        stretch = work_s / (SLOTS * self.load) / (end - begin)
        return [arrival._replace(at=(arrival.at - begin) * stretch) for arrival in recorded]

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        arrivals = self.arrivals()
        models = sorted({arrival.model for arrival in arrivals})
        setup = fleet(models, self.switch_s, SLOTS, policy)
        return wait_figures(simulate(setup, arrivals), self.switch_s)


def traces(directory: Path, requests: int | None) -> list[TraceCase]:
    """Those whose files are there, at each switch cost and load.

    Raises:
        OSError: One of them cannot be read.
        ValueError: There is something wrong with one of them.
    """
    found = {
        name: tuple(directory / file for file in files)
        for name, files in TRACES.items()
        if all((directory / file).is_file() for file in files)
    }
    for files in found.values():
        read_traces(files, requests)
    return [
        TraceCase(name, switch_s, load, files, requests)
        for (name, files), switch_s, load in product(found.items(), SWITCHES_S, TRACE_LOADS)
    ]


# ---- Closed loop ----

AGENTS = 12
THINK_S = (5.0, 20.0)
"""Time between an answer and the next question: a tool runs, a person reads."""

STAYING = 0.95
"""An agent that stays with its model asks it 20 times in a row, on average: about one task."""


class Agents(Closed):
    """A closed loop whose agents ask the same model again with some probability."""

    def __init__(self, staying: float, think_s: float, seed: int) -> None:
        rng = random.Random(seed)
        super().__init__(AGENTS, [0.25] * 4, exponential(think_s), exponential(SERVICE_S), rng)
        self._dice = random.Random(seed + 1)
        self._staying = staying

    def follow(self, job: Job, now: float) -> Arrival:
        """The next request of an agent whose last one was answered now."""
        asked = super().follow(job, now)
        stays = self._dice.random() < self._staying
        return asked._replace(model=job.model) if stays else asked


@dataclass(frozen=True)
class ClosedCase:
    """Twelve agents who wait for their answers, and four models with equal shares.

    Attributes:
        agents: "roaming" pick a model for each request, "staying" stay with one for a while.
        think_s: How long they think, on average.
        switch_s: Hook time of every switch.
        hours: Of simulated time.
        seed: Of all that is drawn at random.
    """

    agents: str
    think_s: float
    switch_s: float
    hours: float
    seed: int

    def __str__(self) -> str:
        agents = f"{self.agents}, thinking {self.think_s:g} s"
        return f"{agents}, {self.switch_s:g} s, seed {self.seed}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        return {"agents": self.agents, "think_s": self.think_s, "switch_s": self.switch_s}

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        staying = STAYING if self.agents == "staying" else 0.0
        loop = Agents(staying, self.think_s, self.seed)
        setup = fleet([str(index) for index in range(4)], self.switch_s, SLOTS, policy)
        outcome = simulate(setup, loop.first(), follow=loop.follow, until=3600 * self.hours)
        figures = wait_figures(outcome, self.switch_s)
        return {**figures, "requests_per_hour": outcome.count / self.hours}


def closed(hours: float, seeds: Sequence[int]) -> list[ClosedCase]:
    """Both kinds of agents at each switch cost."""
    axes = product(("roaming", "staying"), THINK_S, SWITCHES_S, seeds)
    return [ClosedCase(*axis[:3], hours, axis[3]) for axis in axes]


# ---- Starvation ----

HOT, *COLD = "hot", "cold 1", "cold 2", "cold 3"
HOT_LOAD = 0.7
HOT_SLOTS = 32
"""On average 22 of them are busy: the hot model has nothing to do once in decades."""

COLD_EVERY_S = 600.0


@dataclass(frozen=True)
class StarvationCase:
    """A hot model that never idles, and three cold ones with a request every ten minutes each.

    Attributes:
        switch_s: Hook time of every switch.
        hours: Of simulated time.
        seed: Of all that is drawn at random.
    """

    switch_s: float
    hours: float
    seed: int

    def __str__(self) -> str:
        return f"{self.switch_s:g} s, seed {self.seed}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        return {"switch_s": self.switch_s}

    def arrivals(self) -> Iterator[Arrival]:
        """The same, each time."""
        rates = [HOT_LOAD * HOT_SLOTS / SERVICE_S, *[1 / COLD_EVERY_S] * len(COLD)]
        rate = sum(rates)
        count = round(3600 * self.hours * rate)
        work = exponential(SERVICE_S)
        drawn = poisson([one / rate for one in rates], rate, work, count, random.Random(self.seed))
        names = (HOT, *COLD)
        return (arrival._replace(model=names[int(arrival.model)]) for arrival in drawn)

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        outcome = simulate(fleet((HOT, *COLD), self.switch_s, HOT_SLOTS, policy), self.arrivals())
        waits = outcome.line_waits()
        by_model = list(zip(outcome.models, waits, strict=True))
        return {
            "hot_mean": mean([wait for model, wait in by_model if model == 0]),
            "cold_mean": mean([wait for model, wait in by_model if model]),
            "cold_max": max((wait for model, wait in by_model if model), default=0.0),
            "longest_drain": outcome.longest_drain_s,
            "switches": outcome.switches,
            **nearest_to_bound(outcome, self.switch_s),
        }


def starvation(hours: float, seeds: Sequence[int]) -> list[StarvationCase]:
    """At each switch cost."""
    return [StarvationCase(switch_s, hours, seed) for switch_s, seed in product(SWITCHES_S, seeds)]
