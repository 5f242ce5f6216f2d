"""The results as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.gpu.measure import Level, Switch
from bench.gpu.memory import Gpu, Memory
from bench.table import number


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run, as the JSON file has it.

    Attributes:
        at: When it began, in ISO 8601.
        machine: CPU, cores, kernel.
        gpus: The GPUs; empty without one.
        vllm: Version of vLLM.
        llmux: Version of llmux.
        models: The models a and b.
        args: Options of `vllm serve`.
        levels: What was measured.
    """

    at: str
    machine: str
    gpus: list[Gpu]
    vllm: str
    llmux: str
    models: dict[str, str]
    args: str
    levels: list[Level]


def markdown(results: Results) -> str:
    """Return the whole report."""
    gpus = ", ".join(
        f"{gpu.name}, {gpu.total_mib:,} MiB, driver {gpu.driver}" for gpu in results.gpus
    )
    models = ", ".join(f"{name}: `{model}`" for name, model in results.models.items())
    versions = f"vLLM {results.vllm}, llmux {results.llmux}, {gpus or 'no GPU'}"
    parts = [
        f"{versions}; {results.machine}; {results.at}.",
        f"Models: {models}. Options: `{results.args}`.",
        "**Seconds**, median (99th percentile by nearest rank: of less than 100, the highest).",
        table(SECONDS_HEADS, [row for level in results.levels for row in seconds_rows(level)]),
        "**Memory**, MiB: of the GPU in use (of the machine: taken, compared with before).",
        table(MEMORY_HEADS, [memory_row(level) for level in results.levels]),
    ]
    if rows := [row for level in results.levels for row in validate_rows(level)]:
        parts += [
            "**`llmux validate`**",
            table(("level", "model", "result", "steps that did not pass"), rows),
        ]
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- Times ----

SECONDS_HEADS = (
    "level", "switch", "n", "switch", "sleep hook", "wake hook", "request to first token",
    "switch's end to first token", "first token, warm",
)  # fmt: skip


def seconds_rows(level: Level) -> list[list[str]]:
    """Return a row for the starts of each model, and for the switches each way."""
    groups: dict[str, list[Switch]] = {}
    for switch in level.switches:
        way = (
            f"start of {switch.target}"
            if switch.is_start
            else f"{switch.source} to {switch.target}"
        )
        groups.setdefault(way, []).append(switch)
    return [
        [level.level, way, str(len(found)), *map(spread, _columns(found))]
        for way, found in groups.items()
    ]


def _columns(found: Sequence[Switch]) -> list[list[float]]:
    return [
        [each.switch_s for each in found],
        [each.sleep_s for each in found if each.sleep_s is not None],
        [each.wake_s for each in found],
        [each.first_token_s for each in found],
        [each.after_switch_s for each in found],
        [each.warm_first_token_s for each in found],
    ]


def spread(values: Sequence[float]) -> str:
    """Return the median, and the 99th percentile if there are several values."""
    if not values:
        return "-"
    median = number(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({number(p99(values))})"


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile by nearest rank."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


# ---- Memory ----

MEMORY_HEADS = (
    "level", "before", "a awake, b not started", "a awake, b asleep", "b awake, a asleep",
    "both asleep", "both stopped",
)  # fmt: skip


def memory_row(level: Level) -> list[str]:
    """Return what is in use in each state; for those seen often, the most."""
    starts = {switch.target: switch for switch in level.switches if switch.is_start}
    awake = {
        name: [each.after for each in level.switches if each.target == name and not each.is_start]
        for name in ("a", "b")
    }
    cells = [level.before, starts["a"].after, _most(awake["a"]), _most(awake["b"])]
    return [
        level.level,
        *(_amount(cell, level.before) for cell in (*cells, level.asleep, level.stopped)),
    ]


def _most(found: Sequence[Memory]) -> Memory:
    return max(found, key=lambda each: (each.gpu_mib or 0, -each.available_mib))


def _amount(now: Memory, before: Memory) -> str:
    gpu = "-" if now.gpu_mib is None else f"{now.gpu_mib:,}"
    return gpu if now is before else f"{gpu} ({before.available_mib - now.available_mib:+,})"


# ---- Validation ----


def validate_rows(level: Level) -> list[list[str]]:
    """Return a row for each model."""
    return [
        [level.level, name, result_of(steps), "; ".join(map(_told, _bad(steps))) or "-"]
        for name, steps in level.validated.items()
    ]


def result_of(steps: Sequence[dict[str, Any]]) -> str:
    """Return the worst result of the steps."""
    results = {step["result"] for step in steps}
    return next((result for result in ("FAIL", "WARN") if result in results), "PASS")


def _bad(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [step for step in steps if step["result"] in ("FAIL", "WARN")]


def _told(step: dict[str, Any]) -> str:
    detail = " ".join(str(step["detail"]).split()).replace("|", "\\|")
    return f"{step['stage']} {step['step']}: {detail[:200]}"
