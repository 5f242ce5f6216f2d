"""Every recipe by its `recipe:` key, from the config to a stand-in of its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hooks.bench import HOOKS, Bench
from tests.hooks.conftest import MakeBench

ODD = "a b; $(touch \"$HOME/x\") 'c' *"
"""A value that would show if a shell read it."""


def wake_and_sleep(bench: Bench) -> None:
    assert bench.hook("alive").code == 1
    woken = bench.hook("wake")
    assert woken.ok, woken
    assert bench.codes("wake", "alive") == [0, 0]
    assert bench.codes("sleep", "alive", "verify_asleep", "sleep") == [0, 1, 0, 0]
    assert not (bench.folder / "run").exists()


def test_llama_cpp(make_bench: MakeBench) -> None:
    bench = make_bench("llama-cpp")
    bench.install("my server", "server")
    program = str(bench.bin / "my server")
    given = {"model": ODD, "args": ["--note", ODD], "server": program}
    bench.use_recipe(**{"a b": {"recipe": "llama-cpp", "with": given}})
    assert bench.hook("wake").ok
    words = f"{program} --model {ODD} --host 127.0.0.1 --port {bench.port('a b')} --note {ODD} --alias a b\n"
    (command,) = (bench.state_dir / "run").glob("*.command")
    assert command.read_text() == words
    assert bench.codes("sleep", "verify_asleep") == [0, 0]
    wake_and_sleep(bench)


@pytest.mark.parametrize("level", [1, 2])
def test_vllm_sleep(make_bench: MakeBench, level: int) -> None:
    bench = make_bench("vllm-sleep")
    bench.install("vllm")
    args = "--gpu-memory-utilization 0.85 --override '{\"t\": 0.5}'"
    bench.use_recipe(
        m={"recipe": "vllm-sleep", "with": {"model": ODD, "args": args, "level": level}}
    )
    wake_and_sleep(bench)
    start, sleep, *_ = bench.calls()
    assert start.startswith(
        f'vllm serve {ODD} --gpu-memory-utilization 0.85 --override {{"t": 0.5}} '
    )
    assert sleep == f"POST /sleep?level={level}&mode=wait"


def test_vllm_sleep_that_stops(make_bench: MakeBench) -> None:
    bench = make_bench("vllm-sleep")
    bench.install("vllm")
    bench.fault("no_sleep_mode")
    bench.use_recipe(m={"recipe": "vllm-sleep", "with": {"model": "org/m", "level": "stop"}})
    wake_and_sleep(bench)
    assert not any("sleep" in call for call in bench.calls())
    assert bench.running() == []


@pytest.mark.parametrize(("name", "tool"), [("vllm-sleep", "vllm"), ("sglang", "python3")])
def test_a_server_that_sleeps_is_started_again_for_other_options(
    make_bench: MakeBench, name: str, tool: str
) -> None:
    bench = make_bench(name)
    bench.install(tool, {"vllm": "vllm", "python3": "sglang"}[tool])
    given = {"model": "org/m", "args": "--x 1"}
    bench.use_recipe(m={"recipe": name, "with": given})
    port = bench.port("m")
    assert bench.codes("wake", "sleep") == [0, 0]
    bench.calls()
    changed = {"recipe": name, "port": port, "with": given | {"args": "--x 2"}}
    bench.use_recipe(m=changed)
    woken = bench.hook("wake")
    assert woken.ok, woken
    assert "was started with other options; starting it again" in woken.output
    assert len([call for call in bench.calls() if "--x 2" in call]) == 1
    assert bench.codes("alive", "sleep", "verify_asleep") == [0, 0, 0]


def test_sglang(make_bench: MakeBench) -> None:
    bench = make_bench("sglang")
    bench.install("python-with-sglang", "sglang")
    given = {"model": "org/m", "args": "--mem-fraction-static 0.8", "python": "python-with-sglang"}
    bench.use_recipe(m={"recipe": "sglang", "with": given})
    wake_and_sleep(bench)
    assert "--model-path org/m --mem-fraction-static 0.8" in bench.calls()[0]


@pytest.mark.parametrize("name", ["docker", "podman", "podman-criu"])
@pytest.mark.parametrize("given", [{}, {"container": "other", "health": "/v1/models"}])
def test_containers(make_bench: MakeBench, name: str, given: dict[str, Any]) -> None:
    bench = make_bench(name)
    tool = name.partition("-")[0]
    bench.install(tool, "containers", tool)
    bench.use_recipe(m={"recipe": name, "with": given})
    port = bench.port("m")
    container = given.get("container", "m")
    created = bench.run(f"{tool} create --name {container} -p 127.0.0.1:{port}:8000 image", "m")
    assert created.ok, created
    wake_and_sleep(bench)
    assert any(container in call for call in bench.calls())


def test_cuda_checkpoint(make_bench: MakeBench) -> None:
    bench = make_bench("cuda-checkpoint")
    bench.install("cuda-checkpoint", "cuda_checkpoint")
    bench.install("llama-server", "server")
    given = {"command": "llama-server --cuda --name 'm' --port ${PORT}", "copy_secs": 20}
    bench.use_recipe(m={"recipe": "cuda-checkpoint", "with": given})
    wake_and_sleep(bench)
    assert bench.config.models["m"].preserves_in_flight


def test_ollama(make_bench: MakeBench) -> None:
    bench = make_bench("ollama")
    bench.install("ollama")
    bench.use_recipe(m={"recipe": "ollama", "with": {"model": "mistral:7b-instruct"}})
    assert bench.run('OLLAMA_HOST=127.0.0.1:"$LLMUX_PORT" ollama serve >/dev/null 2>&1 &').ok
    bench.wait_listening()
    bench.calls()
    wake_and_sleep(bench)
    assert '"model": "mistral:7b-instruct"' in bench.calls()[0]


@pytest.mark.parametrize("given", [{}, {"unit": "other.service", "user": True}])
def test_systemd(make_bench: MakeBench, given: dict[str, Any]) -> None:
    bench = make_bench("systemd")
    bench.install("systemctl")
    bench.use_recipe(m={"recipe": "systemd", "with": given})
    unit, scope = given.get("unit", "m.service"), "--user" if given else ""
    units = {scope: {unit: {"port": bench.port("m"), "state": "inactive"}}}
    (bench.home / "units.json").write_text(json.dumps({"": {}, "--user": {}, **units}))
    wake_and_sleep(bench)
    assert f"systemctl {scope} start {unit}".replace("  ", " ") in bench.calls()


def test_the_demo(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench("process")
    bench.use_recipe(m={"recipe": "demo", "with": {"tokens": 3}})
    assert bench.codes("alive", "wake", "alive", "wake") == [1, 0, 0, 0]
    assert len(bench.ask().split()) == 3
    assert bench.codes("sleep", "alive", "sleep") == [0, 1, 0]
    assert (bench.state_dir / "run" / f"standin-{bench.port('m')}.pid").exists()


@pytest.mark.parametrize(
    "script", sorted(HOOKS.glob("*/*.sh")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_no_script_needs_to_be_executable(script: Path) -> None:
    """A copy without modes, as some installers make, works: scripts are run with `sh`."""
    text = script.read_text()
    assert '"$here/' not in text
    assert '\n"$(dirname' not in text
