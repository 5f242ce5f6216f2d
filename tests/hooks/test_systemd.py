"""`hooks/systemd` against a fake `systemctl`."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench

ONE, TWO = "llama-3.1-8b.service", "qwen.service"


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench("systemd")
    bench.install("systemctl")
    one, two = bench.models
    units = {
        "": {ONE: {"port": bench.port(one), "state": "inactive"}},
        "--user": {TWO: {"port": bench.port(two), "state": "inactive"}},
    }
    (bench.home / "units.json").write_text(json.dumps(units))
    return bench


def changes(bench: Bench) -> list[str]:
    return [call.removeprefix("systemctl ") for call in bench.calls() if " status " not in call]


def test_a_unit_wakes_and_sleeps(bench: Bench) -> None:
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    assert bench.ask() == "I am llama-3.1-8b"
    assert bench.codes("sleep", "alive", "verify_asleep", "wake") == [0, 1, 0, 0]
    assert changes(bench) == [f"start {ONE}", f"stop {ONE}", f"start {ONE}"]


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    for hook in ("sleep", "wake", "wake", "sleep", "sleep"):
        ran = bench.hook(hook)
        assert ran.ok, ran
        assert ran.seconds < 2
    assert changes(bench) == [f"start {ONE}", f"stop {ONE}"]
    assert bench.running() == []


@pytest.mark.slow
async def test_llmux_switches_a_unit_of_the_system_and_one_of_the_user(bench: Bench) -> None:
    one, two = bench.models
    async with bench.switcher() as switcher:
        assert await bench.ask_through(switcher, one) == "I am llama-3.1-8b"
        assert await bench.ask_through(switcher, two) == "I am qwen"
    assert changes(bench) == [f"start {ONE}", f"stop {ONE}", f"--user start {TWO}"]


def test_a_unit_that_is_not_there_is_named_and_sleeps(bench: Bench) -> None:
    woken = bench.run("./wake.sh nobody.service")
    assert woken.code == 1
    assert "there is no unit nobody.service; make it" in woken.output
    assert [bench.run(f"./{s}.sh nobody.service").code for s in ("sleep", "verify_asleep")] == [
        0,
        0,
    ]


def test_a_start_that_fails_says_why(bench: Bench) -> None:
    bench.fault("start_fails")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "the server's last words" in woken.output
    assert "failed because the control process exited" in woken.output.splitlines()[-1]


@pytest.mark.slow
def test_a_unit_that_failed_too_often_is_started_all_the_same(bench: Bench) -> None:
    assert bench.hook("wake").ok
    os.kill(bench.running()[0], signal.SIGKILL)
    bench.wait_until(lambda: not bench.running(), "the server has died")
    for file in (bench.home / "gpu").iterdir():
        file.unlink()
    bench.fault("start_limit")
    assert bench.codes("alive", "verify_asleep", "wake") == [1, 0, 0]
    assert changes(bench)[1:] == [f"reset-failed {ONE}", f"start {ONE}"]


@pytest.mark.slow
def test_a_server_that_ends_is_told(bench: Bench) -> None:
    bench.fault("dies")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert f"unit {ONE} ended (failed) before it answered" in woken.output


@pytest.mark.slow
def test_a_wake_ends_in_time_and_stops_the_unit(bench: Bench) -> None:
    bench.fault("never_ready")
    bench.setenv("WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "within 1 s" in woken.output
    assert "the unit has been told to stop" in woken.output
    assert bench.running() == []


@pytest.mark.slow
def test_a_unit_that_does_not_stop_is_killed(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("stop_hangs")
    bench.setenv("SLEEP_SECS", "1")
    slept = bench.hook("sleep")
    assert slept.ok, slept
    assert "no answer within 1 s; killing it" in slept.output
    assert bench.running() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [("not_allowed", "README.md has a polkit rule"), ("no_bus", "llmux its XDG_RUNTIME_DIR?")],
)
def test_missing_rights_are_told_with_what_to_do(bench: Bench, fault: str, said: str) -> None:
    assert bench.hook("wake").ok
    bench.fault(fault)
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert said in slept.output
    assert len(bench.running()) == 1


@pytest.mark.slow
async def test_a_wake_that_llmux_ends_stops_the_unit(bench: Bench) -> None:
    bench.edit(r"    port: (\d+)", r"    port: \1\n    hook_timeouts: {wake: 1}")
    bench.fault("never_ready")
    error = await bench.timed_out(bench.models[0])
    assert "was told to end; the unit has been told to stop" in error.output
    assert bench.running() == []
