"""`hooks/vllm-sleep` against a stand-in that sleeps, wakes and breaks as vLLM does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench

AWAKE, ASLEEP = 82, 2  # MiB of the fake GPU
LEVEL_2_WAKE = [
    "POST /wake_up?tags=weights",
    'POST /collective_rpc {"method": "reload_weights"}',
    "POST /wake_up?tags=kv_cache",
    "POST /reset_prefix_cache",
]
LEVEL_2_STEPS = ["/wake_up", "/reset_prefix_cache"]


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench("vllm-sleep")
    bench.install("vllm")
    return bench


@pytest.fixture
def one(bench: Bench) -> str:
    """The model that sleeps at level 1."""
    return bench.models[0]


@pytest.fixture
def two(bench: Bench) -> str:
    """The model that sleeps at level 2."""
    return bench.models[1]


def held(bench: Bench, model: str) -> int:
    return bench.gpu().get(f"vllm-{bench.port(model)}", 0)


def server_pid(bench: Bench, model: str) -> int:
    return int(pid_file(bench, model).read_text().split()[0])


def pid_file(bench: Bench, model: str) -> Path:
    return bench.folder / "run" / f"vllm-{bench.port(model)}.pid"


# ---- As it should be ----


def test_the_first_wake_starts_the_server_and_later_ones_wake_it(bench: Bench, one: str) -> None:
    assert bench.codes("alive", "wake", "alive") == [1, 0, 0]
    (start,) = bench.calls()
    assert start.startswith("vllm serve meta-llama/Llama-3.1-8B-Instruct --gpu-memory-utilization")
    for needed in ("--enable-sleep-mode", "--host 127.0.0.1", f"--served-model-name {one}"):
        assert needed in start
    assert held(bench, one) == AWAKE
    pid = server_pid(bench, one)
    assert bench.codes("sleep", "alive", "verify_asleep") == [0, 1, 0]
    assert held(bench, one) == ASLEEP
    assert bench.calls() == ["POST /sleep?level=1&mode=wait"]
    assert bench.codes("wake", "alive") == [0, 0]
    assert bench.calls() == ["POST /wake_up", "POST /reset_prefix_cache"]
    assert server_pid(bench, one) == pid
    assert bench.ask(one) == f"I am {one}"


def test_level_2_reloads_the_weights_before_the_kv_cache(bench: Bench, two: str) -> None:
    assert bench.codes("wake", "sleep", "verify_asleep", "wake", model=two) == [0, 0, 0, 0]
    assert bench.calls()[1:] == ["POST /sleep?level=2&mode=wait", *LEVEL_2_WAKE]
    assert bench.ask(two) == f"I am {two}"


def test_without_the_reload_the_stand_in_answers_garbage(bench: Bench, two: str) -> None:
    assert bench.codes("wake", "sleep", model=two) == [0, 0]
    wake_it_wrongly = 'curl -s -X POST "http://127.0.0.1:$LLMUX_PORT/wake_up"'
    assert bench.run(wake_it_wrongly, two).ok
    assert bench.ask(two) == "!!!!!!!!"


@pytest.mark.slow
def test_a_sleep_of_unknown_level_is_woken_as_level_2(bench: Bench, one: str) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    (bench.folder / "run" / f"vllm-{bench.port(one)}.level").unlink()
    bench.calls()
    assert bench.hook("wake").ok
    assert bench.calls() == LEVEL_2_WAKE


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    assert bench.codes("sleep", "verify_asleep") == [0, 0]  # never started
    assert bench.calls() == []
    for hook in ("wake", "sleep"):
        assert bench.hook(hook).ok
        bench.calls()
        again = bench.hook(hook)
        assert again.ok, again
        assert again.seconds < 1
        assert bench.calls() == []


def test_the_server_outlives_the_hook_in_a_session_of_its_own(bench: Bench, one: str) -> None:
    assert bench.hook("wake").ok
    pid = server_pid(bench, one)
    assert os.getsid(pid) == pid != os.getsid(0)
    assert "INFO starting" in pid_file(bench, one).with_suffix(".log").read_text()


async def test_llmux_switches_the_two_models_back_and_forth(bench: Bench) -> None:
    one, two = bench.models
    async with bench.switcher() as switcher:
        for model, other in ((one, two), (two, one), (one, two), (two, one)):
            assert await bench.ask_through(switcher, model) == f"I am {model}"
            assert held(bench, model) == AWAKE
            assert held(bench, other) in (0, ASLEEP)
    starts = [call for call in bench.calls() if call.startswith("vllm")]
    assert len(starts) == 2


def test_a_server_that_others_have_started_is_woken_and_put_to_sleep(
    bench: Bench, one: str
) -> None:
    start = 'VLLM_SERVER_DEV_MODE=1 vllm serve m --port "$LLMUX_PORT" >/dev/null 2>&1 &'
    assert bench.run(start).ok
    bench.wait_listening()
    hooks = bench.codes("wake", "sleep", "verify_asleep", "wake", "alive")
    assert hooks == [0, 0, 0, 0, 0]
    assert not pid_file(bench, one).exists()


# ---- Traps ----


def test_a_port_of_two_models_is_told_and_the_other_server_left_alone(
    bench: Bench, one: str, two: str
) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.edit(f"port: {bench.port(two)}", f"port: {bench.port(one)}")
    woken = bench.hook("wake", two)
    assert woken.code == 1
    assert f"runs the server of {one}" in woken.output
    assert "give each model a port of its own" in woken.output
    assert bench.codes("verify_asleep", "wake", "alive") == [0, 0, 0]


def test_alive_is_not_fooled_by_health_while_asleep(bench: Bench) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    health = bench.run('curl -sf "http://127.0.0.1:$LLMUX_PORT/health"')
    assert health.ok
    alive = bench.hook("alive")
    assert alive.code == 1
    assert '{"is_sleeping": true}' in alive.output


def test_a_request_to_a_sleeping_server_kills_it_and_the_next_wake_starts_it_anew(
    bench: Bench,
) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.run('curl -s "http://127.0.0.1:$LLMUX_PORT/v1/chat/completions" -d "{}"')
    bench.wait_until(lambda: not bench.running(), "the server has died")
    bench.calls()
    assert bench.codes("alive", "verify_asleep", "wake", "alive") == [1, 0, 0, 0]
    assert [call.split()[0] for call in bench.calls()] == ["vllm"]


def test_an_engine_that_dies_with_a_request_though_sleep_says_200_is_noticed(
    bench: Bench,
) -> None:
    assert bench.hook("wake").ok
    bench.ask_behind(seconds=5)
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "the engine died when it was put to sleep" in slept.output
    assert bench.running() == []
    assert bench.codes("verify_asleep", "wake", "alive") == [0, 0, 0]


@pytest.mark.slow
def test_workers_that_outlive_their_server_are_ended_before_the_next_start(bench: Bench) -> None:
    bench.fault("leaves_engine")
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.run('curl -s "http://127.0.0.1:$LLMUX_PORT/v1/chat/completions" -d "{}"')
    bench.wait_until(lambda: len(bench.running()) == 1, "only the engine is left")
    left = bench.running()
    verified = bench.hook("verify_asleep")
    assert verified.code == 1
    assert f"runs as process {left[0]}" in verified.output
    assert bench.hook("wake").ok
    assert left[0] not in bench.running()
    bench.run('curl -s "http://127.0.0.1:$LLMUX_PORT/v1/chat/completions" -d "{}"')  # awake: fine
    assert bench.codes("sleep", "verify_asleep") == [0, 0]


def test_a_wake_that_was_broken_off_leads_to_a_fresh_server(bench: Bench, two: str) -> None:
    assert bench.codes("wake", "sleep", model=two) == [0, 0]
    bench.fault("half_awake")
    wake = bench.start(bench.config.models[two].wake, two)
    bench.wait_until(lambda: "half awake" in bench.calls(), "it wakes")
    os.killpg(wake.pid, signal.SIGKILL)
    wake.wait()
    bench.fault()
    assert bench.codes("alive", "verify_asleep", model=two) == [1, 1]
    slept = bench.hook("sleep", two)
    assert "a wake was broken off; the server has been stopped" in slept.output
    assert bench.codes("verify_asleep", "wake", model=two) == [0, 0]
    assert bench.ask(two) == f"I am {two}"


@pytest.mark.slow
def test_a_second_wake_after_a_broken_one_starts_the_server_anew(bench: Bench, two: str) -> None:
    assert bench.codes("wake", "sleep", model=two) == [0, 0]
    bench.fault("half_awake")
    wake = bench.start(bench.config.models[two].wake, two)
    bench.wait_until(lambda: "half awake" in bench.calls(), "it wakes")
    os.killpg(wake.pid, signal.SIGKILL)
    wake.wait()
    bench.fault()
    woken = bench.hook("wake", two)
    assert woken.ok, woken
    assert "starting it again" in woken.output
    assert bench.ask(two) == f"I am {two}"


# ---- Without sleep mode ----


def test_a_vllm_that_cannot_sleep_fails_at_once_and_says_what_to_do(bench: Bench) -> None:
    bench.fault("no_sleep_mode")
    woken = bench.hook("wake")
    assert woken.code == 1
    *_, why, advice = woken.output.splitlines()
    assert "Sleep mode is not supported on current platform" in why
    assert "no sleep mode on this platform" in advice
    assert "`level: stop`" in advice
    assert bench.running() == []


def test_level_stop_ends_the_server_and_starts_it_again(bench: Bench, one: str) -> None:
    stop_it(bench)
    bench.fault("no_sleep_mode")
    for _ in range(2):
        assert bench.codes("wake", "wake", "alive") == [0, 0, 0]
        (start,) = bench.calls()
        assert start.startswith("vllm serve meta-llama/Llama-3.1-8B-Instruct")
        assert "--enable-sleep-mode" not in start
        assert bench.ask(one) == f"I am {one}"
        assert bench.codes("sleep", "sleep", "alive", "verify_asleep") == [0, 0, 1, 0]
        assert held(bench, one) == 0
        assert bench.running() == []
        bench.calls()


@pytest.mark.parametrize("before", ["awake", "asleep"])
def test_a_server_with_sleep_mode_is_stopped_once_the_level_is_stop(
    bench: Bench, before: str
) -> None:
    assert bench.hook("wake").ok
    assert before == "awake" or bench.hook("sleep").ok
    stop_it(bench)
    bench.calls()
    woken = bench.hook("wake")
    assert woken.ok, woken
    assert "started with other options; starting it again" in woken.output
    assert "--enable-sleep-mode" not in bench.calls()[0]
    assert bench.codes("alive", "sleep", "verify_asleep") == [0, 0, 0]


def test_level_stop_leaves_alone_what_others_have_started(bench: Bench) -> None:
    stop_it(bench)
    start = 'VLLM_SERVER_DEV_MODE=1 vllm serve m --port "$LLMUX_PORT" >/dev/null 2>&1 &'
    assert bench.run(start).ok
    bench.wait_listening()
    bench.wait_until(lambda: len(bench.running()) == 2, "the server and its engine")
    for hook in ("wake", "sleep"):
        ran = bench.hook(hook)
        assert ran.code == 1
        assert "wake.sh did not start" in ran.output
    assert bench.hook("verify_asleep").code == 1
    assert len(bench.running()) == 2


def stop_it(bench: Bench) -> None:
    """Give the first model level stop."""
    bench.edit(r"wake: ./wake.sh meta", "wake: VLLM_LEVEL=stop ./wake.sh meta")
    bench.edit(r"sleep: ./sleep.sh 1.*", "sleep: ./sleep.sh stop")


# ---- Failures ----


def test_a_wake_that_fails_says_why_and_leaves_nothing(bench: Bench) -> None:
    bench.fault("start_fails")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "Free memory on device is less than desired" in woken.output
    assert "the server ended by itself" in woken.output.splitlines()[-1]
    assert bench.running() == []
    assert bench.codes("sleep", "verify_asleep") == [0, 0]


def test_a_wake_ends_in_time_though_the_server_hangs(bench: Bench, one: str) -> None:
    bench.fault("start_hangs")
    bench.setenv("VLLM_WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "no answer within 1 s" in woken.output
    assert "the server has been stopped" in woken.output
    assert woken.seconds < 5
    assert bench.running() == []
    assert not pid_file(bench, one).exists()


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    bench.fault("start_hangs", "ignores_term")
    bench.setenv("VLLM_WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert woken.seconds < 8
    assert bench.running() == []


async def test_a_wake_that_llmux_ends_takes_its_server_along(bench: Bench, one: str) -> None:
    bench.edit(r"    port: (\d+)", r"    port: \1\n    hook_timeouts: {wake: 1}")
    bench.fault("start_hangs")
    error = await bench.timed_out(one)
    assert "took longer than 1 s" in error.reason
    assert "was told to end; the server has been stopped" in error.output
    assert any(call.startswith("vllm") for call in bench.calls())
    assert bench.running() == []


@pytest.mark.parametrize(
    "step",
    ["/collective_rpc", *(pytest.param(s, marks=pytest.mark.slow) for s in LEVEL_2_STEPS)],
)
def test_a_step_that_fails_ends_the_wake_and_the_server(bench: Bench, two: str, step: str) -> None:
    assert bench.codes("wake", "sleep", model=two) == [0, 0]
    bench.fault(step)
    woken = bench.hook("wake", two)
    assert woken.code == 1
    assert f"POST {step}" in woken.output
    assert "status 500" in woken.output
    assert bench.running() == []
    bench.fault()
    assert bench.codes("verify_asleep", "wake", "alive", model=two) == [0, 0, 0]


def test_a_sleep_that_fails_stops_the_server_and_says_so(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("/sleep")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "POST /sleep: status 500" in slept.output
    assert "the server has been stopped" in slept.output
    assert bench.running() == []
    assert bench.hook("verify_asleep").ok


@pytest.mark.slow
def test_a_sleep_ends_in_time_though_the_server_hangs(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("sleep_hangs")
    bench.setenv("VLLM_SLEEP_SECS", "1")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "no answer within 1 s" in slept.output
    assert slept.seconds < 5
    assert bench.running() == []


def test_verify_says_no_while_awake(bench: Bench) -> None:
    assert bench.hook("wake").ok
    verified = bench.hook("verify_asleep")
    assert verified.code == 1
    assert "not asleep" in verified.output


def test_a_port_that_others_use_is_left_alone(bench: Bench) -> None:
    assert bench.run('vllm serve m --port "$LLMUX_PORT" >/dev/null 2>&1 &').ok  # no dev mode
    bench.wait_listening()
    # It listens before its engine has become a process of its own.
    bench.wait_until(lambda: len(bench.running()) == 2, "the server and its engine")
    others = sorted(bench.running())
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "start it with VLLM_SERVER_DEV_MODE=1" in woken.output
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "left alone" in slept.output
    assert sorted(bench.running()) == others


def test_missing_programs_and_bad_words_are_named(bench: Bench) -> None:
    bench.setenv("VLLM", "no-such-vllm")
    assert "no-such-vllm not found; install vLLM" in bench.hook("wake").output
    assert "usage: wake.sh MODEL" in bench.run("./wake.sh").output
    assert "level must be 1, 2 or stop, not 3" in bench.run("./sleep.sh 3").output


def test_a_pid_file_of_an_earlier_boot_harms_nobody(bench: Bench, one: str) -> None:
    assert bench.run("sleep 60 & mkdir -p run; echo $! >victim").ok
    victim = int((bench.folder / "victim").read_text())
    for content in (f"{victim} 1 no-such-boot", f"{victim} 1 $(boot)", "", "garbage"):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_file(bench, one).write_text(content.replace("$(boot)", boot) + "\n")
        assert bench.codes("sleep", "verify_asleep") == [0, 0], content
    assert bench.running() == [victim]
