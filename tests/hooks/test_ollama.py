"""`hooks/ollama` against a stand-in that loads and unloads as Ollama does."""

from __future__ import annotations

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench

LLAMA, MISTRAL = "llama3.2:3b", "mistral"
LOAD = 'POST /api/generate {"model": "llama3.2:3b", "keep_alive": -1, "stream": false}'
UNLOAD = 'POST /api/generate {"model": "llama3.2:3b", "keep_alive": 0}'
SERVE = 'OLLAMA_HOST=127.0.0.1:"$LLMUX_PORT" ollama serve >/dev/null 2>&1 &'


@pytest.fixture
def stopped(make_bench: MakeBench) -> Bench:
    """Its two models share a port, where no server runs."""
    bench = make_bench("ollama")
    bench.install("ollama")
    bench.edit(f"port: {bench.port(MISTRAL)}", f"port: {bench.port(LLAMA)}")
    return bench


@pytest.fixture
def bench(stopped: Bench) -> Bench:
    assert stopped.run(SERVE).ok
    stopped.wait_listening()
    stopped.calls()
    return stopped


def test_waking_loads_the_model_and_sleeping_unloads_it(bench: Bench) -> None:
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    assert bench.calls() == [LOAD]
    assert bench.ask() == "I am llama3.2:3b"
    bench.calls()
    assert bench.hook("sleep").ok
    assert bench.gpu() == {}  # it waits until the model is gone
    assert bench.codes("alive", "verify_asleep", "wake", "alive") == [1, 0, 0, 0]
    assert bench.calls() == [UNLOAD, LOAD]


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    for hook in ("sleep", "wake", "wake", "sleep", "sleep", "verify_asleep"):
        ran = bench.hook(hook)
        assert ran.ok, ran
        assert ran.seconds < 1


async def test_llmux_switches_the_two_models_back_and_forth(bench: Bench) -> None:
    async with bench.switcher() as switcher:
        for model, known_as in ((LLAMA, LLAMA), (MISTRAL, "mistral:7b-instruct"), (LLAMA, LLAMA)):
            assert await bench.ask_through(switcher, model) == f"I am {known_as}"
            assert bench.gpu() == {known_as: 60}  # both would not fit


@pytest.mark.slow
def test_sleep_waits_for_requests_that_still_run(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.ask_behind(seconds=0.5)
    assert bench.hook("sleep").ok
    assert bench.gpu() == {}


def test_a_name_without_a_tag_means_latest(bench: Bench) -> None:
    assert bench.run("./wake.sh qwen").ok
    assert [bench.run(f"./alive.sh {name}").code for name in ("qwen", "qwen:latest", "Qwen")] == [
        0
    ] * 3
    assert [bench.run(f"./{script}.sh qwen").code for script in ("sleep", "verify_asleep")] == [
        0,
        0,
    ]


def test_a_model_is_not_taken_for_another_with_a_longer_name(bench: Bench) -> None:
    assert bench.hook("wake").ok
    assert bench.run("./alive.sh llama3.2").code == 1
    assert bench.run("./alive.sh 2:3b").code == 1
    assert bench.run("./alive.sh llama3x2:3b").code == 1


def test_a_model_for_embeddings_is_loaded_too(bench: Bench) -> None:
    assert bench.run("./wake.sh nomic-embed-text").ok
    assert bench.calls()[1].startswith("POST /api/embed")
    assert bench.run("./sleep.sh nomic-embed-text").ok
    assert bench.gpu() == {}


def test_a_model_that_was_loaded_for_a_while_is_kept(bench: Bench) -> None:
    bench.ask()  # a client past llmux, which has it loaded for five minutes
    bench.calls()
    assert bench.hook("wake").ok
    assert bench.calls() == [LOAD]


def test_a_wake_that_comes_while_the_model_leaves_loads_it_again(bench: Bench) -> None:
    bench.fault("leaves_once")
    assert bench.codes("wake", "alive") == [0, 0]
    assert bench.calls() == [LOAD, LOAD]


# ---- Failures ----


def test_without_a_server_wake_says_how_to_start_it_and_sleep_is_content(stopped: Bench) -> None:
    woken = stopped.hook("wake")
    assert woken.code == 1
    assert f"no Ollama server answers on port {stopped.port(LLAMA)}; start it" in woken.output
    assert stopped.codes("alive", "sleep", "verify_asleep") == [1, 0, 0]


def test_a_model_that_was_never_pulled_is_named(bench: Bench) -> None:
    woken = bench.run("./wake.sh no-such-model")
    assert woken.code == 1
    assert "get it: ollama pull no-such-model" in woken.output
    assert bench.run("./sleep.sh no-such-model").ok


def test_a_load_that_fails_says_why(bench: Bench) -> None:
    bench.fault("load_fails")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "model requires more system memory" in woken.output
    assert bench.calls()[-1] == UNLOAD


@pytest.mark.slow
def test_a_load_ends_in_time_and_is_taken_back(bench: Bench) -> None:
    bench.fault("loads_for_ever")
    bench.setenv("OLLAMA_WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "was not loaded within 1 s" in woken.output
    assert woken.seconds < 5
    assert bench.calls() == [LOAD.replace("-1,", "-1,"), UNLOAD]


@pytest.mark.slow
def test_a_model_that_stays_is_told(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("stuck")
    bench.setenv("OLLAMA_SLEEP_SECS", "1")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "still loaded after 1 s" in slept.output
    assert slept.seconds < 4
    assert bench.hook("verify_asleep").code == 1


def test_a_server_that_is_broken_is_told(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("broken")
    for hook in ("wake", "alive", "sleep", "verify_asleep"):
        ran = bench.hook(hook)
        assert ran.code == 1
        assert "status 500" in ran.output


@pytest.mark.slow
async def test_a_wake_that_llmux_ends_takes_its_load_back(bench: Bench) -> None:
    bench.edit(r"    port: (\d+)", r"    port: \1\n    hook_timeouts: {wake: 1}")
    bench.fault("loads_for_ever")
    error = await bench.timed_out(LLAMA)
    assert "took longer than 1 s" in error.reason
    assert bench.calls() == [LOAD, UNLOAD]
