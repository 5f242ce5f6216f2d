"""Checks at the end of a run."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import trio

from bench.soak.process import command_of
from bench.soak.record import is_cause
from bench.soak.run import Run
from bench.soak.settings import (
    DESCRIPTOR_MARGIN,
    END_S,
    LOG_BYTES_PER_REQUEST,
    MEMORY_FROM_MINUTES,
    MEMORY_MARGIN_BYTES,
)
from bench.soak.stage import Fault, read_lines
from bench.soak.watchdog import marked

TRACKER_LINE = re.compile(r"resource_tracker: There appear|warnings\.warn\('resource_tracker")
"""A warning of multiprocessing, when Hypercorn's processes are killed."""

EXPECTED_ERRORS = frozenset({
    "model_down", "sleep_hook_failed", "switch_failed", "reload_failed", "hook_survived",
    "model_failing",
    "parent_died",  # from the two processes of Hypercorn, which are killed one after the other
})  # fmt: skip
"""Events that llmux logs at level error or worse for faults that a run injects."""

TEXT_LINE = re.compile(r"(\d{4}-\S+Z) \[(\w+) *\] (\S+) *(.*)")
"""As structlog's console renderer writes it."""

LOGGED_MODEL = re.compile(r"""\bmodel=('[^']*'|"[^"]*"|\S+)""")
"""Its value; in quotes, if it has spaces."""

HYPERCORN_LINE = re.compile(r"\[\d{4}-[^]]*\] \[\d+\] \[(INFO|WARNING)\] ")
"""Hypercorn's own, from before llmux configures the log."""


async def wait_idle(run: Run) -> None:
    """Check that, without clients, soon no request waits or is in flight."""
    status: Mapping[str, Any] = {}
    with trio.move_on_after(END_S):
        while True:
            status = await run.status()
            if "models" in status and not _is_busy(status):  # else an error: perhaps the last of it
                return
            await trio.sleep(0.2)
    run.record.violations.append(f"not idle after {END_S:g} s: {json.dumps(status)}")


def _is_busy(status: Mapping[str, Any]) -> bool:
    models = status["models"].values()
    return status["state"] == "switching" or any(m["in_flight"] or m["queued"] for m in models)


async def judge_counts(run: Run) -> None:
    """Compare the counts of llmux with those of the clients."""
    record = run.record
    _, body = await run.fetch("GET", "/metrics")
    text = body.decode()
    gauge = r"^(llmux_request_queue_depth|llmux_model_in_flight)\{.*\} (\S+)$"
    for found in re.finditer(gauge, text, re.MULTILINE):
        if float(found[2]):
            record.violations.append(f"at the end: {found[0]}")
    counted: Counter[tuple[str, int]] = Counter()
    series = r'^llmux_requests_total\{model="(.*)",status="(\d+)",waited="\w+"\} (\S+)$'
    for found in re.finditer(series, text, re.MULTILINE):
        counted[found[1], int(found[2])] += int(float(found[3]))
    missing = record.counted - counted
    excess = counted - record.counted
    named = Counter({key: count for key, count in excess.items() if key[0]})
    if missing or named.total() > record.unknown:
        record.violations.append(
            f"requests by model and status: llmux has {dict(missing)} too few, "
            f"{dict(named)} too many, and {record.unknown} may count as anything"
        )
    elif not counted:
        record.violations.append("llmux has counted nothing")


async def judge_descriptors(run: Run) -> None:
    """Check that no descriptor has leaked."""
    most = run.idle_descriptors + DESCRIPTOR_MARGIN
    ports = {member.port for member in run.stage.members}
    own = math.inf
    with trio.move_on_after(20):
        while own > most:
            own = run.llmux.descriptors - run.llmux.connections_to(ports)
            await trio.sleep(0.2)
        return
    run.record.violations.append(
        f"{own} descriptors at the end, without those to backends; "
        f"{run.idle_descriptors} at the start: {run.llmux.open_files()}"
    )


def judge_memory(run: Run) -> None:
    """Check that memory has kept to its bound, and does not grow."""
    record = run.record
    if record.peak_bytes > record.bound_bytes:
        record.violations.append(
            f"RSS {record.peak_bytes / 1e6:.0f} MB, over its bound of "
            f"{record.bound_bytes / 1e6:.0f} MB"
        )
    growth = growth_bytes(run)
    if run.seconds >= 60 * MEMORY_FROM_MINUTES and growth > MEMORY_MARGIN_BYTES:
        record.violations.append(f"memory grows: {growth:,.0f} bytes")


def growth_bytes(run: Run) -> float:
    """Return the median memory of both halves of the second half of llmux's last life."""
    last = [sample for sample in run.record.samples if sample.life == run.llmux.lives]
    half = [sample.rss_bytes for sample in last[len(last) // 2 :]]
    if len(half) < 4:
        return math.nan
    middle = len(half) // 2
    return median(half[middle:]) - median(half[:middle])


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


async def judge_end(run: Run) -> None:
    """Check that llmux ends when told to, and leaves nothing behind."""
    code = await run.llmux.stop()
    if code != 0:
        run.record.violations.append(f"llmux ends with {code} on SIGTERM")
    with trio.move_on_after(2):
        while list(marked(run.stage.mark)):  # noqa: ASYNC110 - other processes
            await trio.sleep(0.05)
    found = {pid: command_of(pid) for pid in marked(run.stage.mark)}
    run.record.violations += [f"left behind: {pid} {text}" for pid, text in found.items()]


def judge_causes(run: Run) -> None:
    """Report each 502, 500 and cut that has no cause as a violation."""
    causes = run.stage.faults() + [fault for log in run.llmux.logs for fault in logged_faults(log)]
    causes = [cause for cause in causes if not cause.kind.startswith("control")]
    for seen in run.record.doubtful:
        was_away = run.llmux.was_away(seen.begun_at, seen.ended_at)
        if not was_away and not any(is_cause(cause, seen) for cause in causes):
            run.record.violate(seen, "for no reason")


def logged_faults(log: Path) -> Iterator[Fault]:
    """Return the requests that llmux itself cut for a reason."""
    wanted = {"drain_cut", "model_down"}
    for entry in read_lines(log):
        if entry.get("event") in wanted:
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            yield Fault(at, entry["event"], entry["model"])
    for line in log.read_text(errors="replace").splitlines():
        found = TEXT_LINE.match(line)
        if found and found[3] in wanted and (model := LOGGED_MODEL.search(found[4])):
            at = datetime.fromisoformat(found[1]).timestamp()
            yield Fault(at, found[3], model[1].strip("'\""))


def judge_logs(run: Run) -> None:
    """Check that the log has no traceback, no internal error, and not too many lines."""
    size = sum(log.stat().st_size for log in run.llmux.logs)
    asked = run.record.done + run.record.hostile.total()
    if size > LOG_BYTES_PER_REQUEST * max(asked, 100):
        run.record.violations.append(f"{size:,} bytes of log for {asked:,} requests and acts")
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for log in run.llmux.logs:
        text = log.read_text(errors="replace")
        mistakes = json_mistakes(text) if run.llmux.lane == "serve" else text_mistakes(text)
        for kind, example in mistakes:
            found[kind] += 1
            examples.setdefault(kind, f"{log.name}: {example}")
    for kind, count in found.most_common():
        run.record.violations.append(f"{count} x in the log: {examples[kind][:3000]}")


def json_mistakes(text: str) -> Iterator[tuple[str, str]]:
    """Yield forbidden lines of a JSON log, each with its kind."""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            yield line[:60], line
            continue
        level, event = entry.get("level"), entry.get("event", "")
        if "exception" in entry or level == "critical":
            yield f"{event} {str(entry.get('exception'))[-100:]}", line
        elif level == "error" and event not in EXPECTED_ERRORS:
            yield str(event), line


def text_mistakes(text: str) -> Iterator[tuple[str, str]]:
    """Yield forbidden entries of a console log, each with its kind and with its traceback."""
    entry: list[str] = []
    for line in [*text.splitlines(), "[2026-01-01] [0] [INFO] end"]:
        found = TEXT_LINE.match(line)
        if not found and not HYPERCORN_LINE.match(line):
            entry += [line] if not TRACKER_LINE.search(line) else []
            continue
        if len(entry) > 1 or (entry and is_mistake(entry[0])):
            yield entry[-1][:100], "\n".join(entry)
        entry = [line] if found else []


def is_mistake(line: str) -> bool:
    """Return whether a line is an unexplained error, or not one of llmux's."""
    found = TEXT_LINE.match(line)
    if found is None:
        return bool(line.strip())
    return found[2] in {"critical", "error"} and found[3] not in EXPECTED_ERRORS
