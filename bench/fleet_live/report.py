"""Tables of live fleets beside simulated ones, and what was to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.fleet.systems import Run, System, as_live
from bench.fleet_live.fleet import SIMULATED, Live
from bench.table import number, render
from llmux.simulate.outcome import mean, percentile


class Key(NamedTuple):
    """One run: a fleet, the seed of its traffic, and a way to choose."""

    fleet: str
    seed: int
    way: str


Found = Mapping[Key, Live]


@dataclass(frozen=True)
class Aim:
    """What the mean wait of a way may be at most, relative to that of another way.

    Attributes:
        way, to: The ways.
        most: The ratio.
        applies: Whether it applies to a fleet.
    """

    way: str
    to: str
    most: float
    applies: Callable[[System], bool] = lambda _: True


def is_hot(system: System) -> bool:
    """Return whether one model needs more than a host."""
    load = max(system.shares) * system.per_second * system.service_s
    return load > 0.95 * 8


def is_steady(system: System) -> bool:
    """Return whether fixed homes are right for all of the traffic."""
    return system.turned is None and not is_hot(system)


AIMS = (
    Aim("expected wait", "fixed homes", 1.15, is_steady),
    Aim("expected wait", "fixed homes", 0.4, lambda system: system.turned is not None),
    Aim("expected wait", "fixed homes", 0.3, is_hot),
    Aim("expected wait", "round robin", 0.3),
    Aim("3 pickers", "expected wait", 1.2),
)


def report(found: Found) -> str:
    """Return all tables."""
    return f"{runs_table(found)}\n\n{fleets_table(found)}\n\n{aims_table(found)}"


def runs_table(found: Found) -> str:
    """Return a row for each run."""
    rows = [["run", "switches", "mean wait", "p99", "in line", "errors", "simulated: switches",
             "mean wait"]]  # fmt: skip
    for key, live in found.items():
        simulated = Run(system_of(key), SIMULATED[key.way]).figures()
        rows.append(
            [
                f"{key.fleet}, seed {key.seed}, {key.way}",
                str(live.switches),
                number(mean(live.waits)),
                number(percentile(live.waits, 0.99)),
                number(mean(live.line_waits)),
                str(live.errors),
                f"{simulated['switches']:.0f}",
                number(simulated["mean"]),
            ]
        )
    return render(rows)


def fleets_table(found: Found) -> str:
    """Return switches and mean wait over all seeds: a row for each way."""
    fleets, ways = unique(key.fleet for key in found), unique(key.way for key in found)
    rows = [["switches / mean wait s", *fleets]]
    for way in ways:
        cells = []
        for fleet in fleets:
            runs = runs_of(found, fleet, way)
            switches = mean([live.switches for live in runs])
            cells.append(f"{switches:.0f} / {number(mean_wait(runs))}")
        rows.append([way, *cells])
    return render(rows)


def aims_table(found: Found) -> str:
    """Return each aim, with what was measured: the ratio of the means over all seeds."""
    rows = [["mean wait", "fleet", "at most", "measured", "by seed", ""]]
    for aim in AIMS:
        for fleet in unique(key.fleet for key in found):
            keys = [key for key in found if key.fleet == fleet and key.way == aim.way]
            others = [key._replace(way=aim.to) for key in keys]
            if not keys or not all(key in found for key in others):
                continue
            if not aim.applies(system_of(keys[0])):
                continue
            pairs = [(found[key], found[other]) for key, other in zip(keys, others, strict=True)]
            ratio = mean_wait([one for one, _ in pairs]) / mean_wait([other for _, other in pairs])
            each = " ".join(f"{mean(a.waits) / mean(b.waits):.2f}" for a, b in pairs)
            verdict = "met" if ratio <= aim.most else "SHORT"
            rows.append(
                [f"{aim.way} / {aim.to}", fleet, f"{aim.most:g}", f"{ratio:.2f}", each, verdict]
            )
    return render(rows)


def system_of(key: Key) -> System:
    """Return the fleet of a run."""
    return next(system for system in as_live(key.seed) if system.name == key.fleet)


def runs_of(found: Found, fleet: str, way: str) -> list[Live]:
    """Return the runs of a way, of all seeds."""
    return [live for key, live in found.items() if key.fleet == fleet and key.way == way]


def mean_wait(runs: Sequence[Live]) -> float:
    """Return the mean wait of the requests of several runs."""
    return mean([wait for live in runs for wait in live.waits])


def unique(names: Iterable[str]) -> list[str]:
    """Return each name once, in order."""
    return list(dict.fromkeys(names))
