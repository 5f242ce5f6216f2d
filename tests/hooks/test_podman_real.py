"""`hooks/podman` and `hooks/podman-criu` with a real Podman, if there is one that can run a container here.

The container has this machine's programs and the network of the host, so that no image is needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import free_port
from tests.hooks.bench import ROOT, Bench
from tests.hooks.conftest import MakeBench

pytestmark = pytest.mark.slow

LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
"""Podman wants more than some sandboxes allow."""


def container_options(folder: Path) -> list[str]:
    """What runs a program of this machine in a container."""
    root = folder / "root"
    root.mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        if (link := Path("/", name)).is_symlink():
            (root / name).symlink_to(link.readlink())
    shown = {"/usr", sys.base_prefix, sys.prefix, str(ROOT)}
    volumes = [word for path in sorted(shown) for word in ("-v", f"{path}:{path}:ro")]
    home = folder / "standin"
    home.mkdir(exist_ok=True)
    settings = ["--env", f"STANDIN_DIR={home}", "--env", f"PYTHONPATH={ROOT}"]
    volumes += ["-v", f"{home}:{home}"]
    return [*LIMITS, "--network", "host", *volumes, *settings, "--rootfs", str(root)]


def podman(*words: str) -> bool:
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    return done.returncode == 0


@pytest.fixture
def folder() -> str:
    return "podman"


@pytest.fixture
def bench(folder: str, make_bench: MakeBench) -> Iterator[Bench]:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    bench = make_bench(folder)
    options = container_options(bench.folder.parent)
    runtimes = (["podman"], ["podman", "--runtime", "runc"], ["podman", "--runtime", "crun"])
    words = next((w for w in runtimes if podman(*w, "run", "--rm", *options, "/bin/true")), None)
    if words is None:
        pytest.skip("podman cannot run a container here")
    bench.setenv("PODMAN", " ".join(words))
    names = [f"llmux-test-{free_port()}" for _ in bench.models]
    server = [sys.executable, "-S", "-m", "tests.hooks.standins.server"]
    for model, name in zip(bench.models, names, strict=True):
        serve = [*server, "--port", str(bench.port(model)), "--name", model]
        assert podman(*words, "create", "--name", name, *options, *serve)
    for old, new in zip(["", " qwen"], names, strict=True):
        bench.edit(rf"(?m)(\./\w+\.sh){old}$", rf"\1 {new}")
    yield bench
    for name in names:
        podman(*words, "rm", "--force", "--time", "1", name)


def test_a_real_container_wakes_and_sleeps(bench: Bench) -> None:
    hooks = ("sleep", "alive", "wake", "wake", "alive", "verify_asleep")
    assert bench.codes(*hooks) == [0, 1, 0, 0, 0, 1]  # type: ignore[arg-type]
    assert bench.ask() == f"I am {bench.models[0]}"
    hooks = ("sleep", "sleep", "alive", "verify_asleep", "wake", "alive")
    assert bench.codes(*hooks) == [0, 0, 1, 0, 0, 0]  # type: ignore[arg-type]
    assert bench.hook("sleep").ok


async def test_llmux_switches_two_real_containers(bench: Bench) -> None:
    one, two = bench.models
    async with bench.switcher() as switcher:
        for model in (one, two, one):
            assert await bench.ask_through(switcher, model) == f"I am {model}"
            assert bench.gpu() == {model: 60}


def test_a_real_container_that_was_never_made_is_named(bench: Bench) -> None:
    assert "there is no container nobody" in bench.run("./wake.sh nobody").output
    assert bench.run("./sleep.sh nobody").ok


def test_a_real_container_that_is_paused_wakes_and_sleeps(bench: Bench) -> None:
    name = (bench.config.models[bench.models[0]].wake or "").split()[-1]
    assert bench.hook("wake").ok
    assert bench.run(f"$PODMAN pause {name}").ok
    assert bench.codes("alive", "wake", "alive") == [1, 0, 0]
    assert bench.run(f"$PODMAN pause {name}").ok
    assert bench.codes("sleep", "verify_asleep") == [0, 0]


def test_a_real_container_that_ends_is_told_with_its_last_words(bench: Bench) -> None:
    bench.fault("dies")
    woken = bench.hook("wake")
    assert woken.code == 1
    assert "cannot load its model" in woken.output
    assert "ended (exited) before it answered" in woken.output


@pytest.mark.parametrize("folder", ["podman-criu"])
def test_a_real_container_comes_back_whether_criu_can_keep_it_or_not(bench: Bench) -> None:
    assert bench.hook("wake").ok
    slept = bench.hook("sleep")
    assert slept.ok or "it has been stopped instead" in slept.output
    assert bench.codes("verify_asleep", "wake", "alive") == [0, 0, 0]
    assert bench.ask() == f"I am {bench.models[0]}"
    bench.hook("sleep")
