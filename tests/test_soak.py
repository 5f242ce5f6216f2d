"""The soak test in short: `make soak` is the long one, and prints what this one checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.soak import CODES, LIES, MAY_FOLLOW, Fault, Sample, Seen, is_cause, spread
from bench.soak import Ask as Request

ASK = Request("1", "a", "a", body_bytes=0, size=0, chunks=0, gap_s=0, work_s=0)


@pytest.mark.slow
def test_twenty_seconds_of_faults_break_no_promise() -> None:
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.15"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, check=False, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout
    assert "llmux killed" in done.stdout


def test_every_fault_has_outcomes_that_may_follow() -> None:
    assert MAY_FOLLOW.keys() == LIES.keys()
    assert set().union(*MAY_FOLLOW.values()) <= {*CODES, "ok", "cut", "left"}


def test_only_a_fault_of_the_same_model_and_time_is_a_cause() -> None:
    seen = Seen("cut", ask=ASK, begun_at=100.0, ended_at=101.0)
    assert is_cause(Fault(100.5, "backend killed", "a"), seen)
    assert not is_cause(Fault(100.5, "backend killed", "b"), seen)
    assert not is_cause(Fault(200.0, "backend killed", "a"), seen)
    assert not is_cause(Fault(100.5, "backend says 503", "a"), seen)


def test_a_failed_hook_is_explained_by_the_model_that_is_named() -> None:
    seen = Seen("hook_failed", detail="Hook failed for b: sleep hook exited with 1", ask=ASK)
    assert is_cause(Fault(0.0, "verify_asleep hook says no", "b"), seen)
    assert not is_cause(Fault(0.0, "wake hook fails", "a"), seen)


def test_a_table_over_time_has_the_first_and_the_last_sample() -> None:
    samples = [Sample(float(second), 1, 0, 0, 0, 0) for second in range(100)]
    shown = spread(samples, 10)
    assert (len(shown), shown[0].at_s, shown[-1].at_s) == (10, 0.0, 99.0)
