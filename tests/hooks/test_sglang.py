"""`hooks/sglang` against a stand-in that releases, resumes and breaks as SGLang does."""

from __future__ import annotations

import os
import signal

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench

RELEASE, RESUME = "POST /release_memory_occupation {}", "POST /resume_memory_occupation {}"
UPDATE = (
    "POST /update_weights_from_disk "
    '{"model_path": "meta-llama/Llama-3.1-8B-Instruct", "flush_cache": true}'
)
CHAT = 'curl -sd "{}" 127.0.0.1:"$LLMUX_PORT"/v1/chat/completions'


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench("sglang")
    bench.install("python-with-sglang", "sglang")
    bench.setenv("SGLANG_PYTHON", "python-with-sglang")
    return bench


def held(bench: Bench, model: str = "") -> int:
    return bench.gpu().get(f"sglang-{bench.port(model or bench.models[0])}", 0)


def test_the_first_wake_starts_the_server_and_later_ones_load_its_weights(bench: Bench) -> None:
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    (start,) = bench.calls()
    assert "--enable-memory-saver --host 127.0.0.1" in start
    assert held(bench) == 80
    assert bench.codes("sleep", "alive", "verify_asleep") == [0, 1, 0]
    assert held(bench) == 2
    assert bench.codes("wake", "alive") == [0, 0]
    assert bench.calls() == [RELEASE, RESUME, UPDATE]
    assert bench.ask() == "I am llama-3.1-8b"


def test_weights_with_a_copy_in_memory_are_not_read_again(bench: Bench) -> None:
    two = bench.models[1]
    assert bench.codes("wake", "sleep", "wake", model=two) == [0, 0, 0]
    assert bench.calls()[1:] == [RELEASE, RESUME]
    assert bench.ask(two) == f"I am {two}"


def test_without_the_weights_the_stand_in_answers_garbage(bench: Bench) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    assert bench.run('curl -sd "{}" 127.0.0.1:"$LLMUX_PORT"/resume_memory_occupation').ok
    assert bench.ask() == "!!!!!!!!"


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    assert bench.codes("sleep", "verify_asleep") == [0, 0]
    for hook in ("wake", "sleep"):
        assert bench.hook(hook).ok
        bench.calls()
        again = bench.hook(hook)
        assert again.ok, again
        assert again.seconds < 1
        assert bench.calls() == []


@pytest.mark.slow
async def test_llmux_switches_the_two_models(bench: Bench) -> None:
    one, two = bench.models
    async with bench.switcher() as switcher:
        for model in (one, two, one):
            assert await bench.ask_through(switcher, model) == f"I am {model}"
            assert held(bench, model) == 80
    assert len([call for call in bench.calls() if call.startswith("sglang")]) == 2


def test_a_release_with_a_request_inside_kills_the_server_and_is_noticed(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.ask_behind(seconds=5)
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "did requests come past llmux?" in slept.output
    assert bench.running() == []
    assert bench.codes("verify_asleep", "wake", "alive") == [0, 0, 0]


@pytest.mark.slow
def test_a_server_that_died_asleep_is_started_anew(bench: Bench) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.run(CHAT)
    bench.wait_until(lambda: not bench.running(), "the server has died")
    bench.calls()
    assert bench.codes("alive", "verify_asleep", "sleep", "wake", "alive") == [1, 0, 0, 0, 0]
    assert [call.split()[0] for call in bench.calls()] == ["sglang"]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["sleep", "wake"])
def test_a_wake_that_was_broken_off_leads_to_a_fresh_server(bench: Bench, first: str) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.fault("resume_hangs")
    wake = bench.start(bench.config.models[bench.models[0]].wake, bench.models[0])
    bench.wait_until(lambda: RESUME in bench.calls(), "it wakes")
    os.killpg(wake.pid, signal.SIGKILL)
    wake.wait()
    bench.fault()
    assert bench.codes("alive", "verify_asleep") == [1, 1]
    if first == "sleep":
        assert "broken off; the server has been stopped" in bench.hook("sleep").output
        assert bench.hook("verify_asleep").ok
    assert bench.hook("wake").ok
    assert bench.ask() == "I am llama-3.1-8b"


def test_a_start_that_fails_says_why_and_leaves_nothing(bench: Bench) -> None:
    bench.fault("start_fails")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "Not enough memory" in woken.output
    assert "the server ended by itself" in woken.output.splitlines()[-1]
    assert bench.running() == []


@pytest.mark.slow
def test_a_wake_ends_in_time_though_the_server_hangs(bench: Bench) -> None:
    bench.fault("start_hangs")
    bench.setenv("SGLANG_WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "no answer within 1 s" in woken.output
    assert bench.running() == []


def test_weights_that_cannot_be_read_end_the_wake_and_the_server(bench: Bench) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.fault("/update_weights_from_disk")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "POST /update_weights_from_disk: status 400" in woken.output
    assert "the server has been stopped" in woken.output
    assert bench.running() == []


@pytest.mark.slow
def test_a_sleep_ends_in_time_though_the_server_hangs(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("release_hangs")
    bench.setenv("SGLANG_SLEEP_SECS", "1")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert slept.seconds < 5
    assert bench.running() == []


@pytest.mark.slow
async def test_a_wake_that_llmux_ends_takes_its_server_along(bench: Bench) -> None:
    bench.edit(r"    port: (\d+)", r"    port: \1\n    hook_timeouts: {wake: 1}")
    bench.fault("start_hangs")
    error = await bench.timed_out(bench.models[0])
    assert "was told to end; the server has been stopped" in error.output
    assert bench.running() == []


@pytest.mark.slow
def test_a_port_that_others_use_is_left_alone(bench: Bench) -> None:
    start = 'python-with-sglang -m sglang.launch_server --model-path m --port "$LLMUX_PORT" &'
    assert bench.run(start).ok
    bench.wait_listening()
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "is taken by a server that wake.sh did not start" in woken.output
    assert len(bench.running()) == 1
