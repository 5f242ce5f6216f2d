"""`llmux validate` with the hooks of `hooks/vllm-sleep`, sound and spoiled."""

from __future__ import annotations

import pytest

from tests.hooks.bench import Bench
from tests.hooks.conftest import MakeBench
from tests.validate.test_validate import failures, validated


@pytest.fixture
def vllm(make_bench: MakeBench) -> Bench:
    bench = make_bench("vllm-sleep")
    bench.install("vllm")
    return bench


@pytest.mark.parametrize("level", [1, 2])
async def test_the_vllm_hooks_pass(vllm: Bench, level: int) -> None:
    steps = await validated(vllm.config, model=vllm.models[level - 1])
    assert {step.result for step in steps} == {"PASS"}


async def test_a_vllm_that_lost_its_weights_is_caught(vllm: Bench) -> None:
    """A wake hook that knows level 1 only: after level 2 the model answers garbage."""
    url = "http://127.0.0.1:$LLMUX_PORT"
    wake = f"curl -sf {url}/is_sleeping | grep -q true && curl -sf -X POST {url}/wake_up || ./wake.sh Q"
    vllm.edit(r"wake: ./wake.sh Qwen/.*", f"wake: '{wake}'")
    ((step, detail),) = failures(await validated(vllm.config, model=vllm.models[1]))
    assert step == "1 ask again"
    assert detail == "garbage, the same over and over: '!!!!!!!!'"
