"""What recipes make of a model's `needs`, by `LLMUX_NEEDS` and a fake nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench

GIB = 1 << 30
ONE = f"gpu0 {60 * GIB} {80 * GIB}"
TWO = f"gpu0 {20 * GIB} {80 * GIB}\ngpu1 {40 * GIB} {80 * GIB}\nram {8 * GIB} {64 * GIB}"


def smi(bench: Bench, sizes: str) -> None:
    """A fake nvidia-smi that tells a number of MiB for each GPU."""
    path = bench.bin / "nvidia-smi"
    path.write_text(f"#!/bin/sh\nprintf '{sizes}'\n")
    path.chmod(0o755)


def started(bench: Bench, recipe: str, args: str = "") -> str:
    bench.use_recipe(m={"recipe": recipe, "with": {"model": "org/m", "args": args}})
    woken = bench.hook("wake")
    assert woken.ok, woken
    return bench.calls()[0]


@pytest.mark.parametrize(
    ("needs", "sizes", "share"),
    [
        (ONE, "", "0.7500"),  # by the config
        (ONE, "0, 122880\\n1, 81920\\n", "0.5000"),  # by the driver: the GPU is larger
        (ONE, "0, [N/A]\\n", "0.7500"),
        (TWO, "0, 81920\\n1, 81920\\n", "0.5000"),  # the largest share
        (f"gpu0 {80 * GIB} {80 * GIB}", "0, 81920\\n", "0.9500"),
    ],
    ids=["config", "driver", "unknown", "two", "all"],
)
def test_vllm_gets_a_share_of_the_gpu(
    make_bench: MakeBench, needs: str, sizes: str, share: str
) -> None:
    bench = make_bench("vllm-sleep")
    bench.install("vllm")
    smi(bench, sizes)
    bench.setenv("LLMUX_NEEDS", needs)
    assert f" --gpu-memory-utilization {share} " in started(bench, "vllm-sleep")


@pytest.mark.parametrize(
    "args",
    ["--gpu-memory-utilization 0.3", "--gpu_memory_utilization=0.3", "--kv-cache-memory-bytes 9"],
)
def test_vllm_keeps_what_its_user_says(make_bench: MakeBench, args: str) -> None:
    bench = make_bench("vllm-sleep")
    bench.install("vllm")
    bench.setenv("LLMUX_NEEDS", ONE)
    start = started(bench, "vllm-sleep", args)
    assert args in start
    assert "0.75" not in start


@pytest.mark.parametrize("needs", ["", f"ram {GIB} {GIB}"], ids=["none", "ram"])
@pytest.mark.parametrize(("recipe", "tool"), [("vllm-sleep", "vllm"), ("sglang", "python3")])
def test_without_needs_of_a_gpu_a_server_takes_what_it_takes(
    make_bench: MakeBench, recipe: str, tool: str, needs: str
) -> None:
    bench = make_bench(recipe)
    bench.install(tool, {"vllm": "vllm", "python3": "sglang"}[tool])
    bench.setenv("LLMUX_NEEDS", needs)
    start = started(bench, recipe)
    assert "--gpu-memory-utilization" not in start
    assert "--mem-fraction-static" not in start


@pytest.mark.parametrize(
    ("needs", "free", "part"),
    [
        (ONE, "", "0.6375"),  # by the config: all of it is free
        (f"gpu0 {16 * GIB} {80 * GIB}", "0, 32768\\n", "0.4250"),  # of what others leave
        (TWO, "0, 81920\\n1, 40960\\n", "0.4250"),  # SGLang takes the least free of all
        (ONE, "0, 61440\\n", "0.8500"),
        (ONE, "0, 40960\\n", "0.9000"),
    ],
    ids=["config", "left", "two", "needed", "too-little"],
)
def test_sglang_gets_a_part_of_what_is_free(
    make_bench: MakeBench, needs: str, free: str, part: str
) -> None:
    bench = make_bench("sglang")
    bench.install("python3", "sglang")
    smi(bench, free)
    bench.setenv("LLMUX_NEEDS", needs)
    assert f" --mem-fraction-static {part} " in started(bench, "sglang")


def test_sglang_keeps_what_its_user_says(make_bench: MakeBench) -> None:
    bench = make_bench("sglang")
    bench.install("python3", "sglang")
    bench.setenv("LLMUX_NEEDS", ONE)
    assert started(bench, "sglang", "--mem-fraction-static=0.3").count("--mem-fraction") == 1


@pytest.mark.parametrize(("recipe", "tool"), [("vllm-sleep", "vllm"), ("sglang", "python3")])
def test_a_server_that_sleeps_is_started_again_for_other_needs(
    make_bench: MakeBench, recipe: str, tool: str
) -> None:
    bench = make_bench(recipe)
    bench.install(tool, {"vllm": "vllm", "python3": "sglang"}[tool])
    bench.setenv("LLMUX_NEEDS", ONE)
    smi(bench, "0, 81920\\n")
    started(bench, recipe)
    # Others have more or less of the GPU than before: the same needs, and no new start.
    smi(bench, "0, 61440\\n")
    assert bench.codes("sleep", "wake", "sleep") == [0, 0, 0]
    assert not [call for call in bench.calls() if "org/m" in call and "--port" in call]
    bench.setenv("LLMUX_NEEDS", f"gpu0 {30 * GIB} {80 * GIB}")
    woken = bench.hook("wake")
    assert woken.ok, woken
    assert "was started with other options; starting it again" in woken.output
    assert len([call for call in bench.calls() if "--port" in call]) == 1


@pytest.mark.parametrize(("recipe", "tool"), [("vllm-sleep", "vllm"), ("sglang", "python3")])
def test_one_that_sleeps_is_stopped_deeper(make_bench: MakeBench, recipe: str, tool: str) -> None:
    bench = make_bench(recipe)
    bench.install(tool, {"vllm": "vllm", "python3": "sglang"}[tool])
    started(bench, recipe)
    assert bench.codes("sleep", "stop", "verify_asleep", "stop") == [0, 0, 0, 0]
    assert (bench.running(), bench.gpu()) == ([], {})
    assert bench.codes("wake", "alive", "stop", "verify_asleep") == [0, 0, 0, 0]
    assert bench.running() == []


@pytest.mark.parametrize(
    ("needs", "own", "fit"), [(ONE, "", "off"), (ONE, "on", "on"), ("", "", "")]
)
@pytest.mark.parametrize("recipe", ["llama-cpp", "process"])
def test_llama_cpp_does_not_fill_what_is_free(
    make_bench: MakeBench, recipe: str, needs: str, own: str, fit: str
) -> None:
    bench = make_bench(recipe)
    server = bench.install("llama-server", "server")
    bench.setenv("LLMUX_NEEDS", needs)
    if own:
        bench.setenv("LLAMA_ARG_FIT", own)
    given = {
        "llama-cpp": {"model": "m.gguf"},
        "process": {"command": f"{server} --port ${{PORT}} --name m"},
    }
    bench.use_recipe(m={"recipe": recipe, "with": given[recipe]})
    woken = bench.hook("wake")
    assert woken.ok, woken
    seen = set()
    for pid in bench.running():
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        about = dict(pair.partition(b"=")[::2] for pair in pairs)
        seen.add(about.get(b"LLAMA_ARG_FIT", b"").decode())
    assert seen == {fit}
