"""`hooks/cuda-checkpoint` against a fake `cuda-checkpoint` and servers of two processes."""

from __future__ import annotations

import pytest
import trio

from llmux.switching.model import Traits
from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    bench = make_bench("cuda-checkpoint")
    bench.install("cuda-checkpoint", "cuda_checkpoint")
    bench.install("llama-server", "server", '--cuda --name "$LLMUX_MODEL"')
    return bench


def actions(bench: Bench) -> list[str]:
    """What was done to processes, in order, without saying to which."""
    calls = (call.split() for call in bench.calls())
    return [words[2] if words[1] == "--action" else words[1] for words in calls]


def test_a_server_is_started_suspended_and_resumed(bench: Bench) -> None:
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    assert bench.gpu() == {"llama-3.1-8b": 30, "llama-3.1-8b-worker": 30}
    processes = bench.running()
    assert bench.codes("sleep", "alive", "verify_asleep") == [0, 1, 0]
    assert bench.gpu() == {}
    assert bench.codes("wake", "alive") == [0, 0]
    assert sorted(bench.running()) == sorted(processes)
    assert bench.ask() == "I am llama-3.1-8b"
    assert actions(bench) == [
        *("lock", "lock", "checkpoint", "checkpoint"),
        *("restore", "restore", "unlock", "unlock"),
    ]


@pytest.mark.slow
def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    assert bench.codes("sleep", "verify_asleep") == [0, 0]
    for hook in ("wake", "sleep"):
        assert bench.hook(hook).ok
        bench.calls()
        again = bench.hook(hook)
        assert again.ok, again
        assert again.seconds < 1.5
        assert bench.calls() == []


@pytest.mark.slow
async def test_llmux_switches_with_a_request_inside(bench: Bench) -> None:
    one, two = bench.models
    assert bench.config.models[one].preserves_in_flight
    events = []
    traits = {name: Traits(preserves_in_flight=True) for name in bench.models}
    async with bench.switcher(traits) as switcher, trio.open_nursery() as clients:
        await bench.ask_through(switcher, one)

        async def slow() -> None:
            async with switcher.serving(one):
                events.append(await trio.to_thread.run_sync(lambda: bench.ask(one, seconds=0.8)))

        clients.start_soon(slow)
        while not switcher.models[one].in_flight.count:
            await trio.sleep(0.01)
        await switcher.force_switch(two)
        assert set(bench.gpu()) == {two, f"{two}-worker"}
        events.append(f"{two} is awake")
        # Nobody asks for the first any more, but for the request inside it.
    assert events == [f"{two} is awake", f"I am {one}"]


@pytest.mark.slow
def test_a_server_that_suspension_broke_off_is_resumed_or_suspended_further(bench: Bench) -> None:
    assert bench.hook("wake").ok
    pid = bench.running()[0]
    assert bench.run(f"cuda-checkpoint --action lock --pid {pid}").ok
    assert bench.codes("alive", "verify_asleep", "sleep", "verify_asleep") == [1, 1, 0, 0]
    assert bench.run(f"cuda-checkpoint --action restore --pid {pid}").ok
    assert bench.codes("verify_asleep", "wake", "alive") == [1, 0, 0]


# ---- Failures ----


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["lock_llama-3.1-8b-worker", "checkpoint_llama-3.1-8b-worker"])
def test_a_server_of_which_a_part_cannot_be_suspended_goes_on(bench: Bench, fault: str) -> None:
    assert bench.hook("wake").ok
    bench.fault(fault)
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "OS call failed or operation not supported" in slept.output
    assert "it goes on, and the GPU is still taken" in slept.output
    assert bench.codes("alive", "verify_asleep") == [0, 1]


@pytest.mark.slow
def test_a_server_that_is_broken_is_stopped(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("checkpoint_fails", "breaks")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "it has been stopped, and its requests are lost" in slept.output
    assert bench.running() == []
    bench.fault()
    assert bench.codes("verify_asleep", "wake", "alive") == [0, 0, 0]


@pytest.mark.slow
def test_a_server_that_cannot_be_resumed_is_stopped(bench: Bench) -> None:
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.fault("restore_fails")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "cannot resume the server" in woken.output
    assert "the server has been stopped" in woken.output
    assert bench.running() == []


@pytest.mark.slow
def test_suspending_ends_in_time(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.fault("checkpoint_hangs")
    bench.setenv("COPY_SECS", "1")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "checkpoint: no answer within 1 s" in slept.output
    assert slept.seconds < 5
    assert bench.hook("alive").ok


@pytest.mark.slow
def test_a_server_without_cuda_is_told(bench: Bench) -> None:
    bench.install("llama-server", "server", '--name "$LLMUX_MODEL"')
    assert bench.hook("wake").ok
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "finds nothing of CUDA" in slept.output
    assert bench.hook("verify_asleep").code == 1


def test_a_wake_that_fails_says_why_and_leaves_nothing(bench: Bench) -> None:
    bench.fault("dies")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "cannot load its model" in woken.output
    assert "the server ended by itself" in woken.output.splitlines()[-1]
    bench.fault("never_ready")
    bench.setenv("WAKE_SECS", "1")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "no answer on port" in woken.output
    assert bench.running() == []
    assert "no-such-server not found" in bench.run("./wake.sh no-such-server").output


def test_without_cuda_checkpoint_it_says_where_to_get_it(bench: Bench) -> None:
    assert bench.hook("wake").ok
    bench.setenv("CUDA_CHECKPOINT", "no-such-command")
    slept = bench.hook("sleep")
    assert slept.code == 1
    assert "get it from github.com/NVIDIA/cuda-checkpoint" in slept.output


# ---- Driver 550 ----


@pytest.mark.slow
def test_an_old_one_toggles_the_first_process(bench: Bench) -> None:
    bench.fault("old_driver")
    hooks = ("wake", "sleep", "sleep", "alive", "verify_asleep", "wake", "wake", "alive")
    assert bench.codes(*hooks) == [0, 0, 0, 1, 0, 0, 0, 0]  # type: ignore[arg-type]
    assert bench.hook("verify_asleep").code == 1
    assert actions(bench) == ["--toggle", "--toggle"]
