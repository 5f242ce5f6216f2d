"""One level: both servers start, take turns, sleep, and are validated."""

from __future__ import annotations

import time
from itertools import cycle, islice
from typing import Any

import httpx
import msgspec

from bench.gpu.memory import Memory, memory
from bench.gpu.options import Options
from bench.gpu.site import NAMES, Site, ask
from bench.machine import say
from bench.processes import CannotRun

SETTLE_S = 1.0
"""Time between a switch and a look at the memory: the driver frees it a moment later."""


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """One switch. All times are in seconds.

    Attributes:
        source: The model that was awake; None: none was.
        target: The model that was asked for.
        is_start: Whether the target's server had to be started for the first time.
        switch_s: From its beginning to its end, as llmux records it.
        sleep_s: Of the source's sleep hook; None without one.
        wake_s: Of the target's wake hook.
        first_token_s: From sending the request that caused it to the first token.
        after_switch_s: From its end to the first token.
        warm_first_token_s: The same request once more.
        after: Memory afterwards.
    """

    source: str | None
    target: str
    is_start: bool
    switch_s: float
    sleep_s: float | None
    wake_s: float
    first_token_s: float
    after_switch_s: float
    warm_first_token_s: float
    after: Memory


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured at one level.

    Attributes:
        level: 1, 2 or stop.
        before: Memory before the first start.
        switches: All switches, in order; the first two are starts.
        asleep: Memory with both models asleep.
        stopped: Memory once both servers have ended.
        validated: Steps of `llmux validate`, by model.
    """

    level: str
    before: Memory
    switches: list[Switch]
    asleep: Memory
    stopped: Memory
    validated: dict[str, list[dict[str, Any]]]


def measure(options: Options, level: str) -> Level:
    """Measure one level. Raises CannotRun; no server is left in any case."""
    site = Site(options.out / f"level-{level}", options, level)
    before = memory(options.has_gpu)
    try:
        with site.serving() as client:
            switches = []
            for number, target in enumerate(islice(cycle(NAMES), 2 + 2 * options.repetitions)):
                say(f"level {level}, switch {number + 1} of {2 + 2 * options.repetitions}")
                switches.append(_switch(client, target, number < len(NAMES), options.has_gpu))
            asleep = _asleep(client, options)
        validated = {}
        for name in NAMES if options.cycles else ():
            say(f"level {level}, llmux validate {name}")
            validated[name] = site.validate(name)
    finally:
        site.stop_servers()
    time.sleep(SETTLE_S)
    return Level(
        level=level,
        before=before,
        switches=switches,
        asleep=asleep,
        stopped=memory(options.has_gpu),
        validated=validated,
    )


def _switch(client: httpx.Client, target: str, is_start: bool, has_gpu: bool) -> Switch:
    asked = ask(client, target)
    warm = ask(client, target)
    time.sleep(SETTLE_S)
    after = memory(has_gpu)
    history = client.get("/control/history").json()
    record = latest_switch(history, target)
    hooks = hook_seconds(history, record)
    return Switch(
        source=record["from"],
        target=target,
        is_start=is_start,
        switch_s=record["ended"] - record["started"],
        sleep_s=hooks.get((record["from"], "sleep")),
        wake_s=hooks[target, "wake"],
        first_token_s=asked.first_token_s,
        after_switch_s=max(0.0, asked.first_token_at - record["ended"]),
        warm_first_token_s=warm.first_token_s,
        after=after,
    )


def _asleep(client: httpx.Client, options: Options) -> Memory:
    """Put the model that is awake to sleep, too."""
    last = client.get("/control/status").json()["active_model"]
    client.post("/control/sleep", json={"model": last}).raise_for_status()
    time.sleep(SETTLE_S)
    return memory(options.has_gpu)


def latest_switch(history: dict[str, Any], target: str) -> dict[str, Any]:
    """Return the record of the last switch, which must be a success. Raises CannotRun."""
    record: dict[str, Any] = history["switches"][-1]
    if record["to"] != target or record["result"] != "success":
        raise CannotRun(f"expected a switch to {target}, found {record}")
    return record


def hook_seconds(
    history: dict[str, Any], record: dict[str, Any]
) -> dict[tuple[str | None, str], float]:
    """Return the durations of the hooks of a switch, by model and hook. Raises CannotRun."""
    runs = [run for run in history["hooks"] if run["started"] >= record["started"] - 0.001]
    if failed := [run for run in runs if run["hook"] in ("wake", "sleep") and not run["ok"]]:
        raise CannotRun(f"a hook failed: {failed[0]}")
    return {
        (run["model"], run["hook"]): run["duration_secs"]
        for run in runs
        if run["started"] <= record["ended"]
    }
