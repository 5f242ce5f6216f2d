"""Plants the classic bugs of a model switcher, one at a time, and demands that a test notices.

Each is a change of a few lines to a copy of the package; the fast tests of the switcher then run
against the copy. A plant that no longer fits the source fails here too, so that this stays true.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLANTS = {
    "admit while draining": (
        "switching/core.py",
        "        if self.phase is not Phase.AWAKE:\n",
        "        if self.phase not in (Phase.AWAKE, Phase.DRAINING):\n",
    ),
    "settle before the guard is taken": (
        "switching/model.py",
        "            await waiter.wait_granted()\n"
        "            # No checkpoint since the grant, and the line is not left yet: settled means"
        " counted.\n"
        "            return self.in_flight.enter(scope)\n",
        "            await waiter.wait_granted()\n"
        "        await trio.lowlevel.checkpoint()\n"
        "        return self.in_flight.enter(scope)\n",
    ),
    "forget to settle on cancel": (
        "switching/waiters.py",
        "        try:\n            yield waiter\n        finally:\n            self._settle(waiter)\n",
        "        try:\n            yield waiter\n            self._settle(waiter)\n        finally:\n",
    ),
    "release the lock before the barrier": (
        "switching/waiters.py",
        "        self.let_in(room)\n        await self._settled.wait()\n",
        "        self.let_in(room)\n",
    ),
    "count a grant only once it is in flight": (
        "switching/core.py",
        "self.max_in_flight - self.in_flight.in_use - self.waiters.settling",
        "self.max_in_flight - self.in_flight.in_use",
    ),
    "forget the next in line when a place becomes free": (
        "switching/model.py",
        "        self.used_at = trio.current_time()\n        self.admit_more()\n",
        "        self.used_at = trio.current_time()\n",
    ),
    "abandon a switch that is wanted": (
        "switching/commands.py",
        "        return self.stands or not now.is_anyone_waiting\n",
        "        return not now.is_anyone_waiting\n",
    ),
    "leak an in-flight count on disconnect": (
        "switching/inflight.py",
        "        finally:\n            if self.is_counted:\n",
        "        finally:\n            if self.is_counted and kind is None:\n",
    ),
    "let a failed wake take others along": (
        "switching/carrying.py",
        "                target.waiters.refuse(after_failure(target, error))\n",
        "                for model in self._group.models.values():\n"
        "                    model.waiters.refuse(error)\n",
    ),
    "wake into a full GPU": (
        "switching/steps.py",
        "                    model.enter(Phase.FAILED)\n                    raise\n",
        "                    pass\n",
    ),
    "try a failing model while another one is served": (
        "switching/failing.py",
        "            at = max(at, _spared_until(model))\n",
        "            pass\n",
    ),
    "try a failing model though a request has come since the decision": (
        "switching/commands.py",
        "        if self.is_trial and not now.may_try(self.target):\n            return False\n",
        "",
    ),
    "never close the breaker": (
        "switching/core.py",
        "        self.failures = self.excused = 0\n        self.retry_at = -math.inf\n",
        "        self.retry_at = -math.inf\n",
    ),
    "miss a change between decision and wait": (
        "switching/switcher.py",
        "                # No checkpoint since the snapshot: no change can be missed.\n",
        "                await trio.lowlevel.checkpoint()\n",
    ),
    "leave those in line when the switcher ends": (
        "switching/group.py",
        "            model.waiters.refuse(error)\n",
        "            pass\n",
    ),
}


FAST = "release the lock before the barrier"
"""One of them for every run: each takes seconds."""


@pytest.mark.parametrize("bug", PLANTS)
def test_a_bug_can_be_planted(bug: str) -> None:
    name, before, _ = PLANTS[bug]
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
    for folder in ("llmux", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if bug in PLANTS:
        name, before, after = PLANTS[bug]
        file = tmp_path / "llmux" / name
        file.write_text(file.read_text().replace(before, after))
    tests = [
        "switcher",
        "switcher_races",
        "switcher_extras",
        "switcher_workload",
        "switcher_stateful",
        "breaker",
        "waiters",
    ]
    # Some bugs leave a test waiting for ever; that is noticed, too (each takes seconds).
    ends_if_stuck = ["-o", "faulthandler_timeout=40", "-o", "faulthandler_exit_on_timeout=true"]
    files = [f"tests/switching/test_{name}.py" for name in tests]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *ends_if_stuck, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    noticed = run.returncode == 1
    assert noticed == (bug != "none"), run.stdout
