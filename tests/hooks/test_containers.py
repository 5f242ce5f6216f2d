"""`hooks/docker`, `hooks/podman` and `hooks/podman-criu` against fakes of their command lines."""

from __future__ import annotations

import pytest

from llmux.config import HookName
from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench

FOLDERS = [
    "docker",
    pytest.param("podman", marks=pytest.mark.slow),  # the same scripts: see test_folders
    pytest.param("podman-criu", marks=pytest.mark.slow),
]


@pytest.fixture(params=FOLDERS)
def bench(request: pytest.FixtureRequest, make_bench: MakeBench) -> Bench:
    return made(request.param, make_bench)


@pytest.fixture
def criu(make_bench: MakeBench) -> Bench:
    return made("podman-criu", make_bench)


@pytest.fixture
def docker(make_bench: MakeBench) -> Bench:
    return made("docker", make_bench)


@pytest.fixture
def podman(make_bench: MakeBench) -> Bench:
    return made("podman", make_bench)


def made(folder: str, make_bench: MakeBench) -> Bench:
    """The bench of a folder, with the containers made that its llmux.yaml names."""
    bench = make_bench(folder)
    tool = tool_of(bench)
    bench.install(tool, "containers", tool)
    for model, name in zip(bench.models, container_names(bench), strict=True):
        assert bench.run(
            f"{tool} create --name {name} -p 127.0.0.1:$LLMUX_PORT:8000 image", model
        ).ok
    return bench


def tool_of(bench: Bench) -> str:
    return bench.folder.name.partition("-")[0]


def container_names(bench: Bench) -> list[str]:
    return [bench.models[0], "qwen"]


def changes(bench: Bench) -> list[str]:
    """The commands that change a container, without the tool's name."""
    return [call.partition(" ")[2] for call in bench.calls() if " logs " not in call]


def test_a_container_wakes_and_sleeps(bench: Bench) -> None:
    name = bench.models[0]
    assert bench.codes("alive", "wake", "alive", "verify_asleep") == [1, 0, 0, 1]
    assert changes(bench) == [f"start {name}"]
    assert bench.ask() == f"I am {name}"
    assert bench.gpu() == {name: 60}
    assert bench.codes("sleep", "alive", "verify_asleep", "wake", "alive") == [0, 1, 0, 0, 0]
    if bench.folder.name != "podman-criu":
        assert changes(bench) == [f"stop -t 30 {name}", f"start {name}"]


def test_a_container_is_checkpointed_and_restored(criu: Bench) -> None:
    name = criu.models[0]
    assert criu.codes("wake", "sleep", "verify_asleep", "wake", "alive") == [0, 0, 0, 0, 0]
    assert changes(criu) == [
        f"start {name}",
        f"container checkpoint --keep --tcp-established {name}",
        f"container restore --tcp-established {name}",
    ]


def test_all_hooks_may_run_again_and_are_quick(bench: Bench) -> None:
    for hook in ("sleep", "wake", "wake", "sleep", "sleep"):
        ran = bench.hook(hook)
        assert ran.ok, ran
        assert ran.seconds < 2
    assert len(changes(bench)) == 2
    assert bench.running() == []


@pytest.mark.slow
async def test_llmux_switches_the_two_models(bench: Bench) -> None:
    one, two = bench.models
    async with bench.switcher() as switcher:
        for model, name in ((one, one), (two, "qwen"), (one, one)):
            assert await bench.ask_through(switcher, model) == f"I am {name}"
            assert bench.gpu() == {name: 60}


def test_a_container_that_was_never_made_is_named_and_sleeps(docker: Bench) -> None:
    woken = docker.run("./wake.sh nobody")
    assert woken.code == 1
    assert "there is no container nobody; make it once" in woken.output
    assert [docker.run(f"./{hook}.sh nobody").code for hook in ("sleep", "verify_asleep")] == [0, 0]


def test_a_server_that_ends_is_told_with_its_last_words(docker: Bench) -> None:
    docker.fault("dies")
    woken = docker.hook("wake")
    assert woken.code == 1
    assert "ERROR llama-3.1-8b cannot load its model" in woken.output
    assert "ended (exited) before it answered" in woken.output
    assert docker.running() == []


@pytest.mark.slow
def test_a_wake_ends_in_time_and_stops_the_container(docker: Bench) -> None:
    docker.fault("never_ready")
    docker.setenv("WAKE_SECS", "1")
    woken = docker.hook("wake")
    assert woken.code == 1
    assert "no answer from container llama-3.1-8b" in woken.output
    assert "the container has been stopped" in woken.output
    assert docker.running() == []


@pytest.mark.slow
def test_an_unhealthy_container_is_not_awake(podman: Bench) -> None:
    podman.fault("unhealthy")
    podman.setenv("WAKE_SECS", "1")
    woken = podman.hook("wake")
    assert woken.code == 1
    assert "(state: running, unhealthy;" in woken.output


def test_a_health_check_that_takes_its_time_delays_no_wake(docker: Bench) -> None:
    docker.fault("stays_starting")
    assert docker.codes("wake", "alive") == [0, 0]


def test_without_gnu_timeout_it_does_without_time_limits(docker: Bench) -> None:
    (docker.bin / "timeout").write_text("#!/bin/sh\nexit 125\n")
    (docker.bin / "timeout").chmod(0o755)
    assert docker.codes("wake", "sleep", "verify_asleep") == [0, 0, 0]


def test_a_container_that_cannot_start_is_told(docker: Bench) -> None:
    docker.fault("no_gpu")
    woken = docker.hook("wake")
    assert woken.code == 1
    assert "could not select device driver" in woken.output


def test_a_daemon_that_does_not_run_is_never_taken_for_a_sleeping_model(docker: Bench) -> None:
    docker.fault("no_daemon")
    for hook in ("wake", "alive", "sleep", "verify_asleep"):
        ran = docker.hook(hook)
        assert ran.code == 1
        assert "Is it running?" in ran.output


@pytest.mark.slow
def test_a_paused_container_is_woken_and_put_to_sleep(podman: Bench) -> None:
    pause = f"{'podman'} pause {podman.models[0]}"
    assert podman.hook("wake").ok
    assert podman.run(pause).ok
    assert podman.codes("alive", "verify_asleep", "wake", "alive") == [1, 1, 0, 0]
    assert podman.run(pause).ok
    assert podman.codes("sleep", "verify_asleep") == [0, 0]


@pytest.mark.slow
def test_a_container_that_does_not_stop_is_killed(podman: Bench) -> None:
    assert podman.hook("wake").ok
    podman.fault("stop_fails")
    slept = podman.hook("sleep")
    assert slept.ok
    assert "killing it" in slept.output
    assert podman.running() == []


@pytest.mark.slow
def test_a_container_that_cannot_be_ended_is_told(podman: Bench) -> None:
    assert podman.hook("wake").ok
    podman.fault("stop_fails", "kill_fails")
    slept = podman.hook("sleep")
    assert slept.code == 1
    assert "still runs (running)" in slept.output
    assert podman.hook("verify_asleep").code == 1


@pytest.mark.slow
def test_warnings_are_not_taken_for_the_answer(podman: Bench) -> None:
    podman.fault("warns")
    assert podman.codes("wake", "alive", "sleep", "verify_asleep") == [0, 0, 0, 0]


@pytest.mark.slow
async def test_a_wake_that_llmux_ends_stops_the_container(podman: Bench) -> None:
    podman.edit(r"    port: (\d+)", r"    port: \1\n    hook_timeouts: {wake: 1}")
    podman.fault("never_ready")
    error = await podman.timed_out(podman.models[0])
    assert "was told to end; the container has been stopped" in error.output
    assert podman.running() == []


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["wake", "sleep", "alive", "verify_asleep"])
def test_a_command_that_hangs_ends_in_time(podman: Bench, hook: HookName) -> None:
    podman.edit(r"    port: (\d+)", r"    port: \1")
    script = (podman.folder / "container.sh").read_text()
    (podman.folder / "container.sh").write_text(script.replace("podman 20 ", "podman 1 "))
    podman.fault("hangs")
    ran = podman.hook(hook)
    assert ran.code == 1
    assert "no answer within 1 s" in ran.output
    assert ran.seconds < 5


# ---- Checkpoints ----


@pytest.mark.slow
def test_a_container_that_cannot_be_checkpointed_is_stopped(criu: Bench) -> None:
    assert criu.hook("wake").ok
    criu.fault("no_criu")
    slept = criu.hook("sleep")
    assert slept.code == 1
    assert "criu failed" in slept.output
    assert "it has been stopped instead, and its next wake is a cold start" in slept.output
    assert criu.running() == []
    criu.calls()
    assert criu.codes("verify_asleep", "wake", "alive") == [0, 0, 0]
    assert changes(criu) == ["start llama-3.1-8b"]


@pytest.mark.slow
def test_a_checkpoint_ends_in_time(criu: Bench) -> None:
    assert criu.hook("wake").ok
    criu.fault("checkpoint_hangs")
    criu.setenv("CHECKPOINT_SECS", "1")
    slept = criu.hook("sleep")
    assert slept.code == 1
    assert "no answer within 1 s" in slept.output
    assert slept.seconds < 5
    assert criu.running() == []


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_restored_is_a_cold_start(criu: Bench) -> None:
    assert criu.codes("wake", "sleep") == [0, 0]
    criu.fault("restore_fails")
    criu.calls()
    woken = criu.hook("wake")
    assert woken.ok
    assert "cannot restore container llama-3.1-8b, so it is started from scratch" in woken.output
    assert [call.split()[0] for call in changes(criu)] == ["container", "start"]


@pytest.mark.slow
def test_the_command_may_be_another(podman: Bench) -> None:
    tool = "podman"
    (podman.bin / tool).rename(podman.bin / "other")
    podman.setenv(tool.upper(), "env SOME=thing other")
    assert podman.codes("wake", "sleep") == [0, 0]
