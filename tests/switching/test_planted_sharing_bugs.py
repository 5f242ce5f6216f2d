"""Plants the classic bugs of shared memory, one at a time, and demands that a test notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARING = (
    "tests/switching/test_lanes.py",
    "tests/switching/test_sharing.py",
    "tests/switching/test_sharing_faults.py",
    "tests/switching/test_sharing_leftovers.py",
    "tests/switching/test_stop_if_short.py",
    "tests/switching/test_ledger.py",
    "tests/switching/test_sharing_stateful.py",
)
POLICY = ("tests/policy",)

PLANTS = {
    "give memory back before sleep is verified": (
        "switching/steps.py",
        '        hook: HookName = "stop" if is_deep else "sleep"\n',
        '        hook: HookName = "stop" if is_deep else "sleep"\n'
        "        ledger.slept(model.name)\n",
        SHARING,
    ),
    "promise the same bytes to two switches": (
        "switching/ledger.py",
        "        for each in (*self._before(plan), plan):\n",
        "        for each in (plan,):\n",
        SHARING,
    ),
    "take memory that earlier switches wait for": (
        "switching/ledger.py",
        "        for earlier in self._before(plan):\n",
        "        for earlier in ():\n",
        SHARING,
    ),
    "let a victim admit again while its memory is promised": (
        "switching/carrying.py",
        "        async with self._lane_of_sleep(running, model, is_wanted) as may_go:\n",
        "        if model.phase is Phase.DRAINING and group.shares_memory:\n"
        "            model.enter(Phase.AWAKE)\n"
        "        async with self._lane_of_sleep(running, model, is_wanted) as may_go:\n",
        SHARING,
    ),
    "count the target only once it is awake": (
        "switching/ledger.py",
        "        self._hold(plan.target, Hold.STARTING if is_stopped else Hold.WAKING)\n",
        "        pass\n",
        SHARING,
    ),
    "run two hooks on one resource": (
        "switching/lanes.py",
        "                    return not each.touches() & taken\n",
        "                    return True\n",
        SHARING,
    ),
    "leave the lanes before a failed wake is cleaned up": (
        "switching/carrying.py",
        "                await self._steps.clean_up(target, hooks, error)\n",
        "                await lane.aclose()\n"
        "                await self._steps.clean_up(target, hooks, error)\n",
        SHARING,
    ),
    "forget a model whose sleep has failed": (
        "switching/placing.py",
        "            if model.is_stranded\n",
        "            if not model.is_stranded\n",
        SHARING,
    ),
    "count a stop before its hook has ended": (
        "switching/steps.py",
        "        with self._record.unsure(model.name):\n"
        '            await self._run_hook(hooks, "stop", source=model.name, target=target.name)\n'
        "        self._group.room.ledger.stopped(model.name)\n",
        "        self._group.room.ledger.stopped(model.name)\n"
        "        with self._record.unsure(model.name):\n"
        '            await self._run_hook(hooks, "stop", source=model.name, target=target.name)\n',
        SHARING,
    ),
    "forget the reservation of a switch that drains": (
        "switching/ledger.py",
        "        for plan in self.plans:\n            if plan is not without:\n",
        "        for plan in self.plans:\n            if not plan.evict:\n",
        SHARING,
    ),
    "unlock a target when its wake begins": (
        "switching/placing.py",
        "        models = {running.target.name} | {n for",
        "        models = {n for",
        SHARING,
    ),
    "give a victim's memory back when its drain begins": (
        "switching/carrying.py",
        "        eviction.drain_s = await self._steps.drain(\n",
        "        if model.is_awake:\n"
        "            group.room.ledger.slept(model.name)\n"
        "        eviction.drain_s = await self._steps.drain(\n",
        SHARING,
    ),
    "keep a victim that stays from admitting": (
        "switching/carrying.py",
        "        await self._let_in(eviction.model.name)\n",
        "",
        SHARING,
    ),
    "put a victim to sleep although it was called off": (
        "switching/lanes.py",
        "            while not (is_over := is_in_vain()) and not self._may_go(turn):\n",
        "            while not self._may_go(turn) and not (is_over := is_in_vain()):\n",
        SHARING,
    ),
    "forget a switch that cannot evict others instead": (
        "switching/ledger.py",
        "            self.plans.insert(place, old)\n",
        "            pass\n",
        SHARING,
    ),
    "let a switch that is called off wait for others": (
        "switching/ledger.py",
        "            if not self._may_go_first(plan, *self._around(plan, self._free)):\n",
        "            if False:\n",
        SHARING,
    ),
    "call off the switch of an operator": (
        "switching/views.py",
        "            is_fixed = running.is_fixed or running.command.stands or running.failure",
        "            is_fixed = running.is_fixed or running.failure",
        SHARING,
    ),
    "evict for a switch that is about to end": (
        "switching/placing.py",
        "        if running.failure is not None or not running.draining:\n",
        "        if False:\n",
        SHARING,
    ),
    "forget what a failed cold start needs asleep": (
        "switching/steps.py",
        '        is_deep |= not may_sleep and model.may_stop and hooks.has("stop")\n',
        "",
        SHARING,
    ),
    "let a stopped victim need memory asleep": (
        "switching/ledger.py",
        "        if model not in self._held or self._holds[model] is Hold.STOPPED:\n"
        "            return self._zero\n"
        "        return less(",
        "        if model not in self._held:\n            return self._zero\n        return less(",
        SHARING,
    ),
    "never stop a victim that sleeps already": (
        "switching/placing.py",
        "            stops = [n for n in fresh if n not in evictions or evictions[n].is_over]\n",
        "            stops = [n for n in fresh if n not in evictions]\n",
        SHARING,
    ),
    "take what a model that is down needs asleep": (
        "switching/steps.py",
        "            ledger.sleep(model.name, is_forced=not may_sleep)\n",
        "            if may_sleep:\n                ledger.sleep(model.name)\n",
        SHARING,
    ),
    "seek the tightest deadline only where a set makes room": (
        "policy/deadlines.py",
        "        views = may_be_chosen(scene.unserved, scene.now)\n",
        "        views = [v for v in may_be_chosen(scene.unserved, scene.now) if scene.options(v)]\n",
        POLICY,
    ),
    "give only the first in line a deadline": (
        "policy/deadlines.py",
        "for at, turns in line.places)",
        "for at, turns in line.places[:1])",
        POLICY,
    ),
}

FAST = "promise the same bytes to two switches"
"""One of them for every run: each takes seconds."""


@pytest.mark.parametrize("bug", PLANTS)
def test_a_bug_can_be_planted(bug: str) -> None:
    name, before, _, _ = PLANTS[bug]
    found = (ROOT / "llmux" / name).read_text().count(before)
    assert found == 1, f"{name} has changed: change the plant {bug!r}, too"


@pytest.mark.parametrize(
    "bug",
    [
        FAST,
        *(pytest.param(bug, marks=pytest.mark.slow) for bug in ["none", *PLANTS] if bug != FAST),
    ],
)
def test_a_planted_bug_is_noticed(bug: str, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("llmux", "tests", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests: tuple[str, ...] = (*SHARING, *POLICY)
    if bug in PLANTS:
        name, before, after, tests = PLANTS[bug]
        file = tmp_path / "llmux" / name
        file.write_text(file.read_text().replace(before, after))
    # Some bugs leave a test waiting for ever; that is noticed, too.
    ends_if_stuck = ["-o", "faulthandler_timeout=40", "-o", "faulthandler_exit_on_timeout=true"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *ends_if_stuck, *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    # 1: a test failed. A plant that cannot even be imported or collected proves nothing.
    noticed = run.returncode == 1 or "Timeout" in run.stderr
    assert noticed == (bug != "none"), run.stdout[-3000:]
