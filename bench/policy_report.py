"""Reports of `bench.policies`: tables, and targets that are met or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from bench.policy_cases.setup import BASELINE, UNBOUNDED, Case, Figures
from bench.table import number, render

ADAPTIVE = "adaptive"
"""The policy that the targets apply to."""

HARM = 1.10
"""A configuration with a larger ratio of mean waits is counted as harmed."""

MOMENT_S = 1e-3
"""Added to both waits of a ratio, so that a wait of 0 can be compared."""

THROUGHPUT_TARGET = 1.25

Results = Mapping[Case, Mapping[str, Figures]]
"""Figures of each case, by policy."""


@dataclass(frozen=True)
class Verdict:
    """One target and the measured value."""

    text: str
    measured: str
    is_met: bool

    def row(self) -> list[str]:
        """As a line of the last table."""
        return [self.text, self.measured, "met" if self.is_met else "SHORT"]


@dataclass
class Report:
    """One part's outcome; `details` are printed with --verbose only, `data` is saved."""

    title: str
    tables: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


# ---- Open traffic: ratios of waits ----


@dataclass(frozen=True)
class WaitTargets:
    """Upper bounds of the ratios to the original; `worst` bounds each single mean wait."""

    mean: float
    p99: float
    worst: float | None = None


@dataclass(frozen=True)
class Summary:
    """One policy over many cases, in ratios to the original's FIFO on each.

    Attributes:
        mean: Geometric mean of the ratios of mean waits.
        p99: The same of the 99th percentiles.
        worst: The largest ratio of mean waits.
        worst_case: The case with that ratio.
        harmed: Number of cases in which it was above `HARM`.
    """

    mean: float
    p99: float
    worst: float
    worst_case: str
    harmed: int

    def cells(self) -> list[str]:
        """As cells of a table."""
        ratios = [number(value) for value in (self.mean, self.p99, self.worst)]
        return [*ratios, str(self.harmed), self.worst_case]


def summarize(results: Results, policy: str, versus: str = BASELINE) -> Summary:
    """One policy's ratios to another, over all cases."""
    means = {case: ratio(of, policy, versus, "mean") for case, of in results.items()}
    tails = [ratio(of, policy, versus, "p99") for of in results.values()]
    worst_case = max(means, key=means.__getitem__)
    return Summary(
        mean=statistics.geometric_mean(means.values()),
        p99=statistics.geometric_mean(tails),
        worst=means[worst_case],
        worst_case=str(worst_case),
        harmed=sum(value > HARM for value in means.values()),
    )


def ratio(of: Mapping[str, Figures], policy: str, versus: str, figure: str) -> float:
    """Ratio of two waits in the same case."""
    return (of[policy][figure] + MOMENT_S) / (of[versus][figure] + MOMENT_S)


def report_waits(title: str, results: Results, targets: WaitTargets) -> Report:
    """Report a line for each policy, the breakdown of `adaptive`, and its targets."""
    report = Report(f"{title}: {len(results)} runs, ratios to the original's FIFO")
    summaries = {policy: summarize(results, policy) for policy in policies_of(results)}
    heads = ["policy", "mean wait", "p99", "worst mean", f"above {HARM:.2f}", "worst at"]
    report.tables.append(render([heads, *([p, *s.cells()] for p, s in summaries.items())]))
    report.data["summary"] = summaries
    if ADAPTIVE in summaries:
        by_axis = break_down(results)
        report.data["by_axis"] = by_axis
        report.details.append(axes_table(by_axis))
        report.verdicts.extend(judge_waits(title, summaries[ADAPTIVE], targets))
        report.verdicts.append(judge_bound(title, [of[ADAPTIVE] for of in results.values()]))
    if UNBOUNDED in summaries and ADAPTIVE in summaries:
        report.tables.append(cost_of_bound(results))
    return report


def break_down(results: Results) -> dict[str, dict[str, Summary]]:
    """The ratios of `adaptive` by each value of each axis."""
    axes: dict[str, dict[str, dict[Case, Mapping[str, Figures]]]] = {}
    for case, of in results.items():
        for axis, value in case.axes().items():
            axes.setdefault(axis, {}).setdefault(str(value), {})[case] = of
    return {
        axis: {value: summarize(some, ADAPTIVE) for value, some in by_value.items()}
        for axis, by_value in axes.items()
    }


def axes_table(by_axis: Mapping[str, Mapping[str, Summary]]) -> str:
    """The ratios of `adaptive`, a line for each value of each axis."""
    heads = [f"{ADAPTIVE} at", "mean wait", "p99", "worst mean"]
    lines = [
        [f"{axis} {value}", *summary.cells()[:3]]
        for axis, by_value in by_axis.items()
        for value, summary in by_value.items()
    ]
    return render([heads, *lines])


def judge_waits(title: str, found: Summary, targets: WaitTargets) -> Iterator[Verdict]:
    """The targets of one part."""
    values = [
        ("mean wait, geometric mean", found.mean, targets.mean),
        ("p99, geometric mean", found.p99, targets.p99),
        ("mean wait, worst run", found.worst, targets.worst),
    ]
    for what, value, most in values:
        if most is not None:
            text = f"{title}: {what} <= {most:.2f}"
            yield Verdict(text, number(value), value <= most)


def judge_bound(title: str, runs: Sequence[Figures]) -> Verdict:
    """Check that invariant 7 held for every request of these runs."""
    worst = max(figures["excess"] for figures in runs)
    text = f"{title}: every wait within invariant 7"
    return Verdict(text, f"{number(-worst)} s to spare", worst <= 0)


def cost_of_bound(results: Results) -> str:
    """Compare `adaptive` with and without its bound."""
    cost = summarize(results, ADAPTIVE, UNBOUNDED)
    longest = statistics.median(ratio(of, ADAPTIVE, UNBOUNDED, "max") for of in results.values())
    return (
        f"The bound (max_wait_secs 300 against none): mean wait {number(cost.mean)}, "
        f"p99 {number(cost.p99)}, worst mean {number(cost.worst)} ({cost.worst_case}); "
        f"the longest wait {number(longest)} (median)."
    )


def policies_of(results: Results) -> list[str]:
    """The policies that were run, without the original."""
    (first, *_) = results.values()
    return [policy for policy in first if policy != BASELINE]


# ---- Closed loop: requests per hour ----


def report_closed(title: str, results: Results) -> Report:
    """Requests per hour by agent and switch cost: of the original, and of others relative to it."""
    report = Report(f"{title}: requests per hour, the original's and ratios to it (lowest seed's)")
    names = policies_of(results)
    rows = [["agents, switch", BASELINE, *names]]
    for key, some in by_axes(results).items():
        hourly = [of[BASELINE]["requests_per_hour"] for of in some]
        cells = {name: [throughput(of, name) for of in some] for name in names}
        means = {name: statistics.geometric_mean(values) for name, values in cells.items()}
        texts = [f"{number(means[name])} ({number(min(cells[name]))})" for name in names]
        rows.append([key, number(statistics.mean(hourly)), *texts])
        report.data[key] = means
        if ADAPTIVE in means:
            report.verdicts.append(judge_throughput(f"{title}, {key}", cells[ADAPTIVE]))
    if ADAPTIVE in names:
        by_switch: dict[float, list[float]] = {}
        for case, of in results.items():
            by_switch.setdefault(case.axes()["switch_s"], []).append(throughput(of, ADAPTIVE))
        for switch_s, values in by_switch.items():
            report.verdicts.append(judge_throughput(f"{title}, all at {switch_s:g} s", values))
    report.tables.append(render(rows))
    return report


def judge_throughput(title: str, ratios: Sequence[float]) -> Verdict:
    """Check that the geometric mean of some runs is high enough."""
    value = statistics.geometric_mean(ratios)
    text = f"{title}: requests/hour >= {THROUGHPUT_TARGET:.2f}"
    return Verdict(text, number(value), value >= THROUGHPUT_TARGET)


def throughput(of: Mapping[str, Figures], policy: str) -> float:
    """Requests per hour relative to the original."""
    return of[policy]["requests_per_hour"] / of[BASELINE]["requests_per_hour"]


def by_axes(results: Results) -> dict[str, list[Mapping[str, Figures]]]:
    """Group cases that differ only in their seed."""
    groups: dict[str, list[Mapping[str, Figures]]] = {}
    for case, of in results.items():
        groups.setdefault(str(case).partition(", seed")[0], []).append(of)
    return groups


# ---- Starvation: waits in line against invariant 7 ----


def report_starvation(title: str, results: Results) -> Report:
    """Report the longest waits for cold models, and their distance from the bound."""
    report = Report(f"{title}: waits in llmux's line, in seconds")
    heads = [
        "switch, policy", "cold mean", "cold max", "hot mean", "longest drain", "switches/run",
        "nearest to the bound", "spare",
    ]  # fmt: skip
    rows = [heads]
    groups = by_axes(results)
    for (key, some), policy in product(groups.items(), [BASELINE, *policies_of(results)]):
        worst = max((of[policy] for of in some), key=lambda figures: figures["excess"])
        rows.append([f"{key} {policy}", *starvation_cells([of[policy] for of in some], worst)])
        report.data[f"{key} {policy}"] = worst
        if policy == ADAPTIVE:
            report.verdicts.append(judge_bound(f"{title}, {key}", [worst]))
    report.tables.append(render(rows))
    return report


def starvation_cells(some: Sequence[Figures], worst: Figures) -> list[str]:
    """One policy at one switch cost."""

    def over(take: Callable[[Iterator[float]], float], name: str) -> str:
        return number(take(figures[name] for figures in some))

    nearest = f"{number(worst['worst_wait'])} of {number(worst['worst_allowed'])}"
    return [
        over(statistics.mean, "cold_mean"),
        over(max, "cold_max"),
        over(statistics.mean, "hot_mean"),
        over(max, "longest_drain"),
        over(statistics.mean, "switches"),
        nearest,
        number(-worst["excess"]),
    ]
