"""Measure llmux against nginx, HAProxy and Hypercorn: `python -m bench.proxy`.

All contestants stand in front of one backend, on one core; backend and load have others. They take
turns within each round, so that what else the machine does hits all of them alike. Figures are
medians over the rounds, ratios are medians of each round's ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from bench import contestants
from bench.contestants import Contestant, Stage, Starter
from bench.native import Load, Native, Workload
from bench.processes import (
    BACKEND_CORE,
    CORES,
    LOAD_CORE,
    PROXY_CORE,
    CannotRun,
    cpu_us,
    end_on_sigterm,
    most_streams,
    raise_descriptor_limit,
    resident_bytes,
)
from bench.table import number, render

STARTERS: Mapping[str, Starter] = {
    "nginx": contestants.nginx,
    "haproxy": contestants.haproxy,
    "llmux": contestants.llmux,
    "llmux-asgi": contestants.llmux_asgi,
    "echo": contestants.echo,
}
DIRECT = "direct"

WORKLOADS: Mapping[str, Workload] = {
    "posts": Workload(connections=16, seconds=2),
    "single": Workload(connections=1, seconds=1),
    "saturated": Workload(connections=32, seconds=2, chunks=200),
    # The same for a backend that is never the limit.
    "bulk": Workload(connections=32, seconds=2, chunks=200, burst=16),
    # 256 streams of 50 tokens/s: what one GPU gives.
    "paced": Workload(connections=256, seconds=5, chunks=100, interval_us=20_000),
}
QUICK_SHARE = 0.4
"""With --quick, workloads last so much of their time."""

QUICK_ROUNDS = 2
IDLE_STREAMS = (0, 1000, 10_000)


@dataclass(frozen=True)
class Sample:
    """One contestant's turn at one workload."""

    load: Load
    cpu_us: float


Round = Mapping[str, Mapping[str, Sample]]
"""By workload, by contestant."""

Value = Callable[[Sample, Sample], float | None]
"""From a contestant's sample and the direct one."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    workload: str
    value: Value


ROWS = (
    Row("requests", "requests/s, 16 connections", "posts",
        lambda s, _: s.load.requests / s.load.seconds),
    Row("request_cpu", "CPU us per request", "posts",
        lambda s, _: _ratio(s.cpu_us, s.load.requests)),
    Row("chunks", "chunks/s, 32 streams as fast as they go", "saturated",
        lambda s, _: s.load.chunks / s.load.seconds),
    Row("chunk_cpu", "CPU us per chunk, as fast as they go", "saturated",
        lambda s, _: _ratio(s.cpu_us, s.load.chunks)),
    Row("bulk", "chunks/s, the same, 16 with one send()", "bulk",
        lambda s, _: s.load.chunks / s.load.seconds),
    Row("bulk_cpu", "CPU us per chunk, 16 with one send()", "bulk",
        lambda s, _: _ratio(s.cpu_us, s.load.chunks)),
    Row("delivered", "share delivered, 256 streams x 50 chunks/s", "paced",
        lambda s, direct: s.load.chunks / s.load.seconds
        / (direct.load.chunks / direct.load.seconds)),
    Row("paced_cpu", "CPU us per chunk, 256 x 50/s", "paced",
        lambda s, _: _ratio(s.cpu_us, s.load.chunks)),
    Row("first_p50", "time to first chunk p50, ms", "paced",
        lambda s, _: _ratio(s.load.first_chunk_p50_us, 1000)),
    Row("first_p99", "time to first chunk p99, ms", "paced",
        lambda s, _: _ratio(s.load.first_chunk_p99_us, 1000)),
    Row("gap_p99", "gap between chunks p99, ms", "paced",
        lambda s, _: _ratio(s.load.gap_p99_us, 1000)),
    Row("latency", "latency p50, 1 connection, us", "single",
        lambda s, _: s.load.latency_p50_us),
    Row("added", "  added to direct, us", "single",
        lambda s, direct: (s.load.latency_p50_us or 0) - (direct.load.latency_p50_us or 0)),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One cell: the median over the rounds, and that of its ratio to nginx."""

    value: float | None
    ratio: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return number(self.value) + ("" if self.ratio is None else f" ({number(self.ratio)})")


Figures = Mapping[str, Mapping[str, Figure]]
"""By row, by contestant."""


@dataclass(frozen=True)
class Target:
    """A promise: `figure` is at least or at most a multiple of the figure it is compared with."""

    text: str
    row: str
    contestant: str
    factor: float
    versus: str | None = None
    at_most: bool = False

    def judge(self, figures: Figures) -> tuple[str, str, str]:
        """Text, what was measured, and ok, short or not measured."""
        of_row = figures.get(self.row, {})
        own = of_row.get(self.contestant, Figure(None, None))
        measured = own.value
        if self.versus == "nginx":
            measured = own.ratio
        elif self.versus is not None:
            measured = _ratio(own.value, of_row.get(self.versus, Figure(None, None)).value)
        if measured is None:
            return self.text, "-", "not measured"
        is_met = measured <= self.factor if self.at_most else measured >= self.factor
        return self.text, number(measured), "ok" if is_met else "SHORT"


TARGETS = (
    Target("fast lane: requests/s >= 0.25 x nginx", "requests", "llmux", 0.25, "nginx"),
    Target("fast lane: requests/s >= 5 x bare Hypercorn echo", "requests", "llmux", 5, "echo"),
    Target("fast lane: saturated chunks/s >= 1.0 x nginx", "chunks", "llmux", 1.0, "nginx"),
    Target("fast lane: 256 x 50/s delivered >= 0.98", "delivered", "llmux", 0.98),
    Target("fast lane: gap p99 <= 1.5 x nginx", "gap_p99", "llmux", 1.5, "nginx", at_most=True),
    Target("fast lane: added latency <= 3 x nginx", "added", "llmux", 3, "nginx", at_most=True),
    Target("ASGI lane: requests/s >= 0.75 x echo", "requests", "llmux-asgi", 0.75, "echo"),
    Target("ASGI lane: saturated chunks/s >= 0.8 x nginx", "chunks", "llmux-asgi", 0.8, "nginx"),
)


def main() -> None:
    options = parse_arguments()
    end_on_sigterm()
    try:
        measure_and_print(options)
    except CannotRun as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds: a first look")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[*WORKLOADS, "memory"],
                        default=[*WORKLOADS, "memory"], help="workloads to measure")  # fmt: skip
    options = parser.parse_args()
    if options.quick:
        options.rounds = QUICK_ROUNDS
    return options


def measure_and_print(options: argparse.Namespace) -> None:
    if len(CORES) < 2:
        raise CannotRun("the bench needs two cores: one for the proxies, one for load and backend")
    share = QUICK_SHARE if options.quick else 1
    workloads = {
        key: replace(work, seconds=work.seconds * share)
        for key, work in WORKLOADS.items()
        if key in options.only
    }
    with tempfile.TemporaryDirectory(prefix="llmux-bench-") as name:
        native = Native(Path(name))
        with native.backend() as backend:
            stage = Stage(Path(name), backend, raise_descriptor_limit())
            rounds = measure(native, stage, workloads, options.rounds)
            memory = measure_memory(native, stage) if "memory" in options.only else {}
    figures = {**summarize(rounds), **memory}
    print(report(figures, rounds))
    if options.save:
        save(options.save, rounds, figures)


# ---- Measuring ----


def measure(
    native: Native, stage: Stage, workloads: Mapping[str, Workload], rounds: int
) -> list[Round]:
    """Let all contestants take turns."""
    if not workloads:
        return []
    with ExitStack() as stack:
        standing = [Contestant(DIRECT, stage.backend, None)]
        for name, start in STARTERS.items():
            contestant = stack.enter_context(start(stage))
            if contestant is None:
                say(f"{name} is not installed: left out")
            else:
                standing.append(contestant)
        for contestant in standing:  # wakes models, fills pools
            native.load(contestant.port, Workload(connections=8, seconds=0.3))
        return [play_round(native, standing, workloads, at + 1, rounds) for at in range(rounds)]


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
        result[key] = {one.name: take_turn(native, one, work) for one in able}
    return result


def take_turn(native: Native, contestant: Contestant, work: Workload) -> Sample:
    """One contestant under one load; wrong answers are said."""
    before_us = cpu_us(contestant.pid) if contestant.pid else 0.0
    load = native.load(contestant.port, work)
    after_us = cpu_us(contestant.pid) if contestant.pid else 0.0
    if load.errors:
        say(f"{contestant.name}: {load.errors} wrong answers")
    return Sample(load, after_us - before_us)


def measure_memory(native: Native, stage: Stage) -> Figures:
    """Resident memory of fresh processes, in MiB, with open streams in which nothing happens."""
    most = most_streams(stage.descriptors)
    levels = sorted({min(count, most) for count in IDLE_STREAMS})
    if most < max(IDLE_STREAMS):
        say(f"{stage.descriptors} descriptors allow {most} streams, two each: not 10,000")
    resident: dict[str, dict[int, float | None]] = {}
    for name, start in STARTERS.items():
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
    assert contestant.pid is not None
    native.load(contestant.port, Workload(connections=1, seconds=0.1))
    with ExitStack() as stack:
        held = 0
        for level in levels:
            if level > held:
                asked = stack.enter_context(
                    native.holding(contestant.port, level - held, path="/idle")
                )
                if errors := asked.wait_answered().errors:
                    say(f"{contestant.name}: {errors} of {level - held} streams failed")
                    yield level, None
                    continue
                held = level
            yield level, resident_bytes(contestant.pid) / 2**20


# ---- Reporting ----


def summarize(rounds: Sequence[Round]) -> Figures:
    """Medians of all rows that were measured."""
    return {
        row.key: {
            name: _summary(row, rounds, name)
            for name in rounds[0][row.workload]
            if not (name == DIRECT and row.key in {"added", "delivered"})
        }
        for row in ROWS
        if rounds and row.workload in rounds[0]
    }


def _summary(row: Row, rounds: Sequence[Round], name: str) -> Figure:
    values, ratios = [], []
    for one in rounds:
        samples = one[row.workload]
        if name == DIRECT and row.key.endswith("cpu"):
            continue
        value = row.value(samples[name], samples[DIRECT])
        if value is None:
            continue
        values.append(value)
        if "nginx" in samples:
            ratio = _ratio(value, row.value(samples["nginx"], samples[DIRECT]))
            ratios += [] if ratio is None else [ratio]
    return Figure(
        statistics.median(values) if values else None,
        statistics.median(ratios) if ratios else None,
    )


def _figure(value: float | None, nginx: float | None) -> Figure:
    return Figure(value, _ratio(value, nginx))


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def report(figures: Figures, rounds: Sequence[Round]) -> str:
    """The table, the targets, and where all this was measured."""
    names = [DIRECT, *STARTERS]
    titles = {row.key: row.title for row in ROWS}
    table = [
        ["(ratio to nginx)", *names],
        *(
            [
                titles.get(key, f"resident MiB, {key.removeprefix('memory_')} idle streams"),
                *(str(row.get(name, "-")) for name in names),
            ]
            for key, row in figures.items()
        ),
    ]
    targets = [("target", "measured", ""), *(target.judge(figures) for target in TARGETS)]
    notes = [headroom(figures), core_shares(rounds), wrong_answers(rounds), machine()]
    parts = [render(table), render(targets), *notes]
    return "\n\n".join(part for part in parts if part)


def headroom(figures: Figures) -> str:
    """How far load and backend are from being the limit."""
    lines = []
    for key, what in (
        ("requests", "requests/s"),
        ("chunks", "chunks/s"),
        ("bulk", "chunks/s, 16 a send()"),
    ):
        row = figures.get(key, {})
        values = {name: figure.value for name, figure in row.items() if figure.value is not None}
        direct = values.pop(DIRECT, None)
        if direct is None or not values:
            continue
        best = max(values, key=lambda name: values[name])
        lines.append(
            f"Without a proxy, load and backend on one core reach {number(direct)} {what}: "
            f"{number(direct / values[best])} x the best proxy ({best})."
        )
    return "\n".join(lines)


def core_shares(rounds: Sequence[Round]) -> str:
    """Report the limiting process where contestants run at full speed."""
    lines = [
        f"  {key}: {', '.join(f'{name} {share:.2f}' for name, share in busy(rounds, key).items())}"
        for key in (rounds[0] if rounds else {})
        if key in {"posts", "saturated", "bulk"}
    ]
    if not lines:
        return ""
    title = (
        "Share of its core that each used. About 1: it was the limit; "
        "less: load and backend were, or others used the machine."
    )
    return "\n".join([title, *lines])


def busy(rounds: Sequence[Round], workload: str) -> dict[str, float]:
    """By contestant, the median share of one core."""
    return {
        name: statistics.median(_busy(one[workload][name]) for one in rounds)
        for name in rounds[0][workload]
        if name != DIRECT
    }


def _busy(sample: Sample) -> float:
    return sample.cpu_us / sample.load.seconds / 1e6


def wrong_answers(rounds: Sequence[Round]) -> str:
    wrong = sum(
        sample.load.errors for one in rounds for row in one.values() for sample in row.values()
    )
    return f"{wrong} answers were wrong: see above." if wrong else ""


def machine() -> str:
    """Versions and hardware, in one paragraph."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("trio", "hypercorn", "httptools"))
    return (
        f"{server_version('nginx', '-v')}, {server_version('haproxy', '-v')}, "
        f"Python {platform.python_version()}, {packages}; Linux {platform.release()}, "
        f"{cpu_model()}, {os.cpu_count()} cores "
        f"(proxies on {PROXY_CORE}, load on {LOAD_CORE}, backend on {BACKEND_CORE})"
    )


def server_version(program: str, option: str) -> str:
    path = contestants.which(program)
    if path is None:
        return f"no {program}"
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return f"{program} {found[0] if found else '?'}"


def cpu_model() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def save(path: Path, rounds: Sequence[Round], figures: Figures) -> None:
    """Write every sample and figure as JSON."""

    def samples(one: Round) -> dict[str, dict[str, dict[str, object]]]:
        return {
            work: {
                name: {"cpu_us": s.cpu_us} | {f: getattr(s.load, f) for f in Load.__struct_fields__}
                for name, s in row.items()
            }
            for work, row in one.items()
        }

    data = {
        "machine": machine(),
        "figures": {
            key: {name: asdict(figure) for name, figure in row.items()}
            for key, row in figures.items()
        },
        "rounds": [samples(one) for one in rounds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


def say(text: str) -> None:
    """Progress, kept apart from the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
