"""The gate: a backend's own word on who waits inside of it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llmux.errors import BackendError
from llmux.gate import queued_in, watch_backends
from llmux.model import Model, Phase


@pytest.mark.parametrize(
    ("metrics", "queued"),
    [
        (b"", 0),
        (b"vllm:num_requests_waiting 3\n", 3),
        (b'# TYPE x gauge\nvllm:num_requests_waiting{engine="0"} 2.0\n'
         b'vllm:num_requests_waiting{engine="1"} 1e1\n', 12),
        (b"vllm:num_requests_waiting_total 5\nother 7\n", 0),
        (b"<html>", 0),
    ],
)  # fmt: skip
def test_what_metrics_say(metrics: bytes, queued: int) -> None:
    assert queued_in(metrics) == queued


async def test_models_that_are_awake_are_watched(autojump_clock: MockClock) -> None:
    answers = iter([b"vllm:num_requests_waiting 4\n", None, b"vllm:num_requests_waiting 2\n"])

    async def fetch() -> bytes:
        answer = next(answers)
        if answer is None:
            raise BackendError("gone")
        return answer

    async def hang() -> bytes:
        await trio.sleep(1000)
        return b""

    model, silent = Model("a"), Model("b")
    for one in (model, silent):
        one.enter(Phase.WAKING)
        one.enter(Phase.AWAKE)
    silent.backend_queued = 9
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_backends, [(model, fetch), (silent, hang)])
        await trio.sleep(0.5)
        assert model.view().backend_queued == 4
        await trio.sleep(2.0)  # one second for the one that hangs
        assert (model.backend_queued, silent.backend_queued) == (0, 0)
        await trio.sleep(2.0)
        assert model.view().backend_queued == 2
        model.enter(Phase.DRAINING)
        await trio.sleep(3.0)
        assert model.view().backend_queued == 0
        nursery.cancel_scope.cancel()
