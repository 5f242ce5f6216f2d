"""`hooks/llama-cpp` against a stand-in; `tests.real` runs it with real servers."""

from __future__ import annotations

import sys

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench("llama-cpp")
    bench.install("llama-server", "server")
    return bench


@pytest.mark.slow
def test_a_server_wakes_and_sleeps(bench: Bench) -> None:
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    assert bench.ask() == "I am llama-3.1-8b"
    assert bench.codes("sleep", "alive", "verify_asleep", "wake") == [0, 1, 0, 0]


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    for hook in ("sleep", "wake", "wake", "sleep", "sleep", "verify_asleep"):
        ran = bench.hook(hook)
        assert ran.ok, ran
        assert ran.seconds < 2
    assert bench.running() == []


@pytest.mark.slow
async def test_llmux_switches_the_two_models(bench: Bench) -> None:
    async with bench.switcher() as switcher:
        for model in bench.models:
            assert await bench.ask_through(switcher, model) == f"I am {model}"
            assert bench.gpu() == {model: 60}


@pytest.mark.slow
def test_a_wake_that_fails_says_why_and_leaves_nothing(bench: Bench) -> None:
    bench.fault("dies")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "cannot load its model" in woken.output
    assert "the server ended" in woken.output
    bench.fault("never_ready")
    bench.setenv("LLAMA_WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "no answer within 1 s" in woken.output
    assert bench.running() == []


def test_without_any_server_the_wake_says_how_to_name_one(bench: Bench) -> None:
    bench.setenv("LLAMA_PYTHON", sys.executable)
    woken = bench.hook("wake")
    assert woken.code == 1
    assert f"{sys.executable} has no llama_cpp; set LLAMA_SERVER or LLAMA_PYTHON" in woken.output
    assert bench.running() == []


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    bench.fault("ignores_term")
    bench.setenv("LLAMA_SLEEP_SECS", "1")
    assert bench.hook("wake").ok
    slept = bench.hook("sleep")
    assert slept.ok
    assert "ignores SIGTERM; killing it" in slept.output
    assert bench.running() == []


@pytest.mark.slow
def test_verify_sees_a_server_that_others_have_started(bench: Bench) -> None:
    assert bench.run('llama-server --port "$LLMUX_PORT" --alias x &').ok
    bench.wait_until(lambda: bench.hook("alive").ok, "it answers")
    verified = bench.hook("verify_asleep")
    assert verified.code == 1
    assert "a server that wake.sh did not start answers" in verified.output


def test_on_a_unix_socket_the_server_is_given_its_path(bench: Bench) -> None:
    """llama-server takes a host whose name ends in .sock for a socket."""
    needs = {"model": "m.gguf", "server": "echo"}
    models = {
        name: {"recipe": "llama-cpp", "with": needs, "url": f"unix:/nonesuch/{name}", "port": None}
        for name in ("m.sock", "m.socket")
    }
    bench.use_recipe(**models)
    said = {}
    for name in models:
        bench.setenv("LLMUX_SOCKET", f"/nonesuch/{name}")
        said[name] = bench.run(bench.config.models[name].script("wake") or "", name, "wake").output
    assert "--model m.gguf --host /nonesuch/m.sock --alias m.sock\n" in said["m.sock"]
    assert "let the socket's name end in .sock" in said["m.socket"]
